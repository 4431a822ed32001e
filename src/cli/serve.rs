//! `hookgate serve`

use std::{num::NonZero, process::ExitCode};

use anyhow::Context;
use hookgate::{
    app::{self, Ended, InForce},
    metrics::{REVISION, VERSION},
    settings::Sources,
    telemetry,
};
use tokio::runtime::{Builder, Runtime};
use tracing::{info, warn};

use super::Configured;

pub(super) fn run(configured: Configured, sources: Sources) -> anyhow::Result<ExitCode> {
    let Configured { configuration, settings, contents } = configured;
    let log = telemetry::init(settings.log_format, settings.log_filter.clone());
    info!(version = VERSION, revision = REVISION, "hookgate starts");
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    let runtime = runtime(settings.worker_threads).context("start the runtime")?;
    let in_force = InForce { configuration, sources, contents, log_filter: log.filter() };
    let ended = runtime.block_on(app::run(settings, in_force))?;
    // Whatever still runs was logged as given up.
    runtime.shutdown_background();
    Ok(match ended {
        Ended::Drained => ExitCode::SUCCESS,
        Ended::CutShort => ExitCode::FAILURE,
    })
}

/// Up to two threads, one serves all connections and the other reads the large bodies: two that serve would wake each
/// other once a request, which costs more than the second is worth (`bench/NOTES.md`). More share everything.
fn runtime(threads: NonZero<usize>) -> std::io::Result<Runtime> {
    let mut builder = if threads.get() <= 2 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    builder.worker_threads(threads.get()).enable_all().build()
}
