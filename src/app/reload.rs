//! Reads the configuration again: on SIGHUP, and when one of its files changes. What can't be used changes nothing; it is
//! logged, counted (`hookgate_config_reload_failed`), shown on the status page, and tried again.
//!
//! Files are compared by their contents, twice in a row, so that a link that is swapped (Kubernetes) and a file that is just being
//! written are both read right.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{
    announce_route,
    generation::{Generation, LongLived, NotTaken},
};
use crate::{
    admin::ConfigurationStatus,
    metrics::Metrics,
    route::Route,
    settings::{AuthSecrets, Contents, Settings, SettingsErrors, Sources, StoreLogins, sections::Configuration},
    shutdown::{Hangups, Phase},
    supervision::supervise,
    telemetry::LogFilter,
};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks until a reading that failed is repeated: what was in its way may be gone (a secret, a stream, a right).
const AGAIN_AFTER: u32 = 3;
/// The one key that concerns no request.
const LOG_FILTER: &str = "log.filter";

/// The configuration that is in force, and where it comes from.
pub struct InForce {
    /// As it is written.
    pub configuration: Configuration,
    /// Where it is read again.
    pub sources: Sources,
    /// What the files held when it was read.
    pub contents: Contents,
    /// What is logged.
    pub log_filter: LogFilter,
}

/// Reads the configuration again and again.
pub(super) struct Reloader {
    long_lived: LongLived,
    now: watch::Sender<Arc<Generation>>,
    status: watch::Sender<ConfigurationStatus>,
    metrics: Metrics,
    configuration: Configuration,
    sources: Arc<Sources>,
    log_filter: LogFilter,
    /// What the files held when they were read last.
    read: Contents,
    /// What the stores were logged in with at the start.
    logins: StoreLogins,
}

/// Why the files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Sighup,
    Changed,
    /// The last reading failed.
    Again,
}

impl Why {
    const fn text(self) -> &'static str {
        match self {
            Self::Sighup => "SIGHUP",
            Self::Changed => "its files have changed",
            Self::Again => "it could not be used before",
        }
    }
}

/// A configuration that can be in force.
struct Readable {
    configuration: Configuration,
    settings: Settings,
    /// Keys whose new values only a restart takes over.
    needs_restart: Vec<String>,
}

impl Readable {
    /// Reads the files, and checks them by themselves and beside what only a restart changes.
    fn read(sources: &Sources, in_force: &Configuration, logins: &StoreLogins) -> Result<Self, Vec<String>> {
        let texts = |errors: SettingsErrors| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        let (next, layers) = sources.load();
        let origins = layers.origins();
        let settings = Settings::check(&next, layers, AuthSecrets::Read).map_err(texts)?;
        let configuration = in_force.taking_over(&next);
        let mut needs_restart = configuration.differing_keys(&next);
        if needs_restart.is_empty() {
            needs_restart = settings.store_logins().changed_since(logins, &configuration);
            return Ok(Self { configuration, settings, needs_restart });
        }
        let settings = Settings::check(&configuration, origins, AuthSecrets::Read).map_err(|errors| {
            let keys = needs_restart.join(", ");
            let beside = |text| format!("{text} (until a restart, which {keys} needs)");
            texts(errors).into_iter().map(beside).collect::<Vec<_>>()
        })?;
        Ok(Self { configuration, settings, needs_restart })
    }
}

impl Reloader {
    pub(super) fn new(
        long_lived: LongLived,
        now: watch::Sender<Arc<Generation>>,
        status: watch::Sender<ConfigurationStatus>,
        metrics: Metrics,
        in_force: InForce,
    ) -> Self {
        let InForce { configuration, sources, contents, log_filter } = in_force;
        let (read, logins) = (contents.with_secrets_of(&configuration), now.borrow().settings.store_logins());
        Self { long_lived, now, status, metrics, configuration, sources: Arc::new(sources), log_filter, read, logins }
    }

    /// Runs until shutdown.
    pub(super) async fn run(mut self, mut hangups: Hangups, phase: watch::Receiver<Phase>) {
        supervise!("the reading of the configuration", self.follow(&mut hangups, phase.clone()));
    }

    async fn follow(&mut self, hangups: &mut Hangups, mut phase: watch::Receiver<Phase>) {
        let (mut last, mut looks) = (None, 0);
        loop {
            let why = tokio::select! {
                () = hangups.next() => Some(Why::Sighup),
                () = tokio::time::sleep(LOOK_EVERY) => self.look(&mut last, &mut looks).await,
                _leaving = async { phase.wait_for(|phase| *phase != Phase::Serving).await.is_ok() } => return,
            };
            if let Some(why) = why {
                // Boxed: rare, and large.
                Box::pin(self.read_again(why)).await;
                looks = 0;
            }
        }
    }

    /// Whether there is a reason to read the files. They have to be the same at two looks.
    async fn look(&self, last: &mut Option<Contents>, looks: &mut u32) -> Option<Why> {
        let (sources, in_force) = (Arc::clone(&self.sources), self.configuration.clone());
        let reading = move || sources.contents().with_secrets_of(&in_force);
        // Fails only where the runtime ends.
        let contents = tokio::task::spawn_blocking(reading).await.ok()?;
        let changed = contents != self.read && last.as_ref() == Some(&contents);
        *last = Some(contents);
        *looks += 1;
        let failed = !self.status.borrow().problems.is_empty();
        if changed { Some(Why::Changed) } else { (failed && *looks >= AGAIN_AFTER).then_some(Why::Again) }
    }

    async fn read_again(&mut self, why: Why) {
        let (sources, in_force) = (Arc::clone(&self.sources), self.configuration.clone());
        let logins = self.logins.clone();
        let reading = move || {
            let contents = sources.contents().with_secrets_of(&in_force);
            (contents, Readable::read(&sources, &in_force, &logins))
        };
        let Ok((contents, read)) = tokio::task::spawn_blocking(reading).await else { return };
        self.read = contents;
        let taken = match read {
            Ok(readable) => Box::pin(self.take(readable, why)).await.map_err(|problem| vec![problem.to_string()]),
            Err(problems) => Err(problems),
        };
        self.metrics.reload_failed(taken.is_err());
        if let Err(problems) = taken {
            let news = self.status.borrow().problems != problems;
            if why != Why::Again || news {
                error!(
                    problems = problems.len(),
                    because = why.text(),
                    "the configuration can't be used, and what is in force stays: {}",
                    problems.join("; ")
                );
            }
            self.status.send_modify(|status| status.problems = problems);
        }
    }

    /// Puts a configuration in force.
    async fn take(&mut self, readable: Readable, why: Why) -> Result<(), NotTaken> {
        let Readable { configuration, mut settings, needs_restart } = readable;
        let changed = self.configuration.differing_keys(&configuration);
        let needed_before = self.status.borrow().needs_restart.clone();
        if changed.iter().any(|key| key != LOG_FILTER) {
            let (filter, warnings) = (settings.log_filter.clone(), std::mem::take(&mut settings.warnings));
            let secret_files = std::mem::take(&mut settings.secret_files);
            let before = Arc::clone(&self.now.borrow());
            let next = Arc::new(self.long_lived.next(settings, &before).await?);
            for warning in &warnings {
                warn!("{warning}");
            }
            let (added, removed) = differences(&before, &next);
            for route in &added {
                announce_route(&next.settings, route);
            }
            self.now.send_replace(Arc::clone(&next));
            self.long_lived.start(&next, secret_files, Some(&before)).await;
            self.set_filter(&changed, filter);
            let names = |routes: &[Arc<Route>]| routes.iter().map(|route| route.name()).collect::<Vec<_>>().join(",");
            info!(
                changed = changed.join(","),
                added = names(&added),
                removed = names(&removed),
                because = why.text(),
                "the configuration was read again, and is in force for all requests from now on"
            );
        } else if !changed.is_empty() {
            self.set_filter(&changed, settings.log_filter);
            info!(
                changed = changed.join(","),
                because = why.text(),
                "the configuration was read again, and is in force"
            );
        } else if needs_restart == needed_before {
            info!(because = why.text(), "the configuration was read again; nothing in it has changed");
        }
        if !needs_restart.is_empty() && needs_restart != needed_before {
            warn!(
                keys = needs_restart.join(","),
                "these keys have changed, and a restart is needed for them: {}; what was in force of them stays until then",
                needs_restart.join(", ")
            );
        }
        if needs_restart.is_empty() && !needed_before.is_empty() {
            info!("no key needs a restart any more");
        }
        self.configuration = configuration;
        self.status.send_modify(|status| {
            let now = ConfigurationStatus::read_now(needs_restart);
            let since = if changed.is_empty() { status.in_force_since.clone() } else { now.in_force_since.clone() };
            *status = ConfigurationStatus { in_force_since: since, ..now };
        });
        Ok(())
    }

    fn set_filter(&self, changed: &[String], filter: tracing_subscriber::EnvFilter) {
        if changed.iter().any(|key| key == LOG_FILTER) {
            self.log_filter.set(filter);
        }
    }
}

/// Routes that are new or others now, and routes that are gone or were others.
fn differences(before: &Generation, next: &Generation) -> (Vec<Arc<Route>>, Vec<Arc<Route>>) {
    let (before, next) = (before.settings.routes.routes(), next.settings.routes.routes());
    let without = |some: &[Arc<Route>], others: &[Arc<Route>]| {
        some.iter().filter(|route| !others.contains(route)).cloned().collect::<Vec<_>>()
    };
    (without(next, before), without(before, next))
}
