//! The least that the clients of Redis and NATS cost: the floor with one claim for all requests that wait, a message an
//! id, its acknowledgement, and the settling behind it. `bare ADDRESS REDIS NATS`.
//!
//! No metrics, no log, no relay, no retry, no deadline, no time-outs of the stores, no look at what an id may hold. A
//! request whose claim or message fails gets 503, or waits for good. It is here to be compared with and for nothing else.

mod claims;
mod events;

use std::{error::Error, net::SocketAddr, process::ExitCode};

use bytes::Bytes;
use mimalloc::MiMalloc;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use warp::{Reply, http::StatusCode, reply::Response};

use self::{
    claims::{Loaded, claim, settle},
    events::Events,
};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The ids of a request, and what their tokens come from.
struct Batch {
    seed: String,
    ids: Vec<String>,
}

/// A request on its way, which is told how many of its ids are new when all are acknowledged.
struct Job {
    batch: Batch,
    done: oneshot::Sender<usize>,
}

impl Batch {
    fn token(&self, index: usize) -> String {
        format!("{}-{index}", self.seed)
    }
}

async fn answer(body: Bytes, jobs: mpsc::UnboundedSender<Job>) -> Response {
    let ids: Vec<String> = match floor::records(&body) {
        Ok(records) => records.into_iter().map(|record| record.id.into_owned()).collect(),
        Err(status) => return status.into_response(),
    };
    let (total, (done, new)) = (ids.len(), oneshot::channel());
    let job = Job { batch: Batch { seed: Uuid::now_v7().simple().to_string(), ids }, done };
    let new = if jobs.send(job).is_ok() { new.await.ok() } else { None };
    new.map_or_else(|| StatusCode::SERVICE_UNAVAILABLE.into_response(), |new| floor::received(new, total))
}

async fn serve(address: SocketAddr, redis: &str, nats: &str) -> Result<(), Box<dyn Error>> {
    let mut redis = redis::Client::open(redis)?.get_multiplexed_async_connection().await?;
    let (claims, settlements) = (Loaded::claim(&mut redis).await?, Loaded::settle(&mut redis).await?);
    let tasks = TaskTracker::new();
    let (acknowledged, settling) = mpsc::unbounded_channel();
    let events = Events::open(nats, acknowledged, &tasks).await?;
    let (jobs, waiting) = mpsc::unbounded_channel();
    tasks.spawn(settle(settlements, settling, redis.clone()));
    tasks.spawn(claim(claims, waiting, redis, events));
    let ended = floor::serve(address, move |body| answer(body, jobs.clone())).await?;
    match ended {}
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, redis, nats] = arguments.as_slice() else {
        eprintln!("usage: bare ADDRESS REDIS NATS");
        return ExitCode::from(2);
    };
    let Ok(address) = address.parse() else {
        eprintln!("bare: {address:?} is no address");
        return ExitCode::from(2);
    };
    let served =
        floor::runtime(0).map_err(Into::into).and_then(|runtime| runtime.block_on(serve(address, redis, nats)));
    if let Err(error) = served {
        eprintln!("bare: serve on {address}: {error}");
    }
    ExitCode::FAILURE
}
