//! How a Redis is reached: its address, who logs in, and the files of TLS.

use redis::{Client, ClientTlsConfig, ConnectionInfo, RedisError, TlsCertificates, io::tcp::TcpSettings};

use crate::tls::{TlsFiles, system_authorities};

/// Address and login of a Redis. `Debug` shows no password.
#[derive(Debug, Clone)]
pub struct Access {
    info: ConnectionInfo,
    files: Option<TlsFiles>,
}

/// Why no connection can be tried.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file of TLS can't be read.
    #[error(transparent)]
    File(#[from] crate::tls::TlsFileError),
    /// What the client library says.
    #[error(transparent)]
    Client(#[from] RedisError),
}

impl Access {
    /// Without TLS.
    #[must_use]
    pub fn plain(info: ConnectionInfo) -> Self {
        Self { info: without_delay(info), files: None }
    }

    /// With TLS; the address has to say so too.
    #[must_use]
    pub fn tls(info: ConnectionInfo, files: TlsFiles) -> Self {
        Self { info: without_delay(info), files: Some(files) }
    }

    /// The address and who logs in.
    #[must_use]
    pub const fn info(&self) -> &ConnectionInfo {
        &self.info
    }

    /// Whether it speaks TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.files.is_some()
    }

    /// A client for the next connection, with the files as they are now.
    ///
    /// # Errors
    /// If one of them can't be used.
    pub fn client(&self) -> Result<Client, AccessError> {
        let Some(files) = &self.files else { return Ok(Client::open(self.info.clone())?) };
        // With words of our own for what is wrong; the library takes a file without any certificate.
        files.check()?;
        let read = |key: &'static str, path: &std::path::PathBuf| {
            std::fs::read(path).map_err(|error| crate::tls::TlsFileError {
                key,
                path: path.clone(),
                problem: crate::tls::TlsFileProblem::Unreadable(error),
            })
        };
        // Always set: without it the library uses authorities of its own.
        let root_cert = Some(match &files.ca {
            Some(path) => read("ca_file", path)?,
            None => system_authorities(),
        });
        let client_tls = match &files.client {
            Some((cert, key)) => Some(ClientTlsConfig {
                client_cert: read("client_cert_file", cert)?,
                client_key: read("client_key_file", key)?,
            }),
            None => None,
        };
        Ok(Client::build_with_tls(self.info.clone(), TlsCertificates { client_tls, root_cert })?)
    }
}

/// Turns Nagle's algorithm off, which the client library leaves on. Across a network it holds a claim back until the answer
/// to the one before is here.
fn without_delay(info: ConnectionInfo) -> ConnectionInfo {
    info.set_tcp_settings(TcpSettings::default().set_nodelay(true))
}
