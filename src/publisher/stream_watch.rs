//! Keeps an eye on connection and stream, and says how they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::{error, info, warn};

use super::{
    api::Api,
    connection::Connection,
    diagnosis,
    stream::{self, StreamSettings, Survey},
};
use crate::{
    finding::Level,
    readiness::{Contact, Reporter},
    route::RouteTable,
};

/// The stream is looked for again at most this often.
const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// While it is unknown whether there is one.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at the settings of a stream that takes events.
const WATCH_PAUSE: Duration = Duration::from_secs(10);

/// Looks at the stream: at the start of each connection, when an event found none, and from time to time.
pub(super) struct StreamWatch {
    pub(super) api: Api,
    pub(super) connection: Connection,
    pub(super) names: String,
    pub(super) report: Reporter,
    pub(super) usable: Arc<AtomicBool>,
    pub(super) look_again: Arc<Notify>,
    pub(super) stream: StreamSettings,
    pub(super) routes: watch::Receiver<Arc<RouteTable>>,
}

impl StreamWatch {
    pub(super) async fn run(&self) {
        let (mut status, mut routes) = (self.connection.status.clone(), self.routes.clone());
        let mut said = Said::default();
        // Whether the next look is at a stream that was well at the last one.
        let mut routine = false;
        loop {
            let table = Arc::clone(&routes.borrow_and_update());
            let now = status.borrow_and_update().clone();
            let pause = if now.contact != Contact::Up {
                self.report.set(now.contact);
                Duration::MAX
            } else if routine {
                self.look_at_settings(&table, &mut said).await;
                WATCH_PAUSE
            } else {
                let (contact, pause) = self.look(&table, &mut said).await;
                // What the look found may be outdated by the end of the connection.
                if *status.borrow() == now || contact != Contact::Up {
                    self.report.set(contact);
                }
                pause
            };
            let looked = Instant::now();
            routine = false;
            let changed = tokio::select! {
                changed = status.changed() => changed.is_ok(),
                changed = routes.changed() => changed.is_ok(),
                () = self.look_again.notified() => {
                    tokio::time::sleep_until(looked + LOOK_PAUSE).await;
                    true
                }
                () = tokio::time::sleep(pause) => {
                    routine = pause == WATCH_PAUSE;
                    true
                }
            };
            if !changed {
                return;
            }
        }
    }

    /// Whether events can be published now, and when to look again.
    async fn look(&self, routes: &RouteTable, said: &mut Said) -> (Contact, Duration) {
        // Most servers that have JetStream take events at once; of the others the answer tells.
        if self.connection.client.server_info().jetstream {
            self.usable.store(true, Ordering::Relaxed);
        }
        let found = stream::ensure(&self.api, &self.stream, routes).await;
        match &found {
            Ok(survey) => {
                self.usable.store(true, Ordering::Relaxed);
                self.connection.permission_granted(|denial| denial.contains("\"$JS.API."));
                said.say(survey, &self.stream);
            }
            Err(error) if error.is_no_jetstream() => self.usable.store(false, Ordering::Relaxed),
            // Whether events can be stored, those that are published find out.
            Err(_) => self.usable.store(true, Ordering::Relaxed),
        }
        match (found, self.denial(routes)) {
            (Ok(_), None) => (Contact::Up, WATCH_PAUSE),
            (_, Some(denial)) => (diagnosis::denied(&self.names, &denial), RETRY_PAUSE),
            (Err(error), None) => {
                let problem = format!("{}: {error}", self.names);
                let contact =
                    if error.is_refusal() { Contact::Refused(problem) } else { Contact::Unreachable(problem) };
                (contact, if error.is_absence() { LOOK_PAUSE } else { RETRY_PAUSE })
            }
        }
    }

    /// What the server denies of what configured routes need. An old entry of the outbox may go to a subject that nobody may
    /// publish to any more; that must not keep a new pod from becoming ready.
    fn denial(&self, routes: &RouteTable) -> Option<String> {
        let status = self.connection.status.borrow();
        let names = |denial: &str, subject: &str| denial.contains(&format!("\"{subject}\""));
        let concerns_routes = |denial: &&String| {
            denial.contains("\"$JS.API.") || routes.routes().iter().any(|route| names(denial, route.subject()))
        };
        status.inbox_denied.as_ref().or_else(|| status.denied.as_ref().filter(concerns_routes)).cloned()
    }

    /// Says what has changed in the settings. Says nothing of the contact: what is published tells that.
    async fn look_at_settings(&self, routes: &RouteTable, said: &mut Said) {
        if let Ok(survey) = stream::survey(&self.api, routes, said.streams.iter().map(String::as_str)).await {
            said.say(&survey, &self.stream);
        }
    }
}

/// What was logged of the streams, so that each problem is logged once, and once when it is over.
#[derive(Default)]
struct Said {
    streams: BTreeSet<String>,
    /// By stream and field.
    problems: BTreeMap<(String, String), Level>,
}

impl Said {
    fn say(&mut self, survey: &Survey<'_>, settings: &StreamSettings) {
        let mut now = BTreeMap::new();
        for (stream, problem) in survey.problems(settings) {
            let key = (stream.to_owned(), problem.field);
            if self.problems.get(&key) != Some(&problem.level) {
                let (field, problem_text) = (key.1.as_str(), problem.text.as_str());
                match problem.level {
                    Level::Failure => {
                        error!(%stream, %field, problem = %problem_text, "stream drops, refuses or hides events; it is left as it is");
                    }
                    Level::Warning | Level::Ok => {
                        warn!(%stream, %field, problem = %problem_text, "stream can lose, refuse or duplicate events; it is left as it is");
                    }
                }
            }
            now.insert(key, problem.level);
        }
        for (stream, field) in self.problems.keys().filter(|key| !now.contains_key(*key)) {
            info!(%stream, %field, "stream is in order again");
        }
        self.problems = now;
        self.streams = survey.streams.keys().cloned().collect();
    }
}
