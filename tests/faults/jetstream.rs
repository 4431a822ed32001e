//! A cluster in which only some servers have `JetStream`, and replicas that are connected to one that has none.

use super::{
    crm::Load,
    rig::{Bounds, Report, Rig, demand},
};
use crate::{
    Scenario, scenario,
    support::{NatsServer, Port, RedisServer, World, eventually, run},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(jetstream_on_other_servers)]
}

/// Create, publish and acknowledgement go through a server without `JetStream`; one of the servers that have it dies.
async fn jetstream_on_other_servers() -> Report {
    let routes: Vec<_> = std::iter::repeat_with(Port::reserve).take(4).collect();
    let all: Vec<_> = routes.iter().map(|port| format!("nats://127.0.0.1:{}", port.number)).collect();
    let configuration = |place: usize| {
        let (port, all) = (routes[place].number, all.join(", "));
        format!("cluster {{ name: faults, listen: \"127.0.0.1:{port}\", routes: [ {all} ], no_advertise: true }}\n")
    };
    let configurations: Vec<_> = (0..4).map(configuration).collect();
    let (redis, without, first, second, third) = tokio::join!(
        RedisServer::start(),
        NatsServer::configured_without_jetstream(&configurations[0]),
        NatsServer::configured(&configurations[1]),
        NatsServer::configured(&configurations[2]),
        NatsServer::configured(&configurations[3]),
    );
    let mut others = [first, second, third];
    eventually("the servers with JetStream have a leader", async || {
        let context = async_nats::jetstream::new(without.try_client().await?);
        // Raw: servers before 2.10 leave out what this client wants to read.
        let answer: serde_json::Value = context.request("INFO", &()).await.ok()?;
        answer["error"].is_null().then_some(())
    })
    .await;
    let urls = others.iter().map(NatsServer::url).collect();
    let world = World { redis, nats: without };
    let rig = Rig::reading(urls, world, 2, "nats.stream.replicas = 3\n").await;
    let crm = rig.load(Load::default());
    rig.progress(&crm, 300).await;
    let doctor = run(&rig.world.settings(), &["doctor"]);
    for server in &mut others {
        server.kill();
        rig.progress(&crm, 200).await;
        server.start_again().await;
        copies(&rig).await;
    }
    rig.progress(&crm, 300).await;
    let mut report = rig.verdict(crm, Bounds::default()).await;
    demand(&mut report, doctor.code == Some(0), format!("doctor ended with {:?}: {}", doctor.code, doctor.printed));
    report
}

/// Waits until the stream has three good copies.
async fn copies(rig: &Rig) {
    eventually("the stream has three good copies", async || {
        let context = async_nats::jetstream::new(rig.world.nats.try_client().await?);
        let mut stream = context.get_stream("HOOKGATE").await.ok()?;
        let cluster = stream.info().await.ok()?.cluster.clone()?;
        let good = cluster.replicas.len() == 2 && cluster.replicas.iter().all(|peer| peer.current && !peer.offline);
        (cluster.leader.is_some() && good).then_some(())
    })
    .await;
}
