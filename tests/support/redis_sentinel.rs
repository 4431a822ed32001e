//! Two Redis replicas and three sentinels around a primary.

use std::{path::Path, process::Stdio, time::Duration};

use redis::{Client, RedisError};
use tempfile::TempDir;

use super::{
    certificates::Identity,
    eventually,
    process::{Port, Process, binary},
    redis::RedisServer,
};

/// What the sentinels call the primary.
const SERVICE: &str = "main";

/// The replicas of a primary, and its sentinels.
pub(crate) struct Sentinels {
    pub(crate) replicas: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    _process: Process,
    port: Port,
    _folder: TempDir,
}

impl Sentinel {
    fn start(primary: u16, more: &str) -> Self {
        Self::start_at("port", primary, more)
    }

    /// `kind` is what the file calls the port.
    fn start_at(kind: &str, primary: u16, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let port = Port::reserve();
        let text = format!(
            "{kind} {}\nbind 127.0.0.1\ndir {}\nsentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n\
            sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 6000\n{more}",
            port.number,
            folder.path().display()
        );
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, text).expect("the folder is ours");
        let usual = binary("HOOKGATE_REDIS_SERVER", "redis-server");
        let program = if kind == "port" { usual } else { binary("HOOKGATE_REDIS_TLS_SERVER", usual) };
        let process = Process::start(&program, |command| {
            command.arg(&file).arg("--sentinel");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        });
        Self { _process: process, port, _folder: folder }
    }

    async fn say<T: redis::FromRedisValue>(&self, words: &[&str], login: &str) -> Result<T, RedisError> {
        let client = Client::open(format!("redis://{login}127.0.0.1:{}", self.port.number))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg(words);
        command.query_async(&mut connection).await
    }
}

impl Sentinels {
    /// All know each other, and both replicas follow.
    pub(crate) async fn around(primary: &RedisServer) -> Self {
        Self::guarded(primary, "", "").await
    }

    /// The same with more lines in the sentinels' files, and a login to them: `user:password@`.
    pub(crate) async fn guarded(primary: &RedisServer, more: &str, login: &str) -> Self {
        let port = primary.port();
        let (one, other) = tokio::join!(RedisServer::replica_of(port), RedisServer::replica_of(port));
        let replicas = vec![one, other];
        let started = Self { replicas, sentinels: (0..3).map(|_| Sentinel::start(port, more)).collect() };
        eventually("the sentinels know everybody", async || {
            for sentinel in &started.sentinels {
                let replicas: Vec<Vec<String>> = sentinel.say(&["REPLICAS", SERVICE], login).await.ok()?;
                let synced = |replica: &Vec<String>| {
                    let at = replica.iter().position(|word| word == "master-link-status");
                    at.and_then(|at| replica.get(at + 1)).is_some_and(|status| status == "ok")
                };
                let others: Vec<Vec<String>> = sentinel.say(&["SENTINELS", SERVICE], login).await.ok()?;
                if others.len() < 2 || replicas.iter().filter(|replica| synced(replica)).count() < 2 {
                    return None;
                }
            }
            Some(())
        })
        .await;
        started
    }

    /// One alone that speaks nothing but TLS, also to its primary, who has no replica.
    pub(crate) fn over_tls(primary: u16, ca: &Path, shows: &Identity) -> Self {
        let (ca, cert, key) = (ca.display(), shows.cert.display(), shows.key.display());
        let more = format!(
            "port 0\ntls-ca-cert-file {ca}\ntls-cert-file {cert}\ntls-key-file {key}\ntls-auth-clients no\ntls-replication yes\n"
        );
        Self { replicas: Vec::new(), sentinels: vec![Sentinel::start_at("tls-port", primary, &more)] }
    }

    /// Where they are, and the service.
    pub(crate) fn url(&self) -> String {
        let sentinels: Vec<_> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port.number)).collect();
        format!("redis+sentinel://{}/{SERVICE}", sentinels.join(","))
    }

    /// Where they listen.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.sentinels.iter().map(|sentinel| sentinel.port.number).collect()
    }

    /// Where the primary is, as a majority of them says.
    pub(crate) async fn primary(&self) -> Option<u16> {
        let mut said = Vec::new();
        for sentinel in &self.sentinels {
            let answer = sentinel.say::<(String, u16)>(&["GET-MASTER-ADDR-BY-NAME", SERVICE], "");
            if let Ok(Ok((_, port))) = tokio::time::timeout(Duration::from_secs(1), answer).await {
                said.push(port);
            }
        }
        said.iter().copied().find(|port| said.iter().filter(|other| *other == port).count() > self.sentinels.len() / 2)
    }

    /// Waits until another server than this one is the primary.
    pub(crate) async fn failed_over_from(&self, port: u16) -> u16 {
        eventually("another server is the primary", async || self.primary().await.filter(|now| *now != port)).await
    }

    /// Asks for an orderly failover, until it begins.
    pub(crate) async fn fail_over(&self) {
        eventually("the sentinels fail over", async || {
            self.sentinels[0].say::<()>(&["FAILOVER", SERVICE], "").await.ok()
        })
        .await;
    }

    /// Makes the replica at a port the primary of the test's own view, and the other one a replica.
    pub(crate) fn swap(&mut self, primary: &mut RedisServer, port: u16) {
        let promoted = self.replicas.iter_mut().find(|replica| replica.port() == port);
        std::mem::swap(promoted.expect("it is one of them"), primary);
    }
}
