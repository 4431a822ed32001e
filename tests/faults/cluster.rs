//! A cluster of three NATS servers and a stream with three replicas: the leader dies, servers enter lame-duck mode, all are
//! replaced one by one. Two of three always run, so nothing may get lost or doubled.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::{self, stream::Info};
use serde_json::json;

use super::{
    consumers::{Application, Language},
    crm::{Crm, Load, Reuse},
    judge::Span,
    nats::STREAM,
    rig::{Bounds, Report, Rig, demand},
};
use crate::{
    Scenario, scenario,
    support::{NatsServer, Port, RedisServer, World, eventually, recent_servers, try_exchange},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(cluster_leader_killed),
        scenario!(cluster_leader_frozen),
        scenario!(cluster_lame_duck),
        scenario!(cluster_rolling_restart),
        scenario!(life_cluster_leaders_killed, consumers),
    ]
}

const HOUR: Duration = Duration::from_secs(3600);

/// Three servers; the first one is the world's.
struct Cluster {
    rig: Rig,
    others: Vec<NatsServer>,
    /// Where each one tells who is connected to it.
    monitors: Vec<Port>,
    _routes: Vec<Port>,
}

impl Cluster {
    /// Servers that know each other, and two replicas that know `known` of them.
    async fn start(known: usize) -> Self {
        Self::start_with(known, "").await
    }

    /// The same with more settings.
    async fn start_with(known: usize, more: &str) -> Self {
        let reserve = || std::iter::repeat_with(Port::reserve).take(3).collect::<Vec<_>>();
        let (routes, monitors) = (reserve(), reserve());
        let all: Vec<_> = routes.iter().map(|port| format!("nats://127.0.0.1:{}", port.number)).collect();
        let configuration = |place: usize| {
            format!(
                "http: \"127.0.0.1:{}\"\ncluster {{ name: faults, listen: \"127.0.0.1:{}\", routes: [ {} ] }}\nlame_duck_grace_period: \"1s\"\nlame_duck_duration: \"30s\"\n",
                monitors[place].number,
                routes[place].number,
                all.join(", ")
            )
        };
        let configurations: Vec<_> = (0..3).map(configuration).collect();
        let servers = tokio::join!(
            RedisServer::start(),
            NatsServer::configured(&configurations[0]),
            NatsServer::configured(&configurations[1]),
            NatsServer::configured(&configurations[2]),
        );
        let (redis, nats, second, third) = servers;
        let urls: Vec<_> = [&nats, &second, &third].into_iter().map(NatsServer::url).collect();
        let settings = format!("nats.url = \"{}\"\nnats.stream.replicas = 3\n{more}", urls[..known].join(","));
        let rig = Rig::reading(urls, World { redis, nats }, 2, &settings).await;
        Self { rig, others: vec![second, third], monitors, _routes: routes }
    }

    fn server(&mut self, place: usize) -> &mut NatsServer {
        match place {
            0 => &mut self.rig.world.nats,
            _ => &mut self.others[place - 1],
        }
    }

    /// What a server that answers says of a stream.
    async fn stream(&self, name: &str) -> Option<Info> {
        for server in [&self.rig.world.nats, &self.others[0], &self.others[1]] {
            let Some(client) = server.try_client().await else { continue };
            if let Ok(mut stream) = jetstream::new(client).get_stream(name).await
                && let Ok(info) = stream.info().await
            {
                return Some(info.clone());
            }
        }
        None
    }

    /// The server that leads the stream, once all of its copies are up to date.
    async fn leader(&self) -> usize {
        self.leader_of(STREAM).await
    }

    /// The same of another stream.
    async fn leader_of(&self, stream: &str) -> usize {
        eventually("the stream has three good copies", async || {
            let cluster = self.stream(stream).await?.cluster?;
            let good = cluster.replicas.len() == 2 && cluster.replicas.iter().all(|peer| peer.current && !peer.offline);
            let leader = cluster.leader.filter(|_| good)?;
            let names = [self.rig.world.nats.name(), self.others[0].name(), self.others[1].name()];
            names.into_iter().position(|name| name == leader)
        })
        .await
    }

    /// How many replicas of hookgate a server has.
    async fn clients(&self, place: usize) -> usize {
        let request = b"GET /connz HTTP/1.1\r\nHost: nats\r\nConnection: close\r\n\r\n";
        let address = ([127, 0, 0, 1], self.monitors[place].number).into();
        let answer = try_exchange(address, request).await.expect("the server tells who is there");
        answer.text().matches("\"name\": \"hookgate\"").count()
    }

    async fn verdict(self, crm: Crm) -> Report {
        self.leader().await;
        self.rig.verdict(crm, Bounds::default()).await
    }
}

/// The stream's leader goes away three times; the others elect a new one.
async fn without_leaders(leave: impl Fn(&mut NatsServer), come_back: impl AsyncFn(&mut NatsServer)) -> Report {
    let mut cluster = Cluster::start(3).await;
    let crm = cluster.rig.load(Load::default());
    for _ in 0..3 {
        cluster.rig.progress(&crm, 200).await;
        let leader = cluster.leader().await;
        leave(cluster.server(leader));
        // Without it.
        cluster.rig.progress(&crm, 200).await;
        come_back(cluster.server(leader)).await;
    }
    cluster.rig.progress(&crm, 200).await;
    cluster.verdict(crm).await
}

/// The old one comes back with what it had.
async fn cluster_leader_killed() -> Report {
    without_leaders(NatsServer::kill, NatsServer::start_again).await
}

/// The old one keeps all its connections open, and goes on where it was: what it takes then is not to count. On nats-server
/// 2.9.10 it does, in most runs: a copy of the stream then lacks events that were acknowledged.
async fn cluster_leader_frozen() -> Report {
    recent_servers();
    without_leaders(|server| server.freeze(), async |server: &mut NatsServer| server.thaw()).await
}

/// hookgate knows one server by its configuration, and is connected to that; it moves to one that it has only
/// heard of.
async fn cluster_lame_duck() -> Report {
    let mut cluster = Cluster::start(1).await;
    let crm = cluster.rig.load(Load::default());
    cluster.rig.progress(&crm, 300).await;
    let before = cluster.clients(0).await;
    cluster.rig.world.nats.lame_duck().await;
    cluster.rig.progress(&crm, 300).await;
    let after = cluster.clients(1).await + cluster.clients(2).await;
    cluster.rig.world.nats.start_again().await;
    cluster.rig.progress(&crm, 300).await;
    let mut report = cluster.verdict(crm).await;
    demand(&mut report, (before, after) == (2, 2), format!("{before} replicas were there and {after} moved, of 2"));
    report
}

/// Like an upgrade: each server enters lame-duck mode, restarts, and catches up before the next one.
async fn cluster_rolling_restart() -> Report {
    let mut cluster = Cluster::start(3).await;
    let crm = cluster.rig.load(Load::default());
    for place in 0..3 {
        cluster.rig.progress(&crm, 200).await;
        cluster.leader().await;
        cluster.server(place).lame_duck().await;
        cluster.rig.progress(&crm, 200).await;
        cluster.server(place).start_again().await;
    }
    cluster.leader().await;
    cluster.rig.progress(&crm, 200).await;
    cluster.verdict(crm).await
}

/// Acknowledgements flow while the leaders of the stream, of the consumer and of the stream of answers die. What the dead one had not
/// reported is published once more.
async fn life_cluster_leaders_killed() -> Report {
    const ACKS: &str = "hookgate_acks";
    let route = "[[routes]]\nflow = \"vmh\"\nentity = \"beteiligte\"\naction = \"create\"\nwhile_pending = \"publish\"\nrelease = \"ack\"\nconsumers = [\"one\"]\n";
    let mut cluster = Cluster::start_with(3, route).await;
    cluster.rig.is_released();
    let urls = [cluster.rig.world.nats.url()];
    let mut one = Application::new("one", &urls, &[Language::Rust, Language::Rust]);
    one.make(&cluster.rig.world.nats, &json!({})).await;
    one.start_all();
    let load = Load { workers: 4, pause: Duration::from_millis(50), ..Load::default() };
    let reuse = Reuse { ids: 60, of_a_batch: 4, seed: 3 };
    let crm = Crm::reusing(cluster.rig.addresses(), load, Some(reuse));
    for stream in [STREAM, ACKS, STREAM, ACKS] {
        cluster.rig.progress(&crm, 150).await;
        let leader = cluster.leader_of(stream).await;
        cluster.server(leader).kill();
        cluster.rig.progress(&crm, 150).await;
        cluster.server(leader).start_again().await;
    }
    cluster.leader_of(ACKS).await;
    cluster.rig.progress(&crm, 150).await;
    cluster.leader().await;
    cluster.rig.faults_end();
    cluster.rig.judge_changes(crm, &[Span { from: SystemTime::UNIX_EPOCH, to: SystemTime::now() + HOUR }]).await
}
