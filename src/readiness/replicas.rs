//! Asks the other replicas how a store is. They answer `/readyz`, which a replica of 0.1.0 has too.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::{TcpStream, lookup_host};

/// Longest wait for all of them. A replica that does not answer says nothing.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest answer that is read.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Where the other replicas' admin addresses are found (`admin.replicas`): a name that resolves to all of them, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replicas {
    host: String,
    port: u16,
}

/// A text that names no replicas.
#[derive(Debug, thiserror::Error)]
#[error("is no name with a port; write a name that resolves to all replicas, such as \"hookgate-replicas:9090\"")]
pub struct ReplicasError;

/// What `/readyz` says.
#[derive(Debug, Deserialize)]
struct Readiness {
    redis: Store,
    nats: Store,
}

#[derive(Debug, Deserialize)]
struct Store {
    state: String,
}

impl Replicas {
    /// Reads `name:port`.
    ///
    /// # Errors
    /// If it is no such thing.
    pub fn parse(text: &str) -> Result<Self, ReplicasError> {
        let (host, port) = text.rsplit_once(':').ok_or(ReplicasError)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port > 0).ok_or(ReplicasError)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(ReplicasError);
        }
        Ok(Self { host: host.to_owned(), port })
    }

    async fn that_reach(&self, store: &str) -> Option<SocketAddr> {
        let found = async {
            let addresses = lookup_host((self.host.as_str(), self.port)).await.ok()?;
            let mut answers: FuturesUnordered<_> =
                addresses.map(|address| async move { (address, readiness(address).await) }).collect();
            while let Some((address, answer)) = answers.next().await {
                let Some(Readiness { redis, nats }) = answer else { continue };
                let state = if store == "redis" { redis.state } else { nats.state };
                // As `Contact::answers` has it.
                if matches!(state.as_str(), "up" | "no_writes") {
                    return Some(address);
                }
            }
            None
        };
        tokio::time::timeout(PATIENCE, found).await.ok().flatten()
    }
}

/// A replica that reaches a store (`redis`, `nats`), if one does. Nobody does where no replicas are known.
pub async fn that_reach(store: &str, replicas: Option<&Replicas>) -> Option<SocketAddr> {
    replicas?.that_reach(store).await
}

/// What one replica says. One that can't be asked says nothing.
async fn readiness(address: SocketAddr) -> Option<Readiness> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = http::Request::get("/readyz").header(http::header::HOST, address.to_string());
    let request = request.body(Empty::<Bytes>::new()).expect("an address is a header's value");
    let answer = async {
        let answer = sender.send_request(request).await.ok()?;
        let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await.ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    };
    // The connection has to be driven until the answer is here.
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        _ended = connection => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_port_are_replicas_and_nothing_else_is() {
        for good in ["hookgate-replicas:9090", "10.0.0.1:9090", "[::1]:9090"] {
            assert!(Replicas::parse(good).is_ok(), "{good}");
        }
        for bad in
            ["hookgate", ":9090", "hookgate:", "hookgate:0", "hookgate:70000", "http://hookgate:9090", "a b:1", ""]
        {
            assert!(Replicas::parse(bad).is_err(), "{bad}");
        }
    }
}
