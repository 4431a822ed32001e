//! Looks at the consumers that routes name, from time to time, for metrics and status page.
//!
//! Over a connection of its own: what NATS denies here says nothing of the events.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tracing::{info, warn};

use super::{
    api::Api,
    consumers::{self, ConsumerInfo},
    servers::Servers,
    stream,
};
use crate::{metrics::Metrics, route::RouteTable, supervision::supervise};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);

/// What there is to look at.
pub struct ConsumerWatch {
    servers: Servers,
    routes: Arc<RouteTable>,
    metrics: Metrics,
}

impl ConsumerWatch {
    /// For routes that name consumers; nothing without any.
    #[must_use]
    pub fn new(servers: Servers, routes: &RouteTable, metrics: &Metrics) -> Option<Self> {
        let named = routes.routes().iter().any(|route| !route.life().consumers.is_empty());
        named.then(|| Self { servers, routes: Arc::new(routes.clone()), metrics: metrics.clone() })
    }

    /// Looks again and again.
    pub async fn keep_looking(self) {
        supervise!("the look at consumers", self.run());
    }

    /// While NATS does not answer, what it said last stays.
    async fn run(&self) {
        let (mut api, mut said) = (None, Said::default());
        loop {
            if api.is_none() {
                api = self.servers.connect_once().await.ok().map(|(client, _denied)| Api::over(client));
            }
            if let Some(api) = &api {
                self.look(api, &mut said).await;
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn look(&self, api: &Api, said: &mut Said) {
        let known = std::mem::take(&mut said.streams);
        let survey = stream::survey(api, &self.routes, known.iter().map(String::as_str)).await;
        let Ok(survey) = survey else { return };
        for ((stream, name), routes) in consumers::wanted(&survey) {
            let Ok(found) = consumers::info_of(api, &stream, &name).await else {
                said.problem(&name, "it can't be looked at; allow $JS.API.CONSUMER.INFO for its stream");
                continue;
            };
            match &found {
                Some(_) => said.is_well(&name),
                None => said.problem(&name, "there is none of this name; see `hookgate consumers add`"),
            }
            let numbers = found.as_ref().map(|found| (found.waiting(), ConsumerInfo::unacknowledged(found)));
            for route in routes {
                self.metrics.of(route).set_consumer(&name, numbers);
            }
        }
        said.streams = survey.streams.keys().cloned().collect();
    }
}

/// What was logged, so that each problem is logged once, and once when it is over.
#[derive(Default)]
struct Said {
    /// Where the subjects lead, as of the last look.
    streams: BTreeSet<String>,
    missing: BTreeSet<String>,
}

impl Said {
    fn problem(&mut self, consumer: &str, problem: &str) {
        if self.missing.insert(consumer.to_owned()) {
            warn!(%consumer, %problem, "a consumer that routes name is not seen");
        }
    }

    fn is_well(&mut self, consumer: &str) {
        if self.missing.remove(consumer) {
            info!(%consumer, "the consumer is seen again");
        }
    }
}
