//! Settings in the words of the parts they are for.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};

use crate::{
    delivery::WithoutAck,
    pending::{access::Access, redis::Options},
    publisher::{StreamSettings, servers::Servers},
    settings::{DeliveryMode, NatsServers, RedisAddress, Settings, Stream},
};

/// How claims are made.
pub(super) const fn claim_options(settings: &Settings) -> Options {
    Options {
        timeout: settings.redis_timeout,
        outbox_limit: settings.outbox_limit,
        durability: settings.durability,
        rests_on_claims: matches!(settings.policy.without_ack, WithoutAck::Accept),
    }
}

/// How Redis is reached.
pub(super) fn access(address: &RedisAddress) -> Access {
    let RedisAddress { host, port, database, username, password, tls } = address;
    let info = info(match tls {
        None => ConnectionAddr::Tcp(host.clone(), *port),
        Some(_) => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
    });
    let mut login = info.redis_settings().clone().set_db(*database);
    if let Some(username) = username {
        login = login.set_username(username);
    }
    if let Some(password) = password {
        login = login.set_password(String::from_utf8_lossy(password.bytes()));
    }
    let info = info.set_redis_settings(login);
    match tls {
        Some(files) => Access::tls(info, files.clone()),
        None => Access::plain(info),
    }
}

fn info(address: ConnectionAddr) -> ConnectionInfo {
    address.into_connection_info().expect("an address of its parts needs no parsing")
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
