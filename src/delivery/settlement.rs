//! From a claim to its settlement, which takes an acknowledgement.

use super::Ack;
use crate::event::Token;

/// An acknowledged claim, whose entry in the outbox can go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "an acknowledged claim that isn't settled is published again"]
pub struct Settlement {
    id: String,
    token: Token,
    sequence: Option<u64>,
}

impl Settlement {
    /// Only an acknowledgement makes a settlement.
    pub(crate) fn acknowledged(id: String, token: Token, ack: Ack) -> Self {
        Self { id, token, sequence: ack.sequence() }
    }

    /// The claimed id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The sequence of the event in its stream, if it is in one.
    #[must_use]
    pub const fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// The token that was acknowledged.
    #[must_use]
    pub const fn token(&self) -> Token {
        self.token
    }
}
