//! From a claim to its settlement, which takes an acknowledgement.

use super::Ack;
use crate::event::Token;

/// An acknowledged claim, whose entry in the outbox can go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "an acknowledged claim that isn't settled is published again"]
pub struct Settlement {
    id: String,
    token: Token,
}

impl Settlement {
    /// Only an acknowledgement makes a settlement.
    pub(crate) fn acknowledged(id: String, token: Token, _ack: Ack) -> Self {
        Self { id, token }
    }

    /// The claimed id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The token that was acknowledged.
    #[must_use]
    pub const fn token(&self) -> Token {
        self.token
    }
}
