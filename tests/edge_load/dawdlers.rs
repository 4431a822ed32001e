//! Honest requests beside slow connections: each sends half a head or half a body, and a byte now and then.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::{
    Measured, measured,
    support::{Connection, Gate, PATH, World, batch, eventually, post_and_stay},
};

/// Connections that dawdle; one of them and its other end are two files of two processes.
const DAWDLERS: usize = 2000;
/// Honest requests of a round, one after the other on each of some connections.
const REQUESTS: usize = 300;
const SENDERS: usize = 4;
/// Rounds without and with, taken in turn; the median of each counts.
const ROUNDS: usize = 5;
/// Between two bytes of each.
const DRIP: Duration = Duration::from_millis(500);

/// They are let in for as long as the measurement takes, which is the worst that they can do.
const SETTINGS: &str = r#"
server = { first_request_timeout = "120s", body_read_timeout = "120s", request_deadline = "120s" }
outbox.relay_after = "240s"
log.filter = "error,hookgate::app=info"
"#;

pub(crate) async fn check() -> u32 {
    let world = World::start().await;
    let gate = world.gate(SETTINGS).await;
    let _warm = percentile(&gate, "warm").await;
    let mut number = 0;
    measured(async || {
        number += 1;
        compare(&gate, number).await
    })
    .await
}

/// The `number`-th comparison, of all rounds.
async fn compare(gate: &Gate, number: usize) -> Measured {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        without.push(percentile(gate, &format!("without-{number}-{round}")).await);
        let dawdlers = dawdle(gate).await;
        with.push(percentile(gate, &format!("with-{number}-{round}")).await);
        drop(dawdlers);
        open(gate, |count| count < 100).await;
    }
    without.sort();
    with.sort();
    let (alone, beside) = (without[ROUNDS / 2], with[ROUNDS / 2]);
    let ratio = beside.as_secs_f64() / alone.as_secs_f64();
    let text = format!("p99 beside {DAWDLERS} dawdling connections is {ratio:.2}x ({beside:?}, alone {alone:?})");
    Measured { good: ratio <= 2.0, text }
}

/// Connections that send half a head, or a head and half of a body, byte by byte, until they are dropped.
async fn dawdle(gate: &Gate) -> JoinSet<()> {
    let mut dawdlers = JoinSet::new();
    let address = gate.address();
    for number in 0..DAWDLERS {
        let begun = match number % 2 {
            0 => "POST / HTTP/1.1\r\nX: ".to_owned(),
            _ => format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"),
        };
        let mut connection = Connection::open(address).await.expect("there is room for it");
        connection.send(begun.as_bytes()).await.expect("hookgate reads");
        dawdlers.spawn(async move {
            let mut pace = tokio::time::interval(DRIP);
            loop {
                pace.tick().await;
                if connection.send(b"x").await.is_err() {
                    return;
                }
            }
        });
    }
    open(gate, |count| count >= DAWDLERS).await;
    dawdlers
}

/// Waits until hookgate has so many connections.
async fn open(gate: &Gate, enough: impl Fn(usize) -> bool) {
    eventually("the connections are there, or gone", async || {
        let metrics = gate.probe("/metrics").await;
        let count = metrics.text().lines().find_map(|line| line.strip_prefix("hookgate_connections "));
        count.and_then(|count| count.parse().ok()).filter(|count| enough(*count))
    })
    .await;
}

/// The slowest but one percent of honest requests, each with an id of its own.
async fn percentile(gate: &Gate, name: &str) -> Duration {
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let (address, name) = (gate.address(), format!("{name}-{sender}"));
        senders.spawn(async move {
            let mut connection = Connection::open(address).await.expect("hookgate listens");
            let mut times = Vec::new();
            for index in 0..REQUESTS {
                let began = Instant::now();
                let request = post_and_stay(PATH, batch([format!("{name}-{index}")]).as_bytes());
                connection.send(&request).await.expect("hookgate reads");
                assert_eq!(connection.answer().await.expect("hookgate answers").counts(), (1, 1));
                times.push(began.elapsed());
            }
            times
        });
    }
    let mut times = senders.join_all().await.concat();
    times.sort();
    times[times.len() * 99 / 100]
}
