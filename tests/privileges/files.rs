//! The files of `k8s/privileges`, with one permission removed, and servers with the users in them.

use std::path::PathBuf;

use async_nats::ConnectOptions;
use redis::{RedisError, aio::MultiplexedConnection};
use tempfile::TempDir;

use crate::support::{NatsServer, RedisServer, World};

const REDIS: &str = include_str!("../../k8s/privileges/redis.acl");
const NATS: &str = include_str!("../../k8s/privileges/nats.conf");

/// A user of Redis.
pub(super) struct Acl {
    user: &'static str,
    words: Vec<&'static str>,
}

impl Acl {
    pub(super) fn hookgate() -> Self {
        Self::of("hookgate")
    }

    pub(super) fn operator() -> Self {
        Self::of("hookgate-operator")
    }

    pub(super) fn reconcile() -> Self {
        Self::of("hookgate-reconcile")
    }

    fn of(user: &'static str) -> Self {
        let line =
            REDIS.lines().find(|line| line.starts_with(&format!("user {user} "))).expect("the file has the user");
        Self { user, words: line.split(' ').collect() }
    }

    /// What it gives: commands and patterns of keys.
    pub(super) fn grants(&self) -> Vec<&'static str> {
        self.words.iter().filter(|word| word.starts_with(['+', '~'])).copied().collect()
    }

    pub(super) fn without(&self, taken: &str) -> Self {
        let words: Vec<_> = self.words.iter().filter(|word| **word != taken).copied().collect();
        assert_eq!(words.len() + 1, self.words.len(), "{taken} is there once");
        Self { user: self.user, words }
    }

    /// The line with a password.
    fn line(&self) -> String {
        assert!(self.words.contains(&"resetpass"), "nobody gets in without a password of their own");
        self.words.join(" ").replace("resetpass", ">right")
    }
}

/// A user of NATS: permissions as they stand in the file, taken out by their number.
pub(super) struct Permissions {
    user: &'static str,
    taken: Option<usize>,
}

impl Permissions {
    pub(super) fn hookgate() -> Self {
        Self { user: "hookgate", taken: None }
    }

    pub(super) fn operator() -> Self {
        Self { user: "hookgate-operator", taken: None }
    }

    pub(super) fn reconcile() -> Self {
        Self { user: "hookgate-reconcile", taken: None }
    }

    pub(super) fn consumer() -> Self {
        Self { user: "case-sync", taken: None }
    }

    /// The subjects, those to publish on first.
    pub(super) fn grants(&self) -> Vec<&'static str> {
        self.lines().map(|(_, line)| line.trim().trim_matches('"')).collect()
    }

    /// Without the permission in this place.
    pub(super) fn without(&self, place: usize) -> Self {
        Self { user: self.user, taken: Some(place) }
    }

    pub(super) fn without_subject(&self, subject: &str) -> Self {
        self.without(self.grants().iter().position(|other| *other == subject).expect("the file has it"))
    }

    /// The lines with a subject, by their numbers.
    fn lines(&self) -> impl Iterator<Item = (usize, &'static str)> {
        let mine = format!("user: {}", self.user);
        let mut inside = false;
        NATS.lines().enumerate().filter(move |(_, line)| {
            if line.trim().starts_with("user: ") {
                inside = line.trim() == mine;
            }
            inside && line.trim().starts_with('"')
        })
    }

    /// The file with passwords, and with a user for the tests.
    fn config(&self) -> String {
        let taken = self.taken.map(|place| self.lines().nth(place).expect("so many are there").0);
        // Never empty: NATS reads an empty list as no limit.
        let line = |(number, line)| if Some(number) == taken { "\"nothing.at.all\"" } else { line };
        let text = NATS.lines().enumerate().map(line).collect::<Vec<_>>().join("\n");
        text.replace("$HOOKGATE_NATS_PASSWORD", "right")
            .replace("$HOOKGATE_OPERATOR_NATS_PASSWORD", "right")
            .replace("$HOOKGATE_RECONCILE_NATS_PASSWORD", "right")
            .replace("$CASE_SYNC_NATS_PASSWORD", "right")
            .replace("users = [\n", "users = [\n    { user: tests, password: tests }\n")
    }
}

/// How to be one of the users.
pub(super) struct Access {
    folder: TempDir,
    redis: &'static str,
    nats: &'static str,
}

impl Access {
    /// Servers with the users, and the files to log in with.
    pub(super) async fn start(acl: &Acl, permissions: &Permissions) -> (World, Self) {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let users = folder.path().join("users.acl");
        std::fs::write(&users, format!("user default on nopass ~* &* +@all\n{}\n", acl.line())).expect("it is ours");
        std::fs::write(folder.path().join("right"), "right\n").expect("it is ours");
        std::fs::write(folder.path().join("tests"), "tests\n").expect("it is ours");
        let entrance = || ConnectOptions::with_user_and_password("tests".to_owned(), "tests".to_owned());
        let config = permissions.config();
        let (redis, nats) = tokio::join!(RedisServer::with_users(&users), NatsServer::guarded(&config, entrance));
        (World { redis, nats }, Self { folder, redis: acl.user, nats: permissions.user })
    }

    /// Settings of somebody with these permissions.
    pub(super) fn settings(&self, relay_after: &str) -> String {
        let right = self.file("right");
        format!(
            "redis.username = \"{}\"\nredis.password_file = \"{right}\"\nnats.user = \"{}\"\nnats.password_file = \"{right}\"\nserver.request_deadline = \"1s\"\noutbox.relay_after = \"{relay_after}\"\ndead_letters.max_entries = 1\n",
            self.redis,
            self.nats,
            right = right.display()
        )
    }

    /// Redis, by a client of this user's own.
    pub(super) async fn connection(&self, server: &RedisServer) -> Result<MultiplexedConnection, RedisError> {
        let url = server.url().replace("redis://", &format!("redis://{}:right@", self.redis));
        redis::Client::open(format!("{url}/1"))?.get_multiplexed_async_connection().await
    }

    /// Settings of somebody who may do everything.
    pub(super) fn everything(&self) -> String {
        format!("nats.user = \"tests\"\nnats.password_file = \"{}\"\n", self.file("tests").display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
