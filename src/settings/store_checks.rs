//! How NATS is reached, and the files of TLS to both stores.

use std::path::{Path, PathBuf};

use super::{
    NatsServers, SettingsError,
    checks::{Check, in_toml},
    nats_servers::NatsUrl,
    sections,
};
use crate::{
    nats_login::{Login, LoginError},
    redaction::without_credentials,
    secrets,
    tls::{TlsFiles, system_has_authorities},
};

/// A key and the file it names.
pub(super) type FileKey<'a> = (&'static str, &'a Option<PathBuf>);

impl Check {
    fn bad_secret(&self, key: &'static str, path: &Path, problem: std::io::Error) -> SettingsError {
        SettingsError::Secret { source_name: self.origin(key), key, path: path.to_owned(), problem }
    }

    pub(super) fn secret(&self, key: &'static str, path: &Path) -> Result<String, SettingsError> {
        secrets::text(path).map_err(|problem| self.bad_secret(key, path, problem))
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
    pub(super) fn tls_files(
        &self,
        ca: FileKey<'_>,
        cert: FileKey<'_>,
        key: FileKey<'_>,
    ) -> Result<TlsFiles, SettingsError> {
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
    pub(super) fn authorities(
        &self,
        key: &'static str,
        shown: &str,
        files: &TlsFiles,
        ca_key: &str,
    ) -> Result<(), SettingsError> {
        if files.ca.is_some() || system_has_authorities() {
            return Ok(());
        }
        let problem = format!(
            "TLS needs {ca_key}: this system, like an image from scratch, has no certificates of authorities of its own"
        );
        Err(self.value(key, shown, problem))
    }
}
