//! How a Redis is reached: its address, or who knows it; who logs in; and the files of TLS.

use std::{fmt, sync::Arc};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, RedisError, TlsCertificates, io::tcp::TcpSettings,
};

use super::{cluster::Nodes, sentinel::Sentinels};
use crate::tls::{TlsFiles, system_authorities};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Node {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.host, self.port)
    }
}

impl Node {
    /// As servers write it, also without brackets around an address of IP version 6. Where they leave the host out, or do
    /// not know it, it is the one that was asked.
    pub(super) fn told(text: &str, asked: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.trim_matches(['[', ']']);
        let host = if matches!(host, "" | "?") { asked } else { host };
        Some(Self { host: host.to_owned(), port: port.parse().ok()? })
    }
}

/// Address and login of a Redis. `Debug` shows no password.
#[derive(Debug, Clone)]
pub struct Access {
    info: ConnectionInfo,
    files: Option<TlsFiles>,
    found: Found,
}

/// How the server is found that takes the writes.
#[derive(Debug, Clone)]
pub(super) enum Found {
    /// There is one.
    Here,
    /// Sentinels say which one.
    By(Arc<Sentinels>),
    /// It depends on the key.
    In(Arc<Nodes>),
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
        Self { info: without_delay(info), files: None, found: Found::Here }
    }

    /// With TLS; the address has to say so too.
    #[must_use]
    pub fn tls(info: ConnectionInfo, files: TlsFiles) -> Self {
        Self { info: without_delay(info), files: Some(files), found: Found::Here }
    }

    /// The same, but sentinels know the address: those of a service, to which others log in.
    #[must_use]
    pub fn by_sentinels(mut self, sentinels: &[Node], service: &str, login: ConnectionInfo) -> Self {
        let login = Self { info: without_delay(login), files: self.files.clone(), found: Found::Here };
        self.found = Found::By(Arc::new(Sentinels::new(login, sentinels.to_vec(), service.to_owned())));
        self
    }

    /// The same, but these are some nodes of a cluster.
    #[must_use]
    pub fn in_cluster(mut self, nodes: &[Node]) -> Self {
        self.found = Found::In(Arc::new(Nodes::new(nodes.to_vec())));
        self
    }

    pub(super) const fn found(&self) -> &Found {
        &self.found
    }

    /// The same way to one server.
    pub(super) fn at(&self, node: &Node) -> Self {
        let Node { host, port } = node.clone();
        let address = match &self.files {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        Self { info: self.info.clone().set_addr(address), files: self.files.clone(), found: Found::Here }
    }

    /// The server that is named.
    pub(super) fn node(&self) -> Option<Node> {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Some(Node { host: host.clone(), port: *port })
            }
            _ => None,
        }
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
