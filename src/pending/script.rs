//! The Lua scripts, how they are called, and what they answer.

use std::{sync::LazyLock, time::SystemTime};

use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, Value};

use super::{address::Claiming, connection::Connection};
use crate::{
    delivery::{Proposal, Settlement, State, StoreError},
    event::{Attempt, Token},
    route::{OnGiveUp, Release, Route, WhilePending},
};

pub(super) static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claim.lua")));
pub(super) static REGISTER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("register.lua")));
pub(super) static SETTLE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("settle.lua")));
pub(super) static RELEASE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("life.lua"), include_str!("release.lua"))));
pub(super) static ANSWER: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("life.lua"), include_str!("answer.lua"))));
pub(super) static RECLAIM: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("life.lua"), include_str!("reclaim.lua"))));
pub(super) static LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease.lua")));
pub(super) static PROBE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("probe.lua")));
pub(super) static KEEP_GIVEN_UP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("keep_given_up.lua")));
pub(super) static KEEP_LETTERS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("keep_letters.lua")));
pub(super) static KEEP_CAPTURED: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("keep_captured.lua")));
pub(super) static DROP_CAPTURED: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("drop_captured.lua")));
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
        connection: &mut Connection,
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

/// The arguments of a try of a claim, as `attempt` numbers it for each proposal; `touch` writes in-flight entries again.
pub(super) fn claim(
    call: &mut Cmd,
    claiming: &Claiming,
    outbox_limit: usize,
    touch: bool,
    proposals: &[&Proposal],
    attempt: impl Fn(&Proposal) -> Attempt,
    number: usize,
) {
    let Claiming { route, address, .. } = claiming;
    let life = route.life();
    call.arg(if life.journal { 5 } else { 3 });
    call.arg(route.pending_key()).arg(route.outbox_key()).arg(route.addresses_key());
    if life.journal {
        call.arg(route.journal_key()).arg(route.marks_key());
    }
    let keeps = life.while_pending == WhilePending::Coalesce && life.on_give_up == OnGiveUp::Keep;
    let answering = if keeps && life.release == Release::Ack { life.consumers.join(",") } else { String::new() };
    call.arg(outbox_limit).arg(u8::from(touch)).arg(number).arg(address);
    call.arg(now_millis()).arg(answering).arg(proposals.len());
    for proposal in proposals {
        let first = proposal.seed.token(attempt(proposal), proposal.range.start);
        call.arg(proposal.seed.to_string()).arg(first.index()).arg(proposal.range.len());
        call.arg(match proposal.while_pending {
            WhilePending::Skip => "s",
            WhilePending::Publish => "p",
            WhilePending::Coalesce => "c",
        });
    }
    for proposal in proposals {
        for id in proposal.ids() {
            call.arg(id.as_str());
        }
    }
}

/// Milliseconds since 1970.
pub(super) fn now_millis() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The answer to a try of a claim: a letter for each id, then the tokens of those in flight.
pub(super) fn read_states(
    answers: &[Value],
    proposals: &[&Proposal],
    attempt: impl Fn(&Proposal) -> Attempt,
) -> Result<Vec<State>, StoreError> {
    let expected = proposals.iter().map(|proposal| proposal.range.len()).sum::<usize>();
    let states = answers.split_first().and_then(|(letters, tokens)| {
        let Value::BulkString(letters) = letters else { return None };
        let mut tokens = tokens.iter().map(read_token);
        let proposed = proposals.iter().flat_map(|proposal| proposal.tokens(attempt(proposal)));
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
        b'm' => Some(State::Marked),
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
    if route.life().journal {
        call.arg(2).arg(route.outbox_key()).arg(route.journal_key());
    } else {
        call.arg(1).arg(route.outbox_key());
    }
    for settlement in settlements {
        call.arg(settlement.id());
    }
    for settlement in settlements {
        settlement.token().with_bytes(|token| {
            call.arg(token);
        });
    }
    if route.life().journal {
        let sequence = |settlement: &Settlement| {
            settlement.sequence().map_or_else(|| "-".to_owned(), |sequence| sequence.to_string())
        };
        call.arg(settlements.iter().map(sequence).collect::<Vec<_>>().join(" "));
    }
}
