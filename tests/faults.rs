//! The proof that nothing accepted is lost: real processes are killed, frozen, cut off and wiped under load from a
//! model of the CRM, and then everything is counted. `make faults` runs all of it and prints a table; `--quick` is
//! the part that `make test` runs.
//!
//! Processes are killed at random and at each named point (`src/failpoint.rs`). Storms (`faults/storm.rs`) roll dice
//! over three replicas, both stores and the wires to them. Other scenarios: a cluster of three NATS servers whose
//! leader dies and whose servers are restarted in turn, a Redis whose machine loses power (`faults/synced.c` records
//! what was on its disk), and a clock that is set back under hookgate (libfaketime). `tests/servers/run` repeats the
//! behaviours and the quick part on recent servers; everything else takes Debian's, but for one Redis that knows
//! WAITAOF.
//!
//! A scenario is a function that returns a [`Report`]; the invariants are in `faults/rig.rs`.

mod faults {
    pub(crate) mod accept_without_nats;
    pub(crate) mod addresses;
    pub(crate) mod both_stores;
    pub(crate) mod clock;
    pub(crate) mod cluster;
    pub(crate) mod consumers;
    pub(crate) mod crm;
    pub(crate) mod disk;
    pub(crate) mod drain_and_disconnect;
    pub(crate) mod failover;
    pub(crate) mod given_up;
    pub(crate) mod ingress;
    pub(crate) mod jetstream;
    pub(crate) mod judge;
    pub(crate) mod late_claims;
    pub(crate) mod life;
    pub(crate) mod life_changes;
    pub(crate) mod life_storm;
    pub(crate) mod migration;
    pub(crate) mod nats;
    pub(crate) mod oracle;
    pub(crate) mod overload;
    pub(crate) mod process;
    pub(crate) mod redis;
    pub(crate) mod redis_cluster;
    pub(crate) mod redis_sentinel;
    pub(crate) mod redis_takes_no_writes;
    pub(crate) mod reload;
    pub(crate) mod rig;
    pub(crate) mod rollout;
    pub(crate) mod storm;
    pub(crate) mod wire;
}
#[allow(dead_code, unused_imports, reason = "shared with behaviour.rs, which uses the rest")]
mod support;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use faults::rig::Report;
use tokio::task::JoinSet;

/// Longest time of a scenario.
const LIMIT: Duration = Duration::from_secs(240);
/// Scenarios at once, unless `--jobs` says otherwise: most of the time they wait.
const JOBS: usize = 3;

/// A scenario by its name.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the scenario! macro")]
pub(crate) struct Scenario {
    name: &'static str,
    /// Part of `--quick`.
    quick: bool,
    /// Has the machine to itself: it measures time, or needs a port or a name that is there once.
    alone: bool,
    /// Goes on for as long as `--minutes` says.
    long: bool,
    /// Runs replicas of 0.1.0, too.
    older: bool,
    /// Runs the consumers of examples/.
    consumers: bool,
    run: fn() -> Report,
}

/// `scenario!(name)`, `scenario!(name, quick)`, `scenario!(name, alone)`: a function of this module.
macro_rules! scenario {
    ($name:ident $(, $flag:ident)*) => {{
        #[allow(unused_mut, reason = "not every scenario has a flag")]
        let mut scenario = $crate::Scenario {
            name: stringify!($name),
            quick: false,
            alone: false,
            long: false,
            older: false,
            consumers: false,
            run: || $crate::to_its_end($name()),
        };
        $( scenario.$flag = true; )*
        scenario
    }};
}
pub(crate) use scenario;

/// Runs a scenario on a thread and a runtime of its own: its processes die with the thread.
fn to_its_end<T>(scenario: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be started").block_on(scenario)
}

fn scenarios() -> Vec<Scenario> {
    let files = [
        faults::process::scenarios(),
        faults::nats::scenarios(),
        faults::redis::scenarios(),
        faults::redis_sentinel::scenarios(),
        faults::redis_cluster::scenarios(),
        faults::both_stores::scenarios(),
        faults::accept_without_nats::scenarios(),
        faults::clock::scenarios(),
        faults::cluster::scenarios(),
        faults::jetstream::scenarios(),
        faults::drain_and_disconnect::scenarios(),
        faults::overload::scenarios(),
        faults::redis_takes_no_writes::scenarios(),
        faults::ingress::scenarios(),
        faults::storm::scenarios(),
        faults::life::scenarios(),
        faults::life_storm::scenarios(),
        faults::life_changes::scenarios(),
        faults::late_claims::scenarios(),
        faults::addresses::scenarios(),
        faults::rollout::scenarios(),
        faults::reload::scenarios(),
        faults::given_up::scenarios(),
        faults::migration::scenarios(),
    ];
    files.into_iter().flatten().collect()
}

fn main() -> ExitCode {
    let mut quick = false;
    let mut jobs = JOBS;
    let mut names = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            // Under k8s/privileges. For the quick ones: others set up servers, users or flows of their own.
            "--privileges" => support::privileged::want(),
            "--jobs" => jobs = arguments.next().and_then(|jobs| jobs.parse().ok()).unwrap_or(JOBS).max(1),
            "--seed" => {
                let Some(seed) = arguments.next().and_then(|seed| seed.parse().ok()) else {
                    eprintln!("faults: --seed wants the number of a row");
                    return ExitCode::from(2);
                };
                faults::storm::seed(seed);
            }
            "--minutes" => {
                let Some(minutes) = arguments.next().and_then(|minutes| minutes.parse().ok()) else {
                    eprintln!("faults: --minutes wants a number");
                    return ExitCode::from(2);
                };
                faults::storm::minutes(minutes);
            }
            // A process of `faults/migration.rs`, which kills it.
            "--step" => {
                to_its_end(faults::migration::step(&arguments.next().expect("the address of its Redis")));
                return ExitCode::SUCCESS;
            }
            "--ids" => {
                let Some(ids) = arguments.next().and_then(|ids| ids.parse().ok()) else {
                    eprintln!("faults: --ids wants a number");
                    return ExitCode::from(2);
                };
                faults::life_storm::ids(ids);
            }
            "--list" => {
                for scenario in scenarios() {
                    println!("{}{}", scenario.name, if scenario.quick { " (quick)" } else { "" });
                }
                return ExitCode::SUCCESS;
            }
            name if !name.starts_with('-') => names.push(name.to_owned()),
            other => {
                eprintln!(
                    "faults: {other} is none of --quick, --privileges, --jobs N, --seed N, --minutes N, --ids N, --list, or part of a scenario's name"
                );
                return ExitCode::from(2);
            }
        }
    }
    let chosen: Vec<_> = scenarios()
        .into_iter()
        .filter(|scenario| !quick || scenario.quick)
        .filter(|scenario| names.is_empty() || names.iter().any(|name| scenario.name.contains(name.as_str())))
        .collect();
    // Outside the time that a scenario has.
    if chosen.iter().any(|scenario| scenario.older) {
        faults::addresses::older_binary();
    }
    if chosen.iter().any(|scenario| scenario.consumers) {
        faults::consumers::prepare();
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be started");
    let began = Instant::now();
    let (passed, failed) = runtime.block_on(run(chosen, jobs));
    // A scenario that did not end is not waited for.
    runtime.shutdown_background();
    println!("\n{passed} passed, {failed} failed");
    eprintln!("faults: {:.0?}", began.elapsed());
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs scenarios, some at once, those that want to be alone at the end; prints each as it ends.
async fn run(chosen: Vec<Scenario>, jobs: usize) -> (usize, usize) {
    println!(
        "{:<44} {:>8} {:>5} {:>5} {:>10} {:>8} {:>6}  statuses",
        "scenario", "accepted", "lost", "stuck", "duplicates", "longest", "time"
    );
    let mut results = (0, 0);
    let (alone, together): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|scenario| scenario.alone);
    for (queue, jobs) in [(together, jobs), (alone, 1)] {
        let mut queue = queue.into_iter();
        let mut running = JoinSet::new();
        loop {
            while running.len() < jobs
                && let Some(scenario) = queue.next()
            {
                running.spawn(one(scenario));
            }
            match running.join_next().await {
                None => break,
                Some(Ok(true)) => results.0 += 1,
                Some(Ok(false) | Err(_)) => results.1 += 1,
            }
        }
    }
    results
}

/// Runs a scenario and prints its row; whether it holds.
async fn one(scenario: Scenario) -> bool {
    let began = Instant::now();
    let mut task = JoinSet::new();
    task.spawn_blocking(scenario.run);
    let longer = faults::storm::length().unwrap_or_default() + faults::life_storm::longer();
    let limit = if scenario.long { LIMIT + longer } else { LIMIT };
    let outcome = tokio::time::timeout(limit, task.join_next()).await;
    let took = began.elapsed();
    let report = match outcome {
        Ok(Some(Ok(report))) => report,
        Ok(Some(Err(panic))) => {
            Report { violations: vec![format!("did not come to its end: {panic}")], ..Report::default() }
        }
        Ok(None) | Err(_) => Report { violations: vec![format!("took longer than {limit:?}")], ..Report::default() },
    };
    let Report { accepted, lost, stuck, duplicates, statuses, longest, violations } = report;
    println!(
        "{:<44} {accepted:>8} {lost:>5} {stuck:>5} {duplicates:>10} {:>8} {:>6}  {statuses}",
        scenario.name,
        format!("{:.1}s", longest.as_secs_f64()),
        format!("{:.0}s", took.as_secs_f64()),
    );
    for violation in &violations {
        println!("    FAILED: {violation}");
    }
    violations.is_empty()
}
