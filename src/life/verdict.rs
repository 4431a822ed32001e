//! Decides what to do about a pending id, from its journal entry and how far the consumers are. Pure.

use std::time::{Duration, SystemTime};

use super::{Answer, JournalEntry, Progress};
use crate::route::{OnGiveUp, Release, Route};

/// What has to be done about a pending id.
pub(super) enum Verdict {
    /// Nothing.
    Fine,
    /// All consumers have answered, and nobody has released it.
    Complete,
    /// An acknowledgement is missing that will never come.
    Lost,
    /// It has been pending for too long.
    Old,
    /// It was published again as often as allowed.
    Exhausted,
}

/// Decides what to do about a pending id whose event is settled.
pub(super) fn verdict(route: &Route, entry: &JournalEntry, progress: Option<&Progress>) -> Verdict {
    let life = route.life();
    let (on_ack, consumers) = (life.release == Release::Ack, life.consumers.as_slice());
    if on_ack && consumers.iter().all(|consumer| entry.answer_of(consumer).is_some()) {
        // It is kept, or other consumers were in force when the last of them answered.
        let gave_up = |consumer: &String| entry.answer_of(consumer) == Some(Answer::GaveUp);
        let kept = life.on_give_up == OnGiveUp::Keep && consumers.iter().any(gave_up);
        return if kept { Verdict::Fine } else { Verdict::Complete };
    }
    let lost = on_ack && progress.is_some_and(|progress| is_lost(entry, consumers, progress));
    let old = life.redeliver_after.is_some_and(|after| is_old(entry, after));
    if !lost && (!old || still_waits(entry, consumers, progress)) {
        Verdict::Fine
    } else if entry.redelivered >= life.max_redeliveries {
        Verdict::Exhausted
    } else if lost {
        Verdict::Lost
    } else {
        Verdict::Old
    }
}

/// Whether an id has been pending for longer than `after` since its first claim. Its newest event gets time, too: a tenth of
/// `after` if a webhook made it, all of `after` if a redelivery did.
fn is_old(entry: &JournalEntry, after: Duration) -> bool {
    let aged = |since: SystemTime, least: Duration| since.elapsed().is_ok_and(|age| age >= least);
    let own = if entry.redelivered == 0 { after / 10 } else { after };
    aged(entry.first_claimed, after) && aged(entry.token.time(), own)
}

/// Whether an acknowledgement is missing that will never come: nothing of the event is outstanding at its consumer.
fn is_lost(entry: &JournalEntry, consumers: &[String], progress: &Progress) -> bool {
    let missing = || consumers.iter().filter(|consumer| entry.answer_of(consumer).is_none());
    let Some(sequence) = entry.sequence else {
        // Settled by an older replica, which writes none.
        return true;
    };
    let gone = progress.is_gone(entry, sequence);
    let has_nothing = |consumer: &String| {
        progress.floors.iter().any(|(name, floor)| name == consumer && (gone || *floor >= sequence))
    };
    missing().any(has_nothing)
}

/// Returns the event's sequence, if the event seems gone only because two clocks say that its claim is older than its stream.
/// Then a look into the stream has to decide.
pub(super) fn rests_on_clocks(entry: &JournalEntry, consumers: &[String], progress: &Progress) -> Option<u64> {
    let sequence = entry.sequence.filter(|sequence| (progress.first..=progress.last).contains(sequence))?;
    let missing = |name: &String| consumers.contains(name) && entry.answer_of(name).is_none();
    let passed = progress.floors.iter().any(|(name, floor)| missing(name) && *floor >= sequence);
    (!passed && progress.is_gone(entry, sequence)).then_some(sequence)
}

/// Whether the event is still outstanding at a configured consumer.
fn still_waits(entry: &JournalEntry, consumers: &[String], progress: Option<&Progress>) -> bool {
    if consumers.is_empty() {
        return false;
    }
    let (Some(progress), Some(sequence)) = (progress, entry.sequence) else {
        // Nothing is known of the consumers: wait, rather than republish too often. Without a sequence waiting would
        // tell no more.
        return progress.is_none();
    };
    let gone = progress.is_gone(entry, sequence);
    !gone && progress.floors.iter().any(|(_, floor)| *floor < sequence)
}
