//! Carries out what consumers answered, for routes that are released by acknowledgements.
//!
//! An answer counts for the event whose token the message at its sequence carries, and for nothing else: the number alone names
//! another event in a stream that was made again or restored. It is done with once Redis has carried it out.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream};
use hashbrown::HashMap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Answer, AtSequence, ConsumerAnswer, Consumers, ConsumersError, JournalEntry, Keeper, Listing, Told};
use crate::{
    dead_letters::{DeadLetter, DeadLetterLimits, GivenUp, GivenUpLetters},
    delivery::StoreError,
    event::Token,
    failpoint,
    route::{Release, Route, RouteTable},
    shutdown::Phase,
    supervision::supervise,
};

/// Messages that are read at the same time.
const AT_ONCE: usize = 64;
/// How much the clocks of two servers of NATS may differ: one says when the event was stored, the other when it was answered.
const CLOCKS: Duration = Duration::from_secs(5);
/// How much a clock of hookgate's may differ from that of NATS.
const OUR_CLOCK: Duration = Duration::from_secs(300);
/// How often it is looked for the event of an answer that comes before its claim is settled.
const SETTLING: usize = 10;
/// Between two such looks.
const SETTLING_PAUSE: Duration = Duration::from_millis(300);
/// Ids of one look.
const PAGE: usize = 1000;
/// Between two attempts to carry answers out.
const PAUSE: Duration = Duration::from_secs(1);

/// Why answers were not carried out.
#[derive(Debug, thiserror::Error)]
enum AnswersError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("read the event that was answered: {0}")]
    Consumers(#[from] ConsumersError),
}

/// Reads answers and carries them out.
pub struct Answers {
    keeper: Keeper,
    consumers: Arc<dyn Consumers>,
    letters: Arc<dyn GivenUpLetters>,
    limits: DeadLetterLimits,
    routes: HashMap<String, Arc<Route>>,
}

impl Answers {
    /// For the routes of a table that are released by acknowledgements.
    #[must_use]
    pub fn new(
        keeper: Keeper,
        consumers: Arc<dyn Consumers>,
        letters: Arc<dyn GivenUpLetters>,
        limits: DeadLetterLimits,
        table: &RouteTable,
    ) -> Self {
        let on_ack = table.routes().iter().filter(|route| route.life().release == Release::Ack);
        let routes = on_ack.map(|route| (route.name().to_owned(), Arc::clone(route))).collect();
        Self { keeper, consumers, letters, limits, routes }
    }

    /// Until the process leaves, or until it is told to stop; then what was read is still carried out: it would be told again
    /// only after a minute.
    pub async fn run(&self, mut phase: watch::Receiver<Phase>, stop: CancellationToken) {
        let leaving = async { phase.wait_for(|phase| *phase >= Phase::Refusing).await.is_ok() };
        tokio::select! {
            _ = leaving => {}
            () = async { supervise!("carrying out what consumers answered", self.read(&stop)) } => {}
        }
    }

    async fn read(&self, stop: &CancellationToken) {
        let mut said = false;
        while let Some(telling) = stop.run_until_cancelled(self.consumers.told()).await {
            if let Err(error) = self.carry_out(&telling.told).await {
                if !said {
                    warn!(%error, answers = telling.told.len(), "what consumers answered can't be carried out now; it is tried again");
                }
                said = true;
                // It need not be so for what comes behind, which may be about another route.
                self.consumers.put_off(telling.ticket).await;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            said = false;
            failpoint::hit("after_answers");
            self.consumers.carried_out(telling.ticket).await;
        }
    }

    async fn carry_out(&self, told: &[Told]) -> Result<(), AnswersError> {
        let reads: Vec<_> = told.iter().map(|told| self.consumers.at(&told.stream, told.sequence)).collect();
        let mut found = stream::iter(reads).buffered(AT_ONCE);
        let mut answers: HashMap<&str, Vec<ConsumerAnswer>> = HashMap::new();
        let (mut given_up, mut gone) = (Vec::new(), Vec::new());
        for told in told {
            let Some(at) = found.next().await else { break };
            let at = at?;
            // No configured consumer is named so, and the journal separates names thereby.
            if told.consumer.contains([',', ':', ';']) {
                continue;
            }
            let AtSequence::Event { route, id, token, stored } = at else {
                if at == AtSequence::Gone {
                    gone.push(told);
                }
                debug!(stream = told.stream, sequence = told.sequence, "an answer about nothing that is there");
                continue;
            };
            if told.time.is_some_and(|time| time + CLOCKS < stored) {
                // The stream was made again or restored, and the number was given to another event since.
                debug!(stream = told.stream, sequence = told.sequence, "an answer that is older than the event");
                continue;
            }
            let Some((name, route)) = self.routes.get_key_value(route.as_str()) else { continue };
            if told.answer == Answer::GaveUp {
                given_up.push((Arc::clone(route), id.clone(), told));
            }
            answers.entry(name).or_default().push(ConsumerAnswer {
                id,
                token,
                consumer: told.consumer.clone(),
                answer: told.answer,
            });
        }
        for (name, id, token, told) in self.of_gone(&gone).await? {
            if told.answer == Answer::GaveUp {
                given_up.push((Arc::clone(&self.routes[name]), id.clone(), told));
            }
            let (consumer, answer) = (told.consumer.clone(), told.answer);
            answers.entry(name).or_default().push(ConsumerAnswer { id, token, consumer, answer });
        }
        self.keep(&given_up).await?;
        let mut outcome = Ok(());
        for (name, answers) in answers {
            // One route that can't be worked on does not hold up the others.
            let answered = self.keeper.answer(&self.routes[name], &answers).await;
            outcome = outcome.and(answered.map(drop).map_err(AnswersError::from));
        }
        outcome
    }

    /// What was answered and is gone. A stream that drops what was answered can't say any more whose event it was; the journal can,
    /// once that event is settled.
    async fn of_gone<'a>(&'a self, gone: &[&'a Told]) -> Result<Vec<(&'a str, String, Token, &'a Told)>, AnswersError> {
        let mut found = Vec::new();
        if gone.is_empty() {
            return Ok(found);
        }
        for (name, route) in &self.routes {
            let Ok(progress) = self.consumers.progress(route).await else { continue };
            let mut sought: HashMap<u64, Vec<&Told>> = HashMap::new();
            // One that is older than the stream is about another event.
            let of_stream = |told: &&&Told| {
                progress.drops_answered
                    && told.stream == progress.stream
                    && told.time.is_some_and(|time| time >= progress.created)
            };
            for told in gone.iter().filter(of_stream) {
                sought.entry(told.sequence).or_default().push(told);
            }
            for _ in 0..SETTLING {
                if sought.is_empty() || !self.look_for(name, route, &mut sought, &mut found).await? {
                    break;
                }
                tokio::time::sleep(SETTLING_PAUSE).await;
            }
        }
        Ok(found)
    }

    /// Looks for sequences in a journal. Whether some claims are not settled yet.
    async fn look_for<'a>(
        &self,
        name: &'a str,
        route: &Route,
        sought: &mut HashMap<u64, Vec<&'a Told>>,
        found: &mut Vec<(&'a str, String, Token, &'a Told)>,
    ) -> Result<bool, StoreError> {
        let (mut cursor, mut in_flight) = (0, false);
        loop {
            let page = self.keeper.store().known_page(route, Listing::Pending, cursor, PAGE).await?;
            for known in page.ids {
                in_flight |= known.in_flight.is_some();
                let Some(entry) = known.journal.as_deref().and_then(JournalEntry::parse) else { continue };
                let told = entry.sequence.filter(|_| known.in_flight.is_none()).and_then(|it| sought.remove(&it));
                let told = told.into_iter().flatten();
                // Given after the event was stored.
                let later = told.filter(|told| told.time.is_some_and(|time| time + OUR_CLOCK >= entry.token.time()));
                found.extend(later.map(|told| (name, known.id.clone(), entry.token, told)));
            }
            cursor = page.next;
            if cursor == 0 {
                return Ok(in_flight);
            }
        }
    }

    /// A letter first: whatever happens then, somebody will see it.
    async fn keep(&self, given_up: &[(Arc<Route>, String, &Told)]) -> Result<(), StoreError> {
        if given_up.is_empty() {
            return Ok(());
        }
        let letters: Vec<_> = given_up.iter().map(|(route, id, told)| letter(route, id, told)).collect();
        let news = self.letters.keep_given_up(&letters, self.limits).await?;
        for ((route, id, told), _) in given_up.iter().zip(news).filter(|(_, new)| *new) {
            self.keeper.gave_up(route, &told.consumer);
            warn!(%route, entity_id = %id, consumer = told.consumer, deliveries = told.deliveries, stream = told.stream, sequence = told.sequence, on_give_up = route.life().on_give_up.name(),
                "a consumer gave an event up; `hookgate dead-letters list` shows it as gave_up");
        }
        Ok(())
    }
}

fn letter(route: &Route, id: &str, told: &Told) -> GivenUp {
    let Told { stream, consumer, sequence, deliveries, .. } = told;
    let raw = serde_json::json!({
        "entity_id": id, "consumer": consumer, "deliveries": deliveries, "stream": stream, "sequence": sequence,
    });
    GivenUp {
        event: format!("{stream}/{sequence}/{consumer}"),
        letter: DeadLetter {
            route: route.name().to_owned(),
            reason: "gave_up".to_owned(),
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            raw: raw.to_string().into(),
        },
    }
}
