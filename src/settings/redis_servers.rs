//! How Redis is reached: one server, by sentinels, or a cluster.

use std::{fmt::Display, net::IpAddr};

use super::{
    ClaimsIn, HostPort, RedisAddress, RedisSentinels, RedisServers, SettingsError,
    checks::{Check, in_toml},
    nats_servers::percent_decode,
    sections::RedisSection,
};
use crate::{delivery::Durability, redaction::without_credentials, secrets::Secret, tls::TlsFiles};

const URL: &str = "redis.url";
/// Where Redis listens unless the address says otherwise.
const REDIS_PORT: u16 = 6379;
/// Where a sentinel does.
const SENTINEL_PORT: u16 = 26379;
/// Consumers of the replaced system look there.
const DATABASE: i64 = 1;
/// More replicas than this no primary has.
const MOST_REPLICAS: usize = 100;

/// What a scheme stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    One,
    Sentinel,
    Cluster,
}

impl Kind {
    /// Kind and whether it speaks TLS.
    fn of(scheme: &str) -> Option<(Self, bool)> {
        Some(match scheme {
            "redis" => (Self::One, false),
            "rediss" => (Self::One, true),
            "redis+sentinel" => (Self::Sentinel, false),
            "rediss+sentinel" => (Self::Sentinel, true),
            "redis+cluster" => (Self::Cluster, false),
            "rediss+cluster" => (Self::Cluster, true),
            _ => return None,
        })
    }

    /// What it looks like.
    const fn example(self) -> &'static str {
        match self {
            Self::One => "is not the address of a Redis server ({}); write redis://host:6379/1",
            Self::Sentinel => {
                "does not say how to find a Redis by sentinels ({}); write redis+sentinel://host:26379,host:26379/service/1"
            }
            Self::Cluster => "is not the address of a Redis Cluster ({}); write redis+cluster://host:6379,host:6379",
        }
    }

    const fn port(self) -> u16 {
        if matches!(self, Self::Sentinel) { SENTINEL_PORT } else { REDIS_PORT }
    }
}

/// The parts of an address, unchecked.
struct Parts<'a> {
    login: Option<(&'a str, Option<&'a str>)>,
    hosts: &'a str,
    path: &'a str,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Self {
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        let login = login.map(|login| match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        });
        Self { login, hosts, path: path.trim_matches('/') }
    }
}

/// One of the addresses.
fn host_port(text: &str, default: u16) -> Result<HostPort, String> {
    if text.is_empty() {
        return Err("it names no host".to_owned());
    }
    let url = url::Url::parse(&format!("redis://{text}")).map_err(|error| error.to_string())?;
    // An address in brackets is one of IP version 6; what else stands there is a name or an address as it is.
    let host = match url.host() {
        Some(url::Host::Domain(name)) => name.to_owned(),
        Some(url::Host::Ipv4(address)) => address.to_string(),
        Some(url::Host::Ipv6(address)) => address.to_string(),
        None => String::new(),
    };
    if host.is_empty() {
        return Err("it names no host".to_owned());
    }
    if host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified()) {
        return Err("it names no host, but any address".to_owned());
    }
    Ok((host, url.port().unwrap_or(default)))
}

fn database(text: &str) -> Result<i64, String> {
    text.parse::<u32>().map(i64::from).map_err(|_not| "the database is a number".to_owned())
}

impl Check {
    pub(super) fn claims_in(&mut self, redis: &RedisSection) -> Option<ClaimsIn> {
        let tls = self.note(self.tls_files(
            ("redis.ca_file", &redis.ca_file),
            ("redis.client_cert_file", &redis.client_cert_file),
            ("redis.client_key_file", &redis.client_key_file),
        ));
        let known = redis.url.split_once("://").and_then(|(scheme, rest)| Some((Kind::of(scheme)?, rest)));
        let in_memory = redis.url == "memory:";
        if known.is_none() && !in_memory {
            let problem = "this version of hookgate knows redis://host:port/db, redis+sentinel://host:port,host:port/service/db, redis+cluster://host:port,host:port, each with rediss for TLS, and memory:";
            let shown = format!("{:?}", without_credentials(&redis.url));
            self.refuse(self.value(URL, shown, problem.to_owned()));
        }
        let by_sentinels = known.is_some_and(|((kind, _), _)| kind == Kind::Sentinel);
        let sentinel_login = self.note(self.sentinel_login(redis, by_sentinels));
        if in_memory {
            return tls.map(|_| ClaimsIn::Memory);
        }
        let password = self.note(self.redis_password(redis));
        let ((kind, speaks_tls), rest) = known?;
        let tls = self.redis_tls(redis, tls?, speaks_tls);
        let address = self.redis_address(redis, kind, rest, password?);
        let (tls, address, (username, password)) = (self.note(tls)?, self.note(address)?, sentinel_login?);
        let RedisAddress { mut servers, .. } = address;
        if let RedisServers::Sentinel(sentinels) = &mut servers {
            (sentinels.username, sentinels.password) = (username, password);
        }
        Some(ClaimsIn::Redis(RedisAddress { servers, tls, ..address }))
    }

    /// The password in a file of its own.
    fn redis_password(&self, redis: &RedisSection) -> Result<Option<String>, SettingsError> {
        let alone = redis.username.is_some() && redis.password_file.is_none();
        if alone && self.are_read(&["redis.username", "redis.password_file"]) {
            let problem = "needs redis.password_file beside it".to_owned();
            return Err(self.value("redis.username", in_toml(&redis.username), problem));
        }
        redis.password_file.as_deref().map(|path| self.secret("redis.password_file", path)).transpose()
    }

    /// How to log in to sentinels.
    fn sentinel_login(
        &self,
        redis: &RedisSection,
        by_sentinels: bool,
    ) -> Result<(Option<String>, Option<Secret>), SettingsError> {
        const USER: &str = "redis.sentinel_username";
        const FILE: &str = "redis.sentinel_password_file";
        let (user, file) = (&redis.sentinel_username, &redis.sentinel_password_file);
        if !by_sentinels && self.are_read(&[URL]) {
            let useless = user.as_ref().map(|user| (USER, in_toml(user)));
            if let Some((key, value)) = useless.or_else(|| file.as_ref().map(|path| (FILE, in_toml(path)))) {
                let shown = without_credentials(&redis.url);
                let problem = format!("has no effect without sentinels; redis.url is {shown:?}, not redis+sentinel://");
                return Err(self.value(key, value, problem));
            }
        }
        if let (Some(user), None) = (user, file)
            && self.are_read(&[USER, FILE])
        {
            return Err(self.value(USER, in_toml(user), format!("needs {FILE} beside it")));
        }
        let password = file.as_deref().map(|path| self.secret(FILE, path)).transpose()?;
        Ok((user.clone(), password.as_deref().map(Secret::from)))
    }

    /// The files of TLS, if the address asks for it.
    fn redis_tls(
        &self,
        redis: &RedisSection,
        tls: TlsFiles,
        speaks_tls: bool,
    ) -> Result<Option<TlsFiles>, SettingsError> {
        let shown = format!("{:?}", without_credentials(&redis.url));
        if speaks_tls {
            self.authorities(URL, &shown, &tls, "redis.ca_file")?;
            return Ok(Some(tls));
        }
        let files = [("redis.ca_file", &redis.ca_file), ("redis.client_cert_file", &redis.client_cert_file)];
        let useless = files.into_iter().find(|(key, path)| path.is_some() && self.are_read(&[URL, key]));
        if let Some((key, path)) = useless {
            let problem = format!("has no effect without TLS; write rediss:// in redis.url ({shown})");
            return Err(self.value(key, in_toml(path), problem));
        }
        Ok(None)
    }

    /// Where Redis is, and how to log in; without TLS.
    fn redis_address(
        &self,
        redis: &RedisSection,
        kind: Kind,
        rest: &str,
        password: Option<String>,
    ) -> Result<RedisAddress, SettingsError> {
        let shown = format!("{:?}", without_credentials(&redis.url));
        let wrong = |problem: &dyn Display| self.value(URL, &shown, kind.example().replace("{}", &problem.to_string()));
        if rest.contains('#') {
            return Err(wrong(&"it has something behind a #; certificates are always checked"));
        }
        if rest.contains('?') {
            return Err(wrong(&"it has something behind a ?"));
        }
        let Parts { login, hosts, path } = Parts::of(rest);
        let hosts: Vec<&str> = if kind == Kind::One { vec![hosts] } else { hosts.split(',').collect() };
        let mut addresses = Vec::with_capacity(hosts.len());
        for host in hosts {
            let address = host_port(host, kind.port()).map_err(|problem| wrong(&problem))?;
            if addresses.contains(&address) {
                return Err(wrong(&format!("it names {host} twice")));
            }
            addresses.push(address);
        }
        let (servers, database) = match kind {
            Kind::One => {
                let number = if path.is_empty() { Ok(DATABASE) } else { database(path) };
                (RedisServers::One(addresses.swap_remove(0)), number.map_err(|problem| wrong(&problem))?)
            }
            Kind::Sentinel => {
                let (service, number) =
                    path.split_once('/').map_or((path, None), |(name, number)| (name, Some(number)));
                if service.is_empty() {
                    return Err(wrong(&"it names no service, which is what the sentinels call the primary"));
                }
                let service = percent_decode(service);
                let number = number.map_or(Ok(DATABASE), database).map_err(|problem| wrong(&problem))?;
                (RedisServers::Sentinel(RedisSentinels { addresses, service, username: None, password: None }), number)
            }
            Kind::Cluster => {
                if !path.is_empty() && database(path).map_err(|problem| wrong(&problem))? != 0 {
                    return Err(wrong(&format!("a cluster has no database but 0, and this says {path}")));
                }
                (RedisServers::Cluster(addresses), 0)
            }
        };
        let (user, in_url) = login.unwrap_or(("", None));
        if let (Some(path), Some(_)) = (&redis.password_file, in_url) {
            let problem = "the url holds a password too; keep one".to_owned();
            return Err(self.value("redis.password_file", in_toml(path), problem));
        }
        let user = Some(user).filter(|name| !name.is_empty()).map(percent_decode);
        let password = password.or_else(|| in_url.map(percent_decode));
        Ok(RedisAddress {
            servers,
            database,
            username: redis.username.clone().or(user),
            password: password.as_deref().map(Secret::from),
            tls: None,
        })
    }

    /// That somebody waits for the replicas.
    pub(super) fn wait_replicas(&mut self, redis: &RedisSection) {
        const KEY: &str = "redis.wait_replicas";
        self.note(self.range(KEY, redis.wait_replicas, 1, MOST_REPLICAS));
        let waits = redis.durability == Durability::Replica || redis.wait_replicas <= 1;
        if !waits && self.are_read(&[KEY, "redis.durability"]) {
            let durability = in_toml(&redis.durability);
            let problem = format!(
                "changes nothing unless redis.durability is \"replica\" ({}: {durability})",
                self.origin("redis.durability")
            );
            self.refuse(self.value(KEY, redis.wait_replicas, problem));
        }
    }
}
