//! Settings in the words of the parts they are for.

use std::sync::Arc;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::{
    dead_letters::DeadLetterStore,
    delivery::{Delivery, PendingStore, Policy, Publisher, WithoutAck, WithoutClaim},
    metrics::Metrics,
    pending::{
        access::{Access, Node},
        quarantine::RedisQuarantine,
        redis::Options,
    },
    publisher::{StreamSettings, servers::Servers},
    quarantine::{QuarantineLimits, QuarantineStore},
    recovery::Releaser,
    secrets::Secret,
    settings::{DeliveryMode, NatsServers, Quarantine, RedisAddress, RedisSentinels, RedisServers, Settings, Stream},
    traces::Tracer,
};

/// How claims are made.
pub(super) const fn claim_options(settings: &Settings) -> Options {
    Options {
        timeout: settings.redis_timeout,
        outbox_limit: settings.outbox_limit,
        durability: settings.durability,
        wait_replicas: settings.wait_replicas,
        rests_on_claims: matches!(settings.policy.without_ack, WithoutAck::Accept),
    }
}

/// How Redis is reached.
pub(super) fn access(address: &RedisAddress) -> Access {
    let RedisAddress { servers, database, username, password, tls } = address;
    let named = match servers {
        RedisServers::One(named) => std::slice::from_ref(named),
        RedisServers::Sentinel(sentinels) => &sentinels.addresses,
        RedisServers::Cluster(nodes) => nodes,
    };
    let nodes: Vec<Node> = named.iter().map(|(host, port)| Node { host: host.clone(), port: *port }).collect();
    let login = |database: i64, username: &Option<String>, password: &Option<Secret>| {
        let (host, port) = named.first().expect("an address names a server").clone();
        let info = info(match tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        });
        let mut login = info.redis_settings().clone().set_db(database);
        if let Some(username) = username {
            login = login.set_username(username);
        }
        if let Some(password) = password {
            login = login.set_password(String::from_utf8_lossy(password.bytes()));
        }
        info.set_redis_settings(login)
    };
    let info = login(*database, username, password);
    let access = match tls {
        Some(files) => Access::tls(info, files.clone()),
        None => Access::plain(info),
    };
    match servers {
        RedisServers::One(_) => access,
        RedisServers::Sentinel(RedisSentinels { service, username, password, .. }) => {
            access.by_sentinels(&nodes, service, login(0, username, password))
        }
        RedisServers::Cluster(_) => access.in_cluster(&nodes),
    }
}

fn info(address: ConnectionAddr) -> ConnectionInfo {
    address.into_connection_info().expect("an address of its parts needs no parsing")
}

/// Where bodies are kept whose signature was wrong.
pub(super) fn quarantine(settings: &Settings, access: &Access) -> Arc<dyn QuarantineStore> {
    Arc::new(RedisQuarantine::open(access, &settings.instance))
}

/// Limits of the quarantine.
pub(super) const fn quarantine_limits(settings: &Settings) -> QuarantineLimits {
    let Quarantine { max_entries, max_bytes, max_age } = settings.quarantine;
    QuarantineLimits { max_entries, max_bytes, max_age: max_age.0 }
}

/// What releases bodies from quarantine: without a claim or an acknowledgement they stay.
pub(super) fn releaser(
    settings: &Settings,
    store: Arc<dyn QuarantineStore>,
    pending: &Arc<dyn PendingStore>,
    dead_letters: &Arc<dyn DeadLetterStore>,
    publisher: &Arc<dyn Publisher>,
    metrics: &Metrics,
) -> Releaser {
    let (pending, publisher) = (Arc::clone(pending), Arc::clone(publisher));
    let policy = strict(settings);
    let delivery = Delivery::new(pending, publisher, policy, &settings.routes, metrics.clone(), Tracer::default());
    Releaser {
        store,
        delivery: Arc::new(delivery),
        dead_letters: Arc::clone(dead_letters),
        letter_limits: settings.dead_letters,
        routes: settings.routes.clone(),
        verifiers: Arc::new(settings.verifiers.clone()),
        metrics: metrics.clone(),
        patience: settings.request_deadline,
    }
}

/// Whatever the settings accept for webhooks: no event without a claim, and no success without an acknowledgement.
pub(super) const fn strict(settings: &Settings) -> Policy {
    Policy {
        without_claim: WithoutClaim::Reject,
        without_ack: WithoutAck::Reject,
        ack_timeout: settings.policy.ack_timeout,
    }
}

/// How NATS is reached.
pub(super) fn servers(settings: &Settings) -> Servers {
    let NatsServers { addresses, login, tls } = settings.nats.clone();
    Servers::new(addresses, login, tls)
}

/// The stream that is created where none covers a subject; none of that without JetStream.
pub(super) fn stream(settings: &Settings) -> Option<StreamSettings> {
    let Stream { name, create, replicas, max_age, duplicate_window } = settings.stream.clone();
    match settings.delivery {
        DeliveryMode::Jetstream => {
            Some(StreamSettings { name, create, replicas, max_age: max_age.0, duplicate_window: duplicate_window.0 })
        }
        DeliveryMode::Core => None,
    }
}
