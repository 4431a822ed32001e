//! The Lua scripts, how they are called, and what they answer.

use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection};

use super::address::Claiming;
use crate::{
    delivery::{Proposal, Settlement, State, StoreError},
    event::{Attempt, Token},
    route::Route,
};

pub(super) static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claim.lua")));
pub(super) static REGISTER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("register.lua")));
pub(super) static SETTLE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("settle.lua")));
pub(super) static LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease.lua")));
pub(super) static PROBE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("probe.lua")));
pub(super) static KEEP_LETTERS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("keep_letters.lua")));
pub(super) static DROP_LETTERS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("drop_letters.lua")));
pub(super) static NOTE_LETTER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("note_letter.lua")));

/// A script, called by its hash and sent whole only to a Redis that does not know it yet.
pub(super) struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }

    pub(super) async fn call<T: FromRedisValue>(
        &self,
        connection: &mut MultiplexedConnection,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<T, RedisError> {
        let mut by_hash = redis::cmd("EVALSHA");
        by_hash.arg(&self.hash);
        arguments(&mut by_hash);
        match by_hash.query_async(connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let mut whole = redis::cmd("EVAL");
                whole.arg(self.code);
                arguments(&mut whole);
                whole.query_async(connection).await
            }
            answer => answer,
        }
    }
}

/// The arguments of a try of a claim; `touch` writes in-flight entries again.
pub(super) fn claim(
    call: &mut Cmd,
    claiming: &Claiming,
    outbox_limit: usize,
    touch: bool,
    proposals: &[&Proposal],
    attempt: Attempt,
) {
    let Claiming { route, address, .. } = claiming;
    call.arg(3).arg(route.pending_key()).arg(route.outbox_key()).arg(route.addresses_key());
    call.arg(outbox_limit).arg(u8::from(touch)).arg(attempt.address()).arg(address).arg(proposals.len());
    for proposal in proposals {
        let first = proposal.seed.token(attempt, proposal.range.start);
        call.arg(proposal.seed.to_string()).arg(first.index()).arg(proposal.range.len());
    }
    for proposal in proposals {
        for id in proposal.ids() {
            call.arg(id.as_str());
        }
    }
}

/// The answer to a try of a claim: a letter for each id, then the tokens of those in flight.
pub(super) fn read_states(
    answers: &[Value],
    proposals: &[&Proposal],
    attempt: Attempt,
) -> Result<Vec<State>, StoreError> {
    let expected = proposals.iter().map(|proposal| proposal.range.len()).sum::<usize>();
    let states = answers.split_first().and_then(|(letters, tokens)| {
        let Value::BulkString(letters) = letters else { return None };
        let mut tokens = tokens.iter().map(read_token);
        let proposed = proposals.iter().flat_map(|proposal| proposal.tokens(attempt));
        let read = |(letter, proposed): (&u8, Token)| read_state(*letter, proposed, &mut tokens);
        let states: Option<Vec<State>> = letters.iter().zip(proposed).map(read).collect();
        states.filter(|states| states.len() == expected && tokens.next().is_none())
    });
    states.ok_or_else(|| {
        StoreError::Refused(format!("the claim script gave an answer that can't be read for {expected} ids"))
    })
}

fn read_state(letter: u8, proposed: Token, tokens: &mut impl Iterator<Item = Option<Token>>) -> Option<State> {
    match letter {
        b'n' => Some(State::New(proposed)),
        b'd' => Some(State::Done),
        b'f' => Some(State::OutboxFull),
        b'i' => tokens.next()?.map(State::InFlight),
        _ => None,
    }
}

fn read_token(value: &Value) -> Option<Token> {
    let Value::BulkString(token) = value else { return None };
    std::str::from_utf8(token).ok()?.parse().ok()
}

/// The arguments of settling.
pub(super) fn settle(call: &mut Cmd, route: &Route, settlements: &[Settlement]) {
    call.arg(1).arg(route.outbox_key());
    for settlement in settlements {
        call.arg(settlement.id());
    }
    for settlement in settlements {
        settlement.token().with_bytes(|token| {
            call.arg(token);
        });
    }
}
