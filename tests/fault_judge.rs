//! The judge of the fault suite finds lost events: a table of histories, and the verdict on each.

#[allow(dead_code, reason = "faults.rs uses the rest")]
#[path = "faults/judge.rs"]
mod judge;

use std::time::{Duration, SystemTime};

use self::judge::{History, Span, Webhook, What, WhilePending};

/// In milliseconds: `Webhook(sent, answered)`, `Event(stored)`, `Release(began, confirmed)`, `LostRelease(began)`,
/// `Wipe(began, ended)`.
#[derive(Debug, Clone, Copy)]
enum Happened {
    Webhook(u64, u64),
    Event(u64),
    Release(u64, u64),
    LostRelease(u64),
    Wipe(u64, u64),
}
use Happened::{Event, LostRelease, Release, Wipe};

const fn hook(sent: u64, answered: u64) -> Happened {
    Happened::Webhook(sent, answered)
}

struct Case {
    name: &'static str,
    mode: WhilePending,
    happened: &'static [Happened],
    /// When the last fault ended.
    faults_ended: u64,
    /// The violations, by the time that their request was sent.
    violations: &'static [(u64, What)],
}

const SKIP: Case = Case { name: "", mode: WhilePending::Skip, happened: &[], faults_ended: 0, violations: &[] };

const fn swallowed(sent: u64) -> (u64, What) {
    (sent, What::Swallowed)
}

const fn late(sent: u64, millis: u64) -> (u64, What) {
    (sent, What::Late(Duration::from_millis(millis)))
}

const CASES: &[Case] = &[
    Case { name: "announced between request and answer", happened: &[hook(100, 200), Event(150)], ..SKIP },
    Case { name: "announced after the answer", happened: &[hook(100, 200), Event(45_200)], ..SKIP },
    Case { name: "swallowed, never an event", happened: &[hook(100, 200)], violations: &[swallowed(100)], ..SKIP },
    Case {
        name: "event too late",
        happened: &[hook(100, 200), Event(45_201)],
        violations: &[late(100, 45_001)],
        ..SKIP
    },
    Case {
        name: "in time after the last fault",
        happened: &[hook(100, 200), Event(100_000)],
        faults_ended: 60_000,
        ..SKIP
    },
    Case {
        name: "too late after the last fault",
        happened: &[hook(100, 200), Event(105_001)],
        faults_ended: 60_000,
        violations: &[late(100, 104_801)],
        ..SKIP
    },
    Case { name: "pending all the while", happened: &[hook(100, 200), Event(150), hook(300, 400)], ..SKIP },
    Case {
        name: "pending all the while, in a mode that publishes: event before the request",
        mode: WhilePending::Publish,
        happened: &[hook(100, 200), Event(150), hook(300, 400)],
        violations: &[swallowed(300)],
        ..SKIP
    },
    Case {
        name: "event before the request, released in between: swallowed",
        happened: &[hook(100, 200), Event(150), Release(210, 220), hook(300, 400), hook(500, 600)],
        violations: &[swallowed(300), swallowed(500)],
        ..SKIP
    },
    Case {
        name: "released in between, and claimed anew",
        happened: &[hook(100, 200), Event(150), Release(210, 220), hook(300, 400), Event(350), hook(500, 600)],
        ..SKIP
    },
    Case {
        name: "claimed anew by another webhook, whose event covers the one before it too",
        happened: &[hook(100, 200), Event(150), Release(210, 220), hook(300, 400), hook(310, 500), Event(320)],
        ..SKIP
    },
    Case {
        name: "released during the request: its claim may have come first",
        happened: &[hook(100, 200), Event(150), hook(300, 400), Release(310, 320)],
        ..SKIP
    },
    Case {
        name: "the release began before the request and ended during it",
        happened: &[hook(100, 200), Event(150), Release(290, 310), hook(300, 400)],
        ..SKIP
    },
    Case {
        name: "the release began before the last event: it may be of the claim before",
        happened: &[hook(100, 200), Event(150), Release(210, 280), hook(220, 260), Event(250), hook(300, 400)],
        ..SKIP
    },
    Case {
        name: "the answer of the release got lost: it may come at any time",
        happened: &[hook(100, 200), Event(150), LostRelease(210), hook(300, 400)],
        ..SKIP
    },
    Case {
        name: "the answer of the release got lost, and a later one was confirmed",
        happened: &[hook(100, 200), Event(150), LostRelease(210), hook(300, 400), Release(410, 420), hook(500, 600)],
        violations: &[swallowed(500)],
        ..SKIP
    },
    Case {
        name: "an event that went out without a claim, consumed before the claim was carried out: later ones are swallowed",
        happened: &[hook(100, 700), Event(600), Release(650, 660), hook(800, 810), hook(900, 910)],
        violations: &[swallowed(800), swallowed(900)],
        ..SKIP
    },
    Case {
        name: "Redis lost everything in between",
        happened: &[hook(100, 200), Event(150), Wipe(210, 250), hook(300, 400)],
        violations: &[swallowed(300)],
        ..SKIP
    },
    Case {
        name: "the clock was set back by a little",
        happened: &[hook(100, 200), Event(150), Release(210, 220), hook(300, 400), Event(297)],
        ..SKIP
    },
];

fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

fn tell(history: &mut History, happened: Happened) {
    let span = |from, to| Span { from: at(from), to: at(to) };
    match happened {
        Happened::Webhook(sent, answered) => {
            history.webhook(Webhook { ids: vec!["id".to_owned()], time: span(sent, answered) });
        }
        Event(stored) => history.event("id", at(stored)),
        Release(began, confirmed) => history.release("id", at(began), Some(at(confirmed))),
        LostRelease(began) => history.release("id", at(began), None),
        Wipe(began, ended) => history.wipe(span(began, ended)),
    }
}

/// What has happened by then, in the order in which the suite hears of it.
const fn heard(happened: Happened) -> u64 {
    match happened {
        Happened::Webhook(_, heard) | Event(heard) | Release(_, heard) | LostRelease(heard) | Wipe(_, heard) => heard,
    }
}

/// When it began.
const fn began(happened: Happened) -> u64 {
    match happened {
        Happened::Webhook(began, _) | Event(began) | Release(began, _) | LostRelease(began) | Wipe(began, _) => began,
    }
}

#[test]
fn the_judge_finds_what_a_history_hides() {
    for Case { name, mode, happened, faults_ended, violations } in CASES {
        // With everything remembered; and with all forgotten at each step that need not be remembered, ages later if
        // nothing is going on.
        for forgets in [false, true] {
            let mut in_order = happened.to_vec();
            in_order.sort_by_key(|happened| heard(*happened));
            let mut history = History::default();
            for (place, happened) in in_order.iter().enumerate() {
                tell(&mut history, *happened);
                let now = heard(*happened);
                let quiet = in_order[place + 1..].iter().all(|later| began(*later) > now);
                let ages = Duration::from_secs(if quiet { 100_000 } else { 0 });
                if forgets {
                    history.forget(*mode, Some(at(*faults_ended)), at(now) + ages);
                }
            }
            let found = history.violations(*mode, at(*faults_ended));
            let found: Vec<_> = found.into_iter().map(|violation| (violation.webhook.from, violation.what)).collect();
            let expected: Vec<_> = violations.iter().map(|(sent, what)| (at(*sent), *what)).collect();
            assert_eq!(found, expected, "{name} (forgets: {forgets})");
        }
    }
}
