//! Memory and CPU that a body costs.

use std::time::Duration;

use tokio::task::JoinSet;

use super::bodies::{Crafted, crafted, deletions, documented, ordinary};
use crate::{
    Measured, line, measured,
    support::{Gate, PATH, World, post, try_exchange},
};

/// Of one body. Ids are claimed and published in steps, whatever the size of the body.
const SIZE: usize = 1 << 20;
/// And of one for memory: what is fixed weighs less.
const LARGE: usize = 8 << 20;
/// Beyond four times the body.
const BESIDE: usize = 1 << 20;
/// How much more of the CPU a byte may cost than one of an ordinary body.
const MOST: f64 = 10.0;

/// Without the two lines that each id has: they would be most of what is measured, and are the same for all.
const SETTINGS: &str =
    "log.filter = \"warn,hookgate::app=info\"\nserver.request_deadline = \"8s\"\ndead_letters.max_entries = 10000\n";

/// A hookgate that has served a little, so that what it keeps for good is there.
async fn gate(world: &World, settings: &str) -> Gate {
    let gate = world.gate(&format!("{SETTINGS}{settings}")).await;
    for _ in 0..3 {
        gate.post(ordinary(30_000)).await;
    }
    gate
}

/// Peak memory, and CPU, of each crafted body of its own process.
pub(crate) async fn check() -> u32 {
    let world = World::start().await;
    let mut failed = 0;
    for crafted in crafted(SIZE) {
        failed += measured(async || cpu_of(&world, &crafted).await).await;
    }
    // About the smallest chunks that are let in; and as many of a byte as are let in whatever they cost.
    for (size, chunk, what) in [(SIZE, 10, "chunks of 10 bytes"), (4_500, 1, "4,500 chunks of a byte")] {
        let body = ordinary(size);
        let request = in_chunks(&body, chunk);
        let check = async || {
            let status = gate(&world, "").await.exchange(&request).await.status;
            let base = cpu_per_byte(&world, &body).await;
            let cost = cpu_per_byte_of(&world, &request, body.len()).await;
            let ratio = cost / base;
            let text = format!("CPU {ratio:.1}x of the same body in one piece ({cost:.1} ns a byte, {status}): {what}");
            Measured { good: ratio <= MOST && status == 200, text }
        };
        failed += measured(check).await;
    }
    for crafted in crafted(LARGE) {
        failed += measured(async || memory_of(&world, &crafted).await).await;
    }
    failed
}

/// CPU of a crafted body, beside that of an ordinary one.
async fn cpu_of(world: &World, Crafted { what, body }: &Crafted) -> Measured {
    // Each of their ids is an event, whoever sends it, and has to be claimed and published. So they are compared with the
    // documented records, of which a byte brings more ids than one of a record of 600 bytes, and none can be left out.
    let many = what.starts_with("ids of three bytes") || what.starts_with("the same, and");
    let (against, ordinary) =
        if many { ("documented records", documented(SIZE)) } else { ("whole records", ordinary(SIZE)) };
    let base = cpu_per_byte(world, &ordinary).await;
    let cost = cpu_per_byte(world, body).await;
    let ratio = cost / base;
    let beside = if many {
        let deleting = cpu_per_byte(world, &deletions(SIZE)).await;
        format!("; {:.1}x of deletions", cost / deleting)
    } else {
        String::new()
    };
    let text = format!("CPU {ratio:.1}x of {against} ({cost:.1} ns a byte, beside {base:.1}{beside}): {what}");
    Measured { good: ratio <= MOST, text }
}

/// Peak memory of a crafted body.
async fn memory_of(world: &World, Crafted { what, body }: &Crafted) -> Measured {
    let gate = gate(world, "").await;
    let before = gate.resident_bytes();
    let answer = gate.post(body).await;
    let grown = gate.peak_resident_bytes().saturating_sub(before);
    let ratio = megabytes(grown) / megabytes(body.len());
    let text = format!("memory {ratio:.2}x of the body ({}): {what}", answer.status);
    Measured { good: grown <= 4 * body.len() + BESIDE, text }
}

/// Many of the worst at once stay within `server.max_buffered_bytes` and 64 MiB, and each sender hears its answer.
pub(crate) async fn check_together() -> u32 {
    let world = World::start().await;
    let mut failed = 0;
    for wanted in ["the same, and one byte that is no text", "one-key objects", "the same id again and again"] {
        let gate = gate(&world, "server.max_buffered_bytes = 67108864\n").await;
        let before = gate.resident_bytes();
        let found = crafted(LARGE).into_iter().find(|crafted| crafted.what == wanted);
        let request = post(PATH, &found.expect("there is one").body);
        let mut senders = JoinSet::new();
        for _ in 0..32 {
            let (address, request) = (gate.address(), request.clone());
            senders.spawn(async move { try_exchange(address, &request).await.map(|answer| answer.status) });
        }
        let codes = senders.join_all().await;
        let count =
            |code: u16| codes.iter().filter(|status| status.as_ref().is_ok_and(|status| *status == code)).count();
        let grown = gate.peak_resident_bytes().saturating_sub(before);
        let (good, busy) = (count(200), count(503));
        let text = format!(
            "32 bodies of 8 MiB at once: {:.0} MiB beside a limit of 64 + 64 ({good} answered 200, {busy} 503, {} cut): {wanted}",
            megabytes(grown),
            32 - good - busy
        );
        failed += line(grown <= 128 << 20 && good + busy == 32, &text);
    }
    failed
}

/// Of a process that does nothing else and whose ids are all new, in nanoseconds.
async fn cpu_per_byte(world: &World, body: &[u8]) -> f64 {
    cpu_per_byte_of(world, &post(PATH, body), body.len()).await
}

/// A request with that body.
fn in_chunks(body: &[u8], size: usize) -> Vec<u8> {
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut request = head.into_bytes();
    for chunk in body.chunks(size) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    request
}

async fn cpu_per_byte_of(world: &World, request: &[u8], length: usize) -> f64 {
    let gate = gate(world, "").await;
    let mut sent = 0;
    let before = gate.cpu();
    while sent < 4 || (sent < 60 && gate.cpu().saturating_sub(before) < Duration::from_millis(300)) {
        world.forget().await;
        gate.exchange(request).await;
        sent += 1;
    }
    let cpu = gate.cpu().saturating_sub(before);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let bytes = (length * sent) as f64;
    cpu.as_secs_f64() * 1e9 / bytes
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
