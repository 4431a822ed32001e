//! What one scan of a journal has found, and what is remembered from one scan to the next.

use std::time::SystemTime;

use hashbrown::HashMap;
use tokio::time::Instant;

use super::{
    Answer, ConsumerAnswer, JournalEntry, Journaled, Known, Progress,
    verdict::{Verdict, verdict},
};
use crate::{
    event::Token,
    route::{Release, Route},
};

/// Most ids that are remembered from one scan to the next.
pub(super) const MAX_SUSPECTS: usize = 100_000;

/// What this replica remembers of a route.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) next_scan: Option<Instant>,
    /// Ids that lack an acknowledgement, with their entry and since when they were seen so.
    pub(super) suspects: HashMap<String, (Option<Vec<u8>>, Instant)>,
    /// Ids that were republished as often as allowed, with the claim that a dead letter is about.
    pub(super) reported: HashMap<String, Token>,
}

/// What a scan of a journal has found.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) oldest: Option<SystemTime>,
    pub(super) pending: usize,
    pub(super) pages: u32,
    pub(super) leftovers: usize,
    pub(super) unanswered: Vec<Known>,
    pub(super) old: Vec<Known>,
    /// Answers of ids that all consumers have answered, and that are still pending.
    pub(super) complete: Vec<ConsumerAnswer>,
    /// Republished as often as allowed.
    pub(super) exhausted: Vec<(String, JournalEntry)>,
    /// How far the consumers were; `None` if it is not known or not needed.
    pub(super) progress: Option<Progress>,
}

impl Findings {
    /// Counts a pending id. Returns whether [`Self::judge`] has to look at it.
    pub(super) fn note(
        &mut self,
        route: &Route,
        journaled: &Journaled,
        progress: Option<&Progress>,
        memory: &Memory,
    ) -> bool {
        self.pending += 1;
        let Some(entry) = JournalEntry::parse(&journaled.entry) else {
            // Not written by hookgate: nothing says that its event was acknowledged. `doctor` and `why` show it.
            return route.life().release == Release::Ack && progress.is_some();
        };
        self.oldest = Some(self.oldest.map_or(entry.first_claimed, |oldest| oldest.min(entry.first_claimed)));
        match verdict(route, &entry, progress) {
            Verdict::Fine => false,
            Verdict::Exhausted if memory.reported.get(&journaled.id) == Some(&entry.token) => {
                self.exhausted.push((journaled.id.clone(), entry));
                false
            }
            Verdict::Exhausted | Verdict::Complete | Verdict::Lost | Verdict::Old => true,
        }
    }

    /// Decides what to do about an id, from all that the store knows of it. What is in flight is the relay's.
    pub(super) fn judge(&mut self, route: &Route, known: Known, progress: Option<&Progress>, memory: &Memory) {
        if !known.pending || known.in_flight.is_some() {
            return;
        }
        let Some(entry) = known.journal.as_deref().and_then(JournalEntry::parse) else {
            if route.life().release == Release::Ack && progress.is_some() {
                self.suspect(known, memory);
            }
            return;
        };
        match verdict(route, &entry, progress) {
            Verdict::Fine => {}
            Verdict::Complete => {
                let consumer = route.life().consumers[0].clone();
                let answer = entry.answer_of(&consumer).unwrap_or(Answer::Acknowledged);
                self.complete.push(ConsumerAnswer { id: known.id, token: entry.token, consumer, answer });
            }
            Verdict::Lost => self.suspect(known, memory),
            Verdict::Old => self.old.push(known),
            Verdict::Exhausted => {
                // If there are too many, those that were reported before are kept.
                if self.exhausted.len() < MAX_SUSPECTS || memory.reported.contains_key(&known.id) {
                    self.exhausted.push((known.id, entry));
                }
            }
        }
    }

    pub(super) fn suspect(&mut self, known: Known, memory: &Memory) {
        // If there are too many, those that are remembered are kept.
        if self.unanswered.len() < MAX_SUSPECTS || memory.suspects.contains_key(&known.id) {
            self.unanswered.push(known);
        }
    }
}
