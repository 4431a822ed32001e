//! More than the limits allow: rejected items, large bodies, requests at once, entries in the outbox.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    crm::{Load, PATIENT, Sent, count},
    rig::{Bounds, Report, Rig, demand},
};
use crate::{
    Scenario, scenario,
    support::{OUTBOX, PATH, batch, eventually, post, try_exchange},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        scenario!(ten_thousand_rejected_items),
        scenario!(memory_of_1000_large_bodies, alone),
        scenario!(too_many_in_flight),
        scenario!(outbox_full),
    ]
}

const LETTERS: &str = "hookgate:dead_letters";

/// What Redis keeps of dead letters: number, bytes of all, and the newest one.
async fn letters(rig: &Rig) -> (usize, usize, Vec<u8>) {
    type Letter = (String, Vec<(String, Vec<u8>)>);
    let mut connection = rig.world.redis.connection().await;
    let all = redis::cmd("XRANGE").arg(LETTERS).arg("-").arg("+").query_async::<Vec<Letter>>(&mut connection).await;
    let raw = all
        .expect("it is a stream")
        .into_iter()
        .map(|(_, fields)| fields.into_iter().find(|(name, _)| name == "raw").expect("a letter has bytes").1);
    let mut raw: Vec<_> = raw.collect();
    (raw.len(), raw.iter().map(Vec::len).sum(), raw.pop().unwrap_or_default())
}

async fn redis_memory(rig: &Rig) -> usize {
    let mut connection = rig.world.redis.connection().await;
    let info = redis::cmd("INFO").arg("memory").query_async::<String>(&mut connection).await.expect("Redis answers");
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).expect("Redis says so");
    used.trim().parse().expect("it is a number")
}

/// Rejected items can't fill Redis, and the good items of the same body are published.
async fn ten_thousand_rejected_items() -> Report {
    let (entries, bytes, item) = (1000, 256 << 10, 2000);
    let limits = format!(
        "dead_letters.max_entries = {entries}\ndead_letters.max_bytes = {bytes}\ndead_letters.max_item_bytes = {item}\n"
    );
    let rig = Rig::start(1, &limits).await;
    let crm = rig.load(Load::default());
    rig.progress(&crm, 100).await;
    let before = redis_memory(&rig).await;
    let mut sent = Sent::default();
    let mut found = Vec::new();
    let large = format!("{{\"no\":\"{}\"}}", "x".repeat(500));
    let small = "7".to_owned();
    for (round, bad) in [&small, &large, &small, &large].into_iter().enumerate() {
        let ids: Vec<_> = (0..50).map(|number| format!("good-{round}-{number}")).collect();
        let good = batch(&ids);
        // One that is cut off, at the end, where it is kept longest.
        let longest = format!("\"{round}{}\"", "y".repeat(item * 2));
        let body = format!(
            "[{},{}{longest}]",
            good.trim_matches(['[', ']']),
            std::iter::repeat_n(bad.as_str(), 9_999).fold(String::new(), |text, item| text + item + ",")
        );
        let answer = try_exchange(rig.gates[0].address(), &post(PATH, body.as_bytes())).await.expect("it is answered");
        let counted = answer.status == 200 && answer.rejected() == 10_000;
        count(&mut sent, answer.status, answer.took, ids);
        // The last one of this body is there: so all were written.
        let settled = eventually("the letters are written", async || {
            let (number, size, newest) = letters(&rig).await;
            let last = !newest.is_empty() && longest.as_bytes().starts_with(&newest);
            last.then_some((number, size, newest.len()))
        });
        found.push((counted, settled.await));
        let mut connection = rig.world.redis.connection().await;
        if round == 1 {
            // So that the next rounds show the same from nothing.
            redis::cmd("DEL").arg(LETTERS).exec_async(&mut connection).await.expect("Redis answers");
        }
    }
    let grown = redis_memory(&rig).await.saturating_sub(before);
    rig.progress(&crm, 100).await;
    let load = crm.finish().await;
    sent.longest = sent.longest.max(load.longest);
    sent.accepted.extend(load.accepted);
    for (status, times) in load.statuses {
        *sent.statuses.entry(status).or_default() += times;
    }
    let mut report = rig.judge(sent, Bounds::default()).await;
    for (counted, (number, size, last)) in found {
        demand(&mut report, counted, "a body with 10,000 bad items was not answered 200 with their number");
        let kept = format!("{number} letters of {size} bytes, the last of {last}");
        demand(&mut report, number <= entries && size <= bytes && last == item, kept);
    }
    // The letters themselves, and what a stream takes for each of so few.
    demand(&mut report, grown < bytes + (4 << 20), format!("Redis grew by {} KiB", grown >> 10));
    report
}

/// What came of a large body; 0 if it got no answer.
async fn send_large(address: std::net::SocketAddr, body: Arc<[u8]>) -> (u16, Duration) {
    let began = Instant::now();
    let Ok(stream) = TcpStream::connect(address).await else { return (0, began.elapsed()) };
    let (mut from, mut to) = stream.into_split();
    let head =
        format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // The answer may come before all of the body is gone; then the rest is sent in vain.
    let write = async {
        let _in_vain = async {
            to.write_all(head.as_bytes()).await?;
            to.write_all(&body).await
        }
        .await;
        std::future::pending::<u16>().await
    };
    let read = async {
        let mut answer = Vec::new();
        while !answer.windows(4).any(|four| four == b"\r\n\r\n") {
            match from.read_buf(&mut answer).await {
                Ok(length) if length > 0 => {}
                _ => break,
            }
        }
        let status = std::str::from_utf8(&answer).ok().and_then(|text| text.split(' ').nth(1)?.parse().ok());
        status.unwrap_or(0)
    };
    let status = tokio::select! { status = write => status, status = read => status };
    (status, began.elapsed())
}

/// A thousand of the largest bodies at once, each from the same memory of the sender.
async fn memory_of_1000_large_bodies() -> Report {
    const LARGEST: usize = 16 << 20;
    const BUFFERED: usize = 128 << 20;
    let mut rig = Rig::start(0, "").await;
    // The defaults of everything that counts here.
    rig.gates.push(
        rig.world
            .gate("outbox.relay_after = \"10s\"\nlog.filter = \"info,hookgate::http=error,hookgate::entity=error\"\n")
            .await,
    );
    let address = rig.gates[0].address();
    let (head, tail) = ("[{\"id\":\"large\",\"name\":\"", "\"}]");
    let body = format!("{head}{}{tail}", "0".repeat(LARGEST - head.len() - tail.len()));
    let body: Arc<[u8]> = body.into_bytes().into();
    let answers = join_all((0..1000).map(|_| send_large(address, Arc::clone(&body)))).await;
    let peak = rig.gates[0].peak_resident_bytes();

    let mut sent = Sent::default();
    for (status, took) in answers {
        count(&mut sent, status, took, ["large".to_owned()]);
    }
    let afterwards = rig.gates[0].post(batch(["honest"])).await;
    count(&mut sent, afterwards.status, afterwards.took, ["honest".to_owned()]);
    let mut report = rig.judge(sent, Bounds { longest: Duration::from_secs(9), ..Bounds::default() }).await;
    demand(&mut report, afterwards.status == 200, "a small body afterwards was not taken");
    demand(&mut report, peak <= BUFFERED + (64 << 20), format!("took {} MiB", peak >> 20));
    report
}

/// With NATS frozen, requests take all permits; the next ones are refused quickly.
async fn too_many_in_flight() -> Report {
    let rig = Rig::start(1, "server.max_in_flight = 8\n").await;
    let crm = rig.load(Load { workers: 4, ..Load::default() });
    rig.progress(&crm, 100).await;
    rig.world.nats.freeze();
    let address = rig.gates[0].address();
    let requests = (0..200).map(async |number| {
        let id = format!("crowd-{number}");
        let answer = try_exchange(address, &post(PATH, batch([&id]).as_bytes())).await.expect("it is answered");
        (id, answer)
    });
    let answers = join_all(requests).await;
    rig.world.nats.thaw();
    rig.progress(&crm, 100).await;

    let mut sent = crm.finish().await;
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    for (id, answer) in answers {
        if answer.status == 503 && answer.error().1 == "too_many_requests" {
            refused += 1;
            slowest = slowest.max(answer.took);
        }
        count(&mut sent, answer.status, answer.took, [id]);
    }
    let mut report = rig.judge(sent, Bounds::default()).await;
    demand(&mut report, refused >= 192, format!("{refused} of 200 were told that there is no place"));
    demand(&mut report, slowest < Duration::from_secs(1), format!("it took {slowest:?} to say that there is no place"));
    report
}

/// While NATS hangs, the outbox fills up to its limit and not one entry more.
async fn outbox_full() -> Report {
    let most = 50;
    let rig = Rig::start(2, &format!("outbox.max_entries = {most}\n")).await;
    let crm = rig.load(PATIENT);
    rig.progress(&crm, 300).await;
    rig.world.nats.freeze();
    for gate in &rig.gates {
        gate.wait_store("nats", "unreachable").await;
    }
    let goal = crm.answered(503) + 100;
    let mut fullest = 0;
    eventually("batches are refused", async || {
        fullest = fullest.max(rig.world.redis.outbox(OUTBOX).await.len());
        (crm.answered(503) >= goal).then_some(())
    })
    .await;
    rig.world.nats.thaw();
    rig.progress(&crm, 300).await;
    let mut report = rig.verdict(crm, Bounds::default()).await;
    if fullest != most {
        report.violations.push(format!("{fullest} entries were in an outbox of {most}"));
    }
    report
}
