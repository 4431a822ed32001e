//! Servers with the permissions of `k8s/privileges`, for `--privileges`.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{NatsServer, RedisServer};

const REDIS: &str = include_str!("../../k8s/privileges/redis.acl");
const NATS: &str = include_str!("../../k8s/privileges/nats.conf");

static WANTED: AtomicBool = AtomicBool::new(false);

/// From now on servers of a `World` know hookgate's user, and hookgate is that user.
pub(crate) fn want() {
    WANTED.store(true, Ordering::SeqCst);
}

pub(super) fn wanted() -> bool {
    WANTED.load(Ordering::SeqCst)
}

/// Both servers. Who does not log in may do everything, as the tests do.
pub(super) async fn start() -> (RedisServer, NatsServer) {
    let users = format!("user default on nopass ~* &* +@all\n{}", REDIS.replace("resetpass", ">right"));
    let config = NATS
        .replace("$HOOKGATE_NATS_PASSWORD", "right")
        .replace("$HOOKGATE_OPERATOR_NATS_PASSWORD", "right")
        .replace("$HOOKGATE_RECONCILE_NATS_PASSWORD", "right")
        .replace("$CASE_SYNC_NATS_PASSWORD", "right")
        .replace("users = [\n", "users = [\n    { user: tests, password: tests }\n");
    let nats = format!("{config}\nno_auth_user: tests\n");
    tokio::join!(RedisServer::with_users_of(&users), NatsServer::configured(&nats))
}

/// An address with hookgate's login.
pub(super) fn login(url: &str) -> String {
    url.replacen("://", "://hookgate:right@", 1)
}
