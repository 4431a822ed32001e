//! The wall clock of hookgate's machine is set back and forward. Only times shown to people may follow it.
//!
//! libfaketime changes the wall clock. Time-outs, ages and leases use the monotonic clock, which it leaves alone.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use super::{
    crm::Load,
    rig::{Bounds, Report, Rig, demand},
};
use crate::{
    Scenario, scenario,
    support::{OUTBOX, binary},
};

/// The scenarios of this file.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![scenario!(clock_stepped_back_and_forward)]
}

pub(super) const HOUR: i64 = 3600;

/// A clock of the day that can be set.
pub(super) struct Clock {
    files: TempDir,
}

impl Clock {
    pub(super) fn new() -> Self {
        let clock = Self { files: tempfile::tempdir().expect("a temporary folder can be made") };
        clock.set(0);
        clock
    }

    fn file(&self) -> PathBuf {
        self.files.path().join("clock")
    }

    /// Sets the offset in seconds for every process that uses it.
    pub(super) fn set(&self, seconds: i64) {
        let next = self.files.path().join("next");
        std::fs::write(&next, format!("{seconds:+}\n")).expect("the folder is ours");
        // In one step: it is read all the time.
        std::fs::rename(next, self.file()).expect("the folder is ours");
    }

    /// For who is to have it.
    pub(super) fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("LD_PRELOAD", library()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().into_os_string()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("DONT_FAKE_MONOTONIC", "1".into()),
        ]
    }
}

/// Debian's, in the folder of this machine's architecture, unless the environment names another.
fn library() -> OsString {
    let folders = std::fs::read_dir("/usr/lib").expect("every system has it").map_while(Result::ok);
    let mut found =
        folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).filter(|file| file.exists());
    let usual = found.next().unwrap_or_else(|| "libfaketime is missing: scripts/ensure-tools.sh faults".into());
    binary("HOOKGATE_FAKETIME", usual)
}

/// An hour back, to the right time, an hour forward, and back again; each step in full work, and once more
/// while the outbox of a dead NATS waits for the relay.
async fn clock_stepped_back_and_forward() -> Report {
    let clock = Clock::new();
    let began = SystemTime::now();
    let mut rig = Rig::start(0, "").await;
    for _ in 0..2 {
        let gate = rig.world.gate_in(rig.settings(), &clock.environment()).await;
        rig.gates.push(gate);
    }
    let crm = rig.load(Load::default());
    for offset in [0, -HOUR, 0, HOUR, 0] {
        clock.set(offset);
        rig.progress(&crm, 300).await;
    }
    let refused = crm.answered(503);
    for offset in [-HOUR, HOUR, 0] {
        rig.world.nats.kill();
        super::redis::refusals(&crm, 4).await;
        crm.aim(Vec::new());
        clock.set(offset);
        rig.world.nats.start_again().await;
        // The relay's work alone, by ages that no step may make younger or older.
        rig.world.redis.settled(OUTBOX).await;
        crm.aim(rig.addresses());
        rig.progress(&crm, 100).await;
    }
    let mut report = rig.verdict(crm, Bounds::default()).await;
    let ended = SystemTime::now();
    demand(&mut report, refused == 0, format!("{refused} batches were refused; only the clock was set"));

    // Each event has the time that the clock showed then.
    let mut seen = BTreeSet::new();
    for event in rig.oracle.events() {
        let payload: serde_json::Value = serde_json::from_str(&event.payload).expect("the payload is JSON");
        let text = payload["timestamp"].as_str().unwrap_or_default();
        let time = humantime::parse_rfc3339(text).ok().filter(|_| text.len() == "2026-02-07T10:00:00.123Z".len());
        let shown = time.and_then(|time| {
            [-HOUR, 0, HOUR].into_iter().find(|offset| {
                let shift = |time: SystemTime| match u64::try_from(*offset) {
                    Ok(seconds) => time + Duration::from_secs(seconds),
                    Err(_) => time - Duration::from_secs(offset.unsigned_abs()),
                };
                shift(began) - Duration::from_secs(1) <= time && time <= shift(ended)
            })
        });
        demand(&mut report, shown.is_some(), format!("{} has the timestamp {text:?}", event.entity_id()));
        seen.extend(shown);
    }
    demand(&mut report, seen.len() == 3, format!("events have times of the clocks {seen:?} only"));
    report
}
