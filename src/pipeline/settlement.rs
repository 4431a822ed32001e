//! From a claim to its settlement, which takes an acknowledgement.

use crate::{batch::EntityId, event::Token, publisher::Ack};

/// An id whose event has to be acknowledged before the batch may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) id: EntityId<'a>,
    pub(super) token: Token,
}

impl Claim<'_> {
    /// Only an acknowledgement makes a settlement.
    pub(super) fn settled_by(&self, ack: Ack) -> Settlement {
        Settlement::acknowledged(self.id.as_str().to_owned(), self.token, ack)
    }
}

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
