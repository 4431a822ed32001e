//! One side leaves in the middle: a replica that drains under load, a sender that hangs up. Behind nginx and Envoy:
//! `ingress.rs`.

use std::{net::SocketAddr, time::Instant};

use futures_util::future::join_all;

use super::{
    crm::{Crm, Load, Sent, count},
    rig::{Bounds, Report, Rig, demand, demand_good_end},
};
use crate::{
    Scenario, scenario,
    support::{Connection, PATH, batch, eventually, post, try_exchange},
};

/// What the log says once a signal came, and once it refuses.
const LEAVING: &str = "still serving";
const REFUSING: &str = "finishing what is in flight";

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(drained_under_load, quick),
        scenario!(sigterm_during_a_slow_body),
        scenario!(sender_hangs_up_in_mid_request),
    ]
}

/// One of two replicas leaves, again and again. As in a cluster, new connections go to the other one soon
/// after the signal, and not at once.
async fn drained_under_load() -> Report {
    let mut rig = Rig::start(2, "server.drain_delay = \"300ms\"\n").await;
    let crm = rig.load(Load { workers: 8, ..Load::default() });
    let mut ends = Vec::new();
    for round in 0..8 {
        let place = round % 2;
        rig.progress(&crm, 100).await;
        rig.gates[place].signal("TERM");
        rig.gates[place].wait_log(LEAVING).await;
        rig.progress(&crm, 20).await;
        crm.aim(vec![rig.gates[1 - place].address()]);
        ends.push(rig.gates[place].end().await);
        rig.replace(place).await;
        crm.aim(rig.addresses());
    }
    let mut report = rig.verdict(crm, Bounds::default()).await;
    demand_good_end(&mut report, &ends);
    report
}

/// The head of a request whose sender waits to be asked for the body.
fn expecting(length: usize) -> String {
    format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
}

/// Opens a request, and sends its body up to a place once hookgate reads it.
async fn half_sent(address: SocketAddr, body: &str, until: usize) -> Connection {
    let mut connection = Connection::open(address).await.expect("hookgate listens");
    connection.send(expecting(body.len()).as_bytes()).await.expect("hookgate reads");
    assert_eq!(connection.answer().await.expect("it is asked for its body").status, 100);
    connection.send(&body.as_bytes()[..until]).await.expect("hookgate reads");
    connection
}

/// Bodies that are on their way when the signal comes are waited for; one that never ends is not.
async fn sigterm_during_a_slow_body() -> Report {
    let mut rig = Rig::start(2, "server.drain_delay = \"0s\"\n").await;
    let crm = Crm::start(vec![rig.gates[1].address()], Load::default());
    let address = rig.gates[0].address();
    let ids: Vec<_> = (0..50).map(|sender| format!("slow-{sender}")).collect();
    let bodies: Vec<_> = ids.iter().map(|id| batch([id])).collect();
    let slow = join_all(bodies.iter().enumerate().map(|(place, body)| half_sent(address, body, place % body.len())));
    let slow = slow.await;
    let mut endless = half_sent(address, &bodies[0], 1).await;

    rig.gates[0].signal("TERM");
    rig.gates[0].wait_log(REFUSING).await;
    let finishing = slow.into_iter().zip(bodies.iter().enumerate()).map(async |(mut connection, (place, body))| {
        let began = Instant::now();
        let rest = &body.as_bytes()[place % body.len()..];
        let answered = async {
            connection.send(rest).await?;
            connection.answer().await
        };
        (answered.await.map_or(0, |answer| answer.status), began.elapsed())
    });
    let answers = join_all(finishing).await;
    let given_up = endless.answer().await.map_or(0, |answer| answer.status);
    let end = rig.gates[0].end().await;

    rig.progress(&crm, 100).await;
    let mut sent = crm.finish().await;
    for ((status, took), id) in answers.into_iter().zip(ids) {
        count(&mut sent, status, took, [id]);
    }
    let finished = sent.accepted.iter().filter(|id| id.starts_with("slow")).count();
    let mut report = rig.judge(sent, Bounds::default()).await;
    demand(&mut report, finished == 50, format!("{finished} of 50 slow bodies were taken"));
    demand(&mut report, given_up == 408, format!("the body that never ends was answered {given_up}"));
    demand_good_end(&mut report, &[end]);
    report
}

/// Where a sender leaves: in the head, behind it, in the body, and before the answer.
#[derive(Clone, Copy)]
enum Leaves {
    InTheHead,
    AfterTheHead,
    InTheBody,
    BeforeTheAnswer,
}

async fn hang_up(address: SocketAddr, id: &str, leaves: Leaves) {
    let body = batch([id]);
    let request = post(PATH, body.as_bytes());
    let head = request.len() - body.len();
    let until = match leaves {
        Leaves::InTheHead => head / 2,
        Leaves::AfterTheHead => head,
        Leaves::InTheBody => head + body.len() / 2,
        Leaves::BeforeTheAnswer => request.len(),
    };
    let mut connection = Connection::open(address).await.expect("hookgate listens");
    connection.send(&request[..until]).await.expect("hookgate reads");
}

/// Permits are few, so that a leaked one shows. Half of the senders come back.
async fn sender_hangs_up_in_mid_request() -> Report {
    let rig = Rig::start(1, "server.max_in_flight = 64\n").await;
    let crm = rig.load(Load::default());
    let address = rig.gates[0].address();
    let kinds = [Leaves::InTheHead, Leaves::AfterTheHead, Leaves::InTheBody, Leaves::BeforeTheAnswer];
    for round in 0..50 {
        let senders = (0..40).map(|sender| (format!("gone-{round}-{sender}"), kinds[sender % kinds.len()]));
        join_all(senders.map(async |(id, leaves)| hang_up(address, &id, leaves).await)).await;
    }
    rig.progress(&crm, 200).await;
    let mut again = Sent::default();
    for round in (0..50).step_by(2) {
        let ids: Vec<_> = (0..40).map(|sender| format!("gone-{round}-{sender}")).collect();
        let answer = eventually("who comes back is served", async || {
            let answer = try_exchange(address, &post(PATH, batch(&ids).as_bytes())).await.ok()?;
            (answer.status != 503).then_some(answer)
        });
        let answer = answer.await;
        count(&mut again, answer.status, answer.took, ids);
    }
    let mut sent = crm.finish().await;
    sent.accepted.extend(again.accepted);
    for (status, times) in again.statuses {
        *sent.statuses.entry(status).or_default() += times;
    }
    sent.longest = sent.longest.max(again.longest);
    rig.judge(sent, Bounds::default()).await
}
