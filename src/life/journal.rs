//! A journal entry: what is known of a pending id.
//!
//! It is text: `token;first;sequence;redelivered;answers`. The parts behind the token may be empty. The scripts of the pending
//! store write it; here it is only read.

use std::time::{Duration, SystemTime};

use crate::event::Token;

/// What a consumer said of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It has processed the event.
    Acknowledged,
    /// It terminated the event, or ran out of deliveries.
    GaveUp,
}

/// A journal entry of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// The token of the newest claim.
    pub token: Token,
    /// When the id was first claimed.
    pub first_claimed: SystemTime,
    /// The sequence of the event, once it is settled.
    pub sequence: Option<u64>,
    /// How often the id was published again without a webhook.
    pub redelivered: u32,
    /// What each consumer did, in the order in which they reported it.
    pub answers: Vec<(String, Answer)>,
}

impl JournalEntry {
    /// Reads an entry; `None` if it was not written by hookgate.
    #[must_use]
    pub fn parse(written: &[u8]) -> Option<Self> {
        let mut parts = str::from_utf8(written).ok()?.splitn(5, ';');
        let mut part = || parts.next();
        let token: Token = part()?.parse().ok()?;
        let first = part()?;
        let first_claimed = match first {
            "" => token.time(),
            millis => SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis.parse().ok()?))?,
        };
        let optional = |text: &str| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
        let sequence = optional(part()?)?;
        let redelivered = optional(part()?)?.unwrap_or_default();
        let answers = part()?.split(',').filter(|answer| !answer.is_empty()).map(|answer| {
            let (name, letter) = answer.rsplit_once(':')?;
            let answer = match letter {
                "a" => Answer::Acknowledged,
                "g" => Answer::GaveUp,
                _ => return None,
            };
            Some((name.to_owned(), answer))
        });
        Some(Self {
            token,
            first_claimed,
            sequence,
            redelivered: u32::try_from(redelivered).unwrap_or(u32::MAX),
            answers: answers.collect::<Option<_>>()?,
        })
    }

    /// What a consumer did; `None` if it has not answered.
    #[must_use]
    pub fn answer_of(&self, consumer: &str) -> Option<Answer> {
        self.answers.iter().find(|(name, _)| name == consumer).map(|(_, answer)| *answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Attempt, TokenSeed};

    #[test]
    fn an_entry_is_read_as_it_is_written() {
        let token = TokenSeed::now().token(Attempt::FIRST, 7);
        let new = JournalEntry::parse(format!("{token};;;;").as_bytes()).expect("it is an entry");
        let nothing =
            JournalEntry { token, first_claimed: token.time(), sequence: None, redelivered: 0, answers: Vec::new() };
        assert_eq!(new, nothing);
        let old = JournalEntry::parse(format!("{token};1000;42;3;a-b:a,c:g").as_bytes()).expect("it is an entry");
        assert_eq!(old.first_claimed, SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        assert_eq!((old.sequence, old.redelivered), (Some(42), 3));
        assert_eq!(old.answer_of("a-b"), Some(Answer::Acknowledged));
        assert_eq!(old.answer_of("c"), Some(Answer::GaveUp));
        assert_eq!(old.answer_of("a"), None);
    }

    #[test]
    fn what_others_write_is_no_entry() {
        let token = TokenSeed::now().token(Attempt::FIRST, 7);
        for foreign in
            ["", "x", &format!("{token}"), &format!("{token};;;"), &format!("{token};x;;;"), &format!("{token};;;;a:b")]
        {
            assert_eq!(JournalEntry::parse(foreign.as_bytes()), None, "{foreign}");
        }
        assert_eq!(JournalEntry::parse(b"\xff"), None);
    }
}
