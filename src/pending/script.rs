//! The Lua scripts, and how they are called.

use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, aio::MultiplexedConnection};

use crate::{
    pipeline::{Proposal, Settlement},
    route::Route,
};

pub(super) static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claim.lua")));
pub(super) static SETTLE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("settle.lua")));
pub(super) static LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease.lua")));
pub(super) static PROBE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("probe.lua")));
pub(super) static BURY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("bury.lua")));

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

/// The arguments of a claim; `touch` writes in-flight entries again.
pub(super) fn claim(call: &mut Cmd, route: &Route, outbox_limit: usize, touch: bool, proposals: &[&Proposal]) {
    call.arg(2).arg(route.pending_key()).arg(route.outbox_key()).arg(outbox_limit).arg(u8::from(touch));
    for proposal in proposals {
        call.arg(proposal.seed.to_string()).arg(proposal.range.start).arg(proposal.range.len());
        for (id, _) in proposal.ids() {
            call.arg(id.as_str());
        }
    }
}

/// The arguments of settling.
pub(super) fn settle(call: &mut Cmd, route: &Route, settlements: &[Settlement]) {
    call.arg(1).arg(route.outbox_key());
    for settlement in settlements {
        call.arg(settlement.id());
        settlement.token().with_text(|token| {
            call.arg(token);
        });
    }
}
