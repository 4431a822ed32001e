//! `hookgate serve`

use std::process::ExitCode;

use anyhow::Context;
use hookgate::{
    app::{self, Ended},
    settings::Settings,
    telemetry,
};

pub(super) fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    telemetry::init(settings.log_format, settings.log_filter.clone());
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if settings.worker_threads > 0 {
        builder.worker_threads(settings.worker_threads);
    }
    let runtime = builder.enable_all().build().context("start the runtime")?;
    let ended = runtime.block_on(app::run(settings))?;
    // What is still running by now was given up in so many words.
    runtime.shutdown_background();
    Ok(match ended {
        Ended::Drained => ExitCode::SUCCESS,
        Ended::CutShort => ExitCode::FAILURE,
    })
}
