//! NATS dies, hangs, comes back, or refuses. What it did not acknowledge stays claimed and is published later.
//!
//! Every attempt for a claim repeats its token, so none of this may make a duplicate.

use std::time::Duration;

use async_nats::jetstream::stream::Config;

use super::{
    crm::{Crm, Load},
    redis::refusals,
    rig::{Bounds, Report, Rig},
    wire::{Mode, Wire},
};
use crate::{
    Scenario, scenario,
    support::{NatsServer, OUTBOX, RedisServer, World, eventually},
};

/// The stream that hookgate makes.
pub(super) const STREAM: &str = "HOOKGATE";

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(nats_killed_and_restarted, quick),
        scenario!(nats_frozen, quick),
        scenario!(nats_frozen_briefly),
        scenario!(nats_cut_off),
        scenario!(nats_stalled_wire),
        scenario!(nats_delayed_wire),
        scenario!(nats_answers_swallowed),
        scenario!(nats_requests_swallowed),
        scenario!(nats_lame_duck),
        scenario!(stream_deleted_and_recreated),
        scenario!(stream_full),
        scenario!(publish_permission_withdrawn),
        scenario!(inbox_permission_withdrawn),
    ]
}

async fn nats_killed_and_restarted() -> Report {
    let mut rig = Rig::start(2, "").await;
    let crm = rig.load(Load::default());
    for _ in 0..3 {
        rig.progress(&crm, 300).await;
        rig.world.nats.kill();
        refusals(&crm, 8).await;
        rig.world.nats.start_again().await;
    }
    rig.progress(&crm, 300).await;
    rig.verdict(crm, Bounds::default()).await
}

/// Longer than the client waits for the answers to its pings; what it had sent is stored when NATS wakes up.
async fn nats_frozen() -> Report {
    let rig = Rig::start(2, "").await;
    let crm = rig.load(Load::default());
    for _ in 0..2 {
        rig.progress(&crm, 300).await;
        rig.world.nats.freeze();
        wait_stores(&rig, "unreachable").await;
        refusals(&crm, 8).await;
        rig.world.nats.thaw();
    }
    rig.progress(&crm, 300).await;
    rig.verdict(crm, Bounds::default()).await
}

/// Shorter than that: the connections survive it.
async fn nats_frozen_briefly() -> Report {
    let rig = Rig::start(2, "").await;
    let crm = rig.load(Load::default());
    for _ in 0..3 {
        rig.progress(&crm, 300).await;
        rig.world.nats.freeze();
        refusals(&crm, 1).await;
        rig.world.nats.thaw();
    }
    rig.progress(&crm, 300).await;
    rig.verdict(crm, Bounds::default()).await
}

async fn nats_cut_off() -> Report {
    on_a_wire(Mode::Cut).await
}

async fn nats_stalled_wire() -> Report {
    on_a_wire(Mode::Stall).await
}

/// Events are stored, and their acknowledgements get lost.
async fn nats_answers_swallowed() -> Report {
    on_a_wire(Mode::SwallowAnswers).await
}

async fn nats_requests_swallowed() -> Report {
    on_a_wire(Mode::SwallowRequests).await
}

/// The wire misbehaves until the connection is noticed to be gone, once for a moment, and once until
/// senders are refused.
async fn on_a_wire(mode: Mode) -> Report {
    let (rig, wire) = wired().await;
    let crm = rig.load(Load::default());
    for refused in [0, 8] {
        rig.progress(&crm, 300).await;
        wire.set(mode);
        wait_stores(&rig, "unreachable").await;
        refusals(&crm, refused).await;
        wire.set(Mode::Pass);
        wait_stores(&rig, "up").await;
    }
    rig.progress(&crm, 300).await;
    rig.verdict(crm, Bounds::default()).await
}

/// A slow wire costs latency and nothing else.
async fn nats_delayed_wire() -> Report {
    let (rig, wire) = wired().await;
    let crm = rig.load(Load::default());
    rig.progress(&crm, 300).await;
    wire.set(Mode::Delay(Duration::from_millis(100)));
    rig.progress(&crm, 500).await;
    wire.set(Mode::Pass);
    rig.progress(&crm, 300).await;
    let refused = crm.answered(503);
    let mut report = rig.verdict(crm, Bounds::default()).await;
    if refused > 0 {
        report.violations.push(format!("{refused} batches were refused; the wire was only slow"));
    }
    report
}

/// Two replicas with a wire to NATS; the oracle has none.
async fn wired() -> (Rig, Wire) {
    let world = World::start().await;
    let wire = Wire::to(world.nats.port()).await;
    let rig = Rig::with(world, 2, &format!("nats.url = \"nats://127.0.0.1:{}\"\n", wire.port())).await;
    (rig, wire)
}

/// Waits until every replica sees NATS like that.
async fn wait_stores(rig: &Rig, state: &str) {
    for gate in &rig.gates {
        gate.wait_store("nats", state).await;
    }
}

/// A server that announces its end, closes its door to new connections, and shows the present ones out.
async fn nats_lame_duck() -> Report {
    let nats = NatsServer::configured("lame_duck_grace_period: \"1s\"\nlame_duck_duration: \"30s\"\n");
    let (redis, nats) = tokio::join!(RedisServer::start(), nats);
    let mut rig = Rig::with(World { redis, nats }, 2, "").await;
    let crm = rig.load(Load::default());
    for _ in 0..2 {
        rig.progress(&crm, 300).await;
        rig.world.nats.lame_duck().await;
        for gate in &rig.gates {
            gate.wait_log("about to stop").await;
        }
        rig.world.nats.start_again().await;
    }
    rig.progress(&crm, 300).await;
    rig.verdict(crm, Bounds::default()).await
}

/// With everything in it consumed, and nothing on its way: what is sent later goes into the next one.
async fn stream_deleted_and_recreated() -> Report {
    let rig = Rig::start(2, "").await;
    let crm = rig.load(Load::default());
    for _ in 0..2 {
        rig.progress(&crm, 300).await;
        crm.pause(true);
        at_rest(&rig, &crm).await;
        rig.world.nats.jetstream().await.delete_stream(STREAM).await.expect("the stream is there");
        crm.pause(false);
        rig.progress(&crm, 300).await;
    }
    rig.verdict(crm, Bounds::default()).await
}

/// Waits until everything is accepted, settled and read, and stays so.
async fn at_rest(rig: &Rig, crm: &Crm) {
    let mut before = 0;
    let mut looks = 0;
    eventually("nothing is on its way", async || {
        let accepted = crm.accepted();
        let settled = rig.world.redis.outbox(OUTBOX).await.is_empty() && rig.oracle.ids().len() == accepted;
        looks = if settled && accepted == before { looks + 1 } else { 0 };
        before = accepted;
        // A batch that was made before the pause arrives in much less time than these take.
        (looks == 50).then_some(())
    })
    .await;
}

/// The disk, or rather what the stream may use of it, is full.
async fn stream_full() -> Report {
    let rig = Rig::start(2, "").await;
    let crm = rig.load(Load::default());
    let context = rig.world.nats.jetstream().await;
    for _ in 0..2 {
        rig.progress(&crm, 300).await;
        let mut stream = context.get_stream(STREAM).await.expect("the stream is there");
        let bytes = stream.info().await.expect("it answers").state.bytes;
        let config = stream.cached_info().config.clone();
        let full = Config { max_bytes: i64::try_from(bytes).expect("it is small"), ..config.clone() };
        context.update_stream(full).await.expect("the operator may do that");
        refusals(&crm, 8).await;
        context.update_stream(Config { max_bytes: -1, ..config }).await.expect("the operator may do that");
    }
    rig.progress(&crm, 300).await;
    rig.verdict(crm, Bounds::default()).await
}

/// The server says no to events and goes on with everything else.
async fn publish_permission_withdrawn() -> Report {
    permission_withdrawn("publish", "vmh.>").await
}

/// The server revokes the subscription for acknowledgements, says so once, and does not restore it with the permission.
/// Nobody gets the acknowledgement of what it stores in between.
async fn inbox_permission_withdrawn() -> Report {
    permission_withdrawn("subscribe", "_INBOX.hookgate.>").await
}

/// hookgate is denied something for a while, twice; the second time nobody sends when it is allowed again.
async fn permission_withdrawn(what: &str, subject: &str) -> Report {
    let users = |denied: &str| {
        format!(
            "no_auth_user: operator\nauthorization {{ users: [ {{ user: operator, password: operator }}, {{ user: hookgate, password: hookgate, permissions: {{ {what}: {{ allow: \">\", deny: \"{denied}\" }} }} }} ] }}\n"
        )
    };
    let (granted, withdrawn) = (users("nothing"), users(subject));
    let (redis, nats) = tokio::join!(RedisServer::start(), NatsServer::configured(&granted));
    let url = format!("nats.url = \"nats://hookgate:hookgate@127.0.0.1:{}\"\n", nats.port());
    let rig = Rig::with(World { redis, nats }, 2, &url).await;
    let crm = rig.load(Load::default());
    for senders in [true, false] {
        rig.progress(&crm, 300).await;
        rig.world.nats.configure(&withdrawn);
        wait_stores(&rig, "refused").await;
        refusals(&crm, 8).await;
        if senders {
            rig.world.nats.configure(&granted);
        } else {
            // The relay alone can find out that it is over.
            crm.aim(Vec::new());
            rig.world.nats.configure(&granted);
            rig.world.redis.settled(OUTBOX).await;
            crm.aim(rig.addresses());
        }
        wait_stores(&rig, "up").await;
    }
    rig.progress(&crm, 300).await;
    rig.verdict(crm, Bounds::default()).await
}
