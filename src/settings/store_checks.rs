//! How the stores are reached: addresses, logins, TLS.

use std::{
    fmt::Display,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{
    ClaimsIn, NatsServers, RedisAddress, SettingsError,
    checks::{Check, in_toml},
    nats_servers::{NatsUrl, percent_decode},
    sections,
};
use crate::{
    nats_login::{Login, LoginError},
    redaction::without_credentials,
    secrets::{self, Secret},
    tls::{TlsFiles, system_has_authorities},
};

/// Where Redis listens unless the address says otherwise.
const REDIS_PORT: u16 = 6379;

/// A key and the file it names.
type FileKey<'a> = (&'static str, &'a Option<PathBuf>);

impl Check {
    fn bad_secret(&self, key: &'static str, path: &Path, problem: std::io::Error) -> SettingsError {
        SettingsError::Secret { source_name: self.origin(key), key, path: path.to_owned(), problem }
    }

    fn secret(&self, key: &'static str, path: &Path) -> Result<String, SettingsError> {
        secrets::text(path).map_err(|problem| self.bad_secret(key, path, problem))
    }

    pub(super) fn claims_in(&mut self, redis: &sections::RedisSection) -> Option<ClaimsIn> {
        let tls = self.note(self.tls_files(
            ("redis.ca_file", &redis.ca_file),
            ("redis.client_cert_file", &redis.client_cert_file),
            ("redis.client_key_file", &redis.client_key_file),
        ));
        let known = ["redis://", "rediss://"].iter().any(|scheme| redis.url.starts_with(scheme));
        if redis.url == "memory:" {
            return tls.map(|_| ClaimsIn::Memory);
        }
        if !known {
            let problem =
                "this version of hookgate knows redis://host:port/db, rediss://host:port/db (TLS) and memory:";
            let shown = format!("{:?}", without_credentials(&redis.url));
            self.refuse(self.value("redis.url", shown, problem.to_owned()));
        }
        let password = self.note(self.redis_password(redis));
        if !known {
            return None;
        }
        let address = self.redis_address(redis, tls?, password?);
        self.note(address).map(ClaimsIn::Redis)
    }

    /// The password in a file of its own.
    fn redis_password(&self, redis: &sections::RedisSection) -> Result<Option<String>, SettingsError> {
        let alone = redis.username.is_some() && redis.password_file.is_none();
        if alone && self.are_read(&["redis.username", "redis.password_file"]) {
            let problem = "needs redis.password_file beside it".to_owned();
            return Err(self.value("redis.username", in_toml(&redis.username), problem));
        }
        redis.password_file.as_deref().map(|path| self.secret("redis.password_file", path)).transpose()
    }

    /// Where Redis is, and how to log in.
    fn redis_address(
        &self,
        redis: &sections::RedisSection,
        tls: TlsFiles,
        password: Option<String>,
    ) -> Result<RedisAddress, SettingsError> {
        const KEY: &str = "redis.url";
        let shown = format!("{:?}", without_credentials(&redis.url));
        let wrong = |problem: &dyn Display| {
            let problem = format!("is not the address of a Redis server ({problem}); write redis://host:6379/1");
            self.value(KEY, &shown, problem)
        };
        let url = url::Url::parse(&redis.url).map_err(|error| wrong(&error))?;
        if url.fragment().is_some() {
            return Err(wrong(&"it has something behind a #; certificates are always checked"));
        }
        if url.query().is_some() {
            return Err(wrong(&"it has something behind a ?"));
        }
        // An address in brackets is one of IP version 6; what else stands there is a name or an address as it is.
        let host = match url.host() {
            Some(url::Host::Domain(name)) => name.to_owned(),
            Some(url::Host::Ipv4(address)) => address.to_string(),
            Some(url::Host::Ipv6(address)) => address.to_string(),
            None => String::new(),
        };
        if host.is_empty() {
            return Err(wrong(&"it names no host"));
        }
        if host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified()) {
            return Err(wrong(&"it names no host, but any address"));
        }
        let database = match url.path().trim_matches('/') {
            // Consumers of the replaced system look there.
            "" => 1,
            number => number.parse::<u32>().map_err(|_not| wrong(&"the database is a number"))?.into(),
        };
        if let (Some(path), Some(_)) = (&redis.password_file, url.password()) {
            let problem = "the url holds a password too; keep one".to_owned();
            return Err(self.value("redis.password_file", in_toml(path), problem));
        }
        let in_url = Some(url.username()).filter(|name| !name.is_empty()).map(percent_decode);
        let password = password.or_else(|| url.password().map(percent_decode));
        let tls = if url.scheme() == "rediss" {
            self.authorities(KEY, &shown, &tls, "redis.ca_file")?;
            Some(tls)
        } else {
            let files = [("redis.ca_file", &redis.ca_file), ("redis.client_cert_file", &redis.client_cert_file)];
            let useless = files.into_iter().find(|(key, path)| path.is_some() && self.are_read(&[KEY, key]));
            if let Some((key, path)) = useless {
                let problem = format!("has no effect without TLS; write rediss:// in redis.url ({shown})");
                return Err(self.value(key, in_toml(path), problem));
            }
            None
        };
        Ok(RedisAddress {
            host,
            port: url.port().unwrap_or(REDIS_PORT),
            database,
            username: redis.username.clone().or(in_url),
            password: password.as_deref().map(Secret::from),
            tls,
        })
    }

    pub(super) fn servers(&mut self, nats: &sections::NatsSection) -> Option<NatsServers> {
        let login = self.note(self.nats_login(nats));
        let tls = self.note(self.tls_files(
            ("nats.ca_file", &nats.ca_file),
            ("nats.client_cert_file", &nats.client_cert_file),
            ("nats.client_key_file", &nats.client_key_file),
        ));
        let shown: Vec<_> = nats.url.split(',').map(without_credentials).collect();
        let shown = format!("{:?}", shown.join(","));
        let whole = login.is_some() && tls.is_some();
        let tls = tls.unwrap_or_default();
        let url = NatsUrl::parse(&nats.url, login.unwrap_or_default())
            .map_err(|error| self.value("nats.url", &shown, error.to_string()));
        let NatsUrl { addresses, login, tls: in_url } = self.note(url)?;
        let wants_tls = in_url || !tls.is_empty();
        if whole && wants_tls {
            self.note(self.authorities("nats.url", &shown, &tls, "nats.ca_file"))?;
        }
        whole.then(|| NatsServers { addresses, login, tls: wants_tls.then_some(tls) })
    }

    /// The one way to log in to NATS.
    fn nats_login(&self, nats: &sections::NatsSection) -> Result<Login, SettingsError> {
        let password: FileKey<'_> = ("nats.password_file", &nats.password_file);
        let both = self.are_read(&["nats.user", "nats.password_file"]);
        match (&nats.user, &nats.password_file) {
            (Some(user), None) if both => {
                let problem = "needs nats.password_file beside it".to_owned();
                return Err(self.value("nats.user", format!("{user:?}"), problem));
            }
            (None, Some(path)) if both => {
                return Err(self.value("nats.password_file", in_toml(path), "needs nats.user beside it".to_owned()));
            }
            _ => {}
        }
        let files: [FileKey<'_>; 4] = [
            password,
            ("nats.token_file", &nats.token_file),
            ("nats.nkey_seed_file", &nats.nkey_seed_file),
            ("nats.credentials_file", &nats.credentials_file),
        ];
        let mut present = files.into_iter().filter_map(|(key, path)| Some((key, path.as_deref()?)));
        let Some((key, path)) = present.next() else { return Ok(Login::None) };
        if let Some((second, path)) = present.next() {
            let first = if key == "nats.password_file" { "nats.user" } else { key };
            return Err(self.value(second, in_toml(&path), format!("{first} logs in too; keep one")));
        }
        let bad = |error: LoginError| match error {
            LoginError::Read(problem) => self.bad_secret(key, path, problem),
            other => self.bad_secret(key, path, std::io::Error::other(other.to_string())),
        };
        Ok(match key {
            "nats.password_file" => {
                Login::User { name: nats.user.clone().unwrap_or_default(), password: self.secret(key, path)? }
            }
            "nats.token_file" => Login::Token(self.secret(key, path)?),
            "nats.nkey_seed_file" => Login::nkey(&self.secret(key, path)?).map_err(bad)?,
            _ => {
                self.secret(key, path)?;
                Login::credentials(path).map_err(bad)?
            }
        })
    }

    /// The files of TLS, each read once.
    fn tls_files(&self, ca: FileKey<'_>, cert: FileKey<'_>, key: FileKey<'_>) -> Result<TlsFiles, SettingsError> {
        let client = match (cert.1, key.1) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) if !self.are_read(&[cert.0, key.0]) => None,
            (Some(path), None) => {
                return Err(self.value(cert.0, in_toml(path), format!("needs {} beside it", key.0)));
            }
            (None, Some(path)) => {
                return Err(self.value(key.0, in_toml(path), format!("needs {} beside it", cert.0)));
            }
        };
        let files = TlsFiles { ca: ca.1.clone(), client };
        files.check().map_err(|error| {
            let named = [ca.0, cert.0, key.0].into_iter().find(|name| name.ends_with(error.key)).unwrap_or(ca.0);
            self.value(named, in_toml(&error.path), error.problem.to_string())
        })?;
        Ok(files)
    }

    /// That there is an authority to trust.
    fn authorities(&self, key: &'static str, shown: &str, files: &TlsFiles, ca_key: &str) -> Result<(), SettingsError> {
        if files.ca.is_some() || system_has_authorities() {
            return Ok(());
        }
        let problem = format!(
            "TLS needs {ca_key}: this system, like an image from scratch, has no certificates of authorities of its own"
        );
        Err(self.value(key, shown, problem))
    }
}
