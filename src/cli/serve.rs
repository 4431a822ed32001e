//! `hookgate serve`

use std::{num::NonZero, process::ExitCode};

use anyhow::Context;
use hookgate::{
    app::{self, Ended},
    settings::Settings,
    telemetry,
};
use tokio::runtime::Builder;

pub(super) fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let _log = telemetry::init(settings.log_format, settings.log_filter.clone());
    let threads = match settings.worker_threads {
        0 => std::thread::available_parallelism().map_or(1, NonZero::get),
        threads => threads,
    };
    // One thread that has no other to wake does more than one of several.
    let mut builder = if threads == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    let runtime = builder.worker_threads(threads).enable_all().build().context("start the runtime")?;
    let ended = runtime.block_on(app::run(settings))?;
    // What is still running by now was given up in so many words.
    runtime.shutdown_background();
    Ok(match ended {
        Ended::Drained => ExitCode::SUCCESS,
        Ended::CutShort => ExitCode::FAILURE,
    })
}
