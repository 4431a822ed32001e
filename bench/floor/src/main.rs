//! The floor: what warp, hyper and tokio take to read a webhook, parse it and answer, with nothing behind it.
//!
//! `floor ADDRESS [THREADS]`, where 0, the default, is as many as there are cores. Its allocator is hookgate's too.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use warp::{Reply, reply::Response};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn answer(body: &[u8]) -> Response {
    let records = match floor::records(body) {
        Ok(records) => records,
        Err(status) => return status.into_response(),
    };
    // Counted by their bytes, so that the ids have been looked at.
    let valid = records.iter().filter(|record| (1..=255).contains(&record.id.len())).count();
    floor::received(valid, records.len())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = arguments.first().and_then(|address| address.parse().ok());
    let threads = arguments.get(1).map_or(Ok(0), |threads| threads.parse());
    let (Some(address), Ok(threads)) = (address, threads) else {
        eprintln!("usage: floor ADDRESS [THREADS]");
        return ExitCode::from(2);
    };
    let serving = floor::serve(address, |body| std::future::ready(answer(&body)));
    let Err(error) = floor::runtime(threads).and_then(|runtime| runtime.block_on(serving));
    eprintln!("floor: serve on {address}: {error}");
    ExitCode::FAILURE
}
