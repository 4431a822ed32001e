//! A model of EspoCRM's webhook queue. It makes ids, sends them in batches, and acts on each answer as EspoCRM does. What
//! it counts as accepted has to be in the stream.
//!
//! Two things differ from the real one. Minutes are shortened to fractions of a second. A refused connection is tried at
//! the next replica at once, as an ingress does; a connection cut in the middle is not: it counts as status 0, and the
//! batch is sent again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::ErrorKind,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::task::JoinSet;

use super::judge::{Span, Webhook};
use crate::support::{PATH, batch, post, try_exchange};

/// What is sent, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// `EspoCRMs` at work, each sending one batch after the other.
    pub(crate) workers: usize,
    /// Ids of a batch.
    pub(crate) batch: usize,
    /// Bytes that each body has at least; 0: none more than its ids take.
    pub(crate) bytes: usize,
    /// Pause of a worker after an answer.
    pub(crate) pause: Duration,
    /// What stands for the ten minutes before an attempt is repeated.
    pub(crate) retry_after: Duration,
    /// Attempts before a sender gives up; the real one has four in half an hour.
    pub(crate) attempts: usize,
    /// One in so many delivered batches is sent once more, as after an answer that got lost.
    pub(crate) repeat_every: usize,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            workers: 4,
            batch: 10,
            bytes: 0,
            pause: Duration::from_millis(10),
            retry_after: Duration::from_millis(300),
            attempts: 100,
            repeat_every: 5,
        }
    }
}

/// A load that meets answers that take until the deadline.
pub(crate) const PATIENT: Load = Load {
    workers: 16,
    batch: 10,
    bytes: 0,
    pause: Duration::from_millis(10),
    retry_after: Duration::from_millis(300),
    attempts: 100,
    repeat_every: 5,
};

/// Ids that come again: a record of the CRM changes more than once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reuse {
    /// How many there are at a time.
    pub(crate) ids: usize,
    /// How many of a batch are such ones; the others are new.
    pub(crate) of_a_batch: usize,
    /// What the choice of ids is a function of.
    pub(crate) seed: u64,
}

/// Most uses of an id before another one takes its place. Without an end, the next event of an id would hide that the one
/// before is missing.
const MOST_USES: u64 = 40;

/// The ids that come again.
struct Pool {
    dice: Dice,
    /// How many ids had this place before, and how often the present one will come.
    places: Vec<(u64, u64)>,
}

impl Pool {
    fn new(Reuse { ids, seed, .. }: Reuse) -> Self {
        let mut dice = Dice(seed);
        let places = (0..ids).map(|_| (0, dice.roll(1..MOST_USES))).collect();
        Self { dice, places }
    }

    /// Different ids.
    fn draw(&mut self, count: usize) -> Vec<String> {
        let mut drawn = BTreeSet::new();
        while drawn.len() < count.min(self.places.len()) {
            let places = u64::try_from(self.places.len()).expect("few");
            drawn.insert(usize::try_from(self.dice.roll(0..places)).expect("few"));
        }
        let draw = |place: usize| {
            let (before, left) = &mut self.places[place];
            let id = format!("again{place}-{before}");
            *left -= 1;
            if *left == 0 {
                *before += 1;
                *left = self.dice.roll(1..MOST_USES);
            }
            id
        };
        drawn.into_iter().map(draw).collect()
    }
}

/// splitmix64, so that what is chosen is a function of a seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, range: Range<u64>) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start + (mixed ^ (mixed >> 31)) % (range.end - range.start)
    }
}

/// What came of it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sent {
    /// Ids whose batch was answered 2xx, but for those that were taken before.
    pub(crate) accepted: BTreeSet<String>,
    /// Requests that were answered 2xx, but for those that were taken before.
    pub(crate) webhooks: Vec<Webhook>,
    /// How many accepted ids were taken before.
    pub(crate) taken: usize,
    /// Ids that the sender gave up: for good at once, or after its last attempt.
    pub(crate) given_up: BTreeSet<String>,
    /// Claims that answers with 200 have counted as new.
    pub(crate) claimed: u64,
    /// Ids of all requests that were sent, each as often as it was.
    pub(crate) offered: u64,
    /// Answers by status; 0: none.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// The longest time to an answer.
    pub(crate) longest: Duration,
}

/// Counts an answer; `ids` are what it accepts.
pub(crate) fn count(sent: &mut Sent, status: u16, took: Duration, ids: impl IntoIterator<Item = String>) {
    *sent.statuses.entry(status).or_default() += 1;
    sent.longest = sent.longest.max(took);
    if status == 200 {
        sent.accepted.extend(ids);
    }
}

/// A running load.
pub(crate) struct Crm {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
}

struct Shared {
    load: Load,
    replicas: Mutex<Vec<SocketAddr>>,
    next: AtomicUsize,
    made: AtomicUsize,
    stopping: AtomicBool,
    paused: AtomicBool,
    pool: Option<(Reuse, Mutex<Pool>)>,
    sent: Mutex<Sent>,
}

struct Batch {
    ids: Vec<String>,
    attempts: usize,
    due: Instant,
}

impl Crm {
    /// Starts to send to replicas in turn.
    pub(crate) fn start(replicas: Vec<SocketAddr>, load: Load) -> Self {
        Self::reusing(replicas, load, None)
    }

    /// The same with ids that come again.
    pub(crate) fn reusing(replicas: Vec<SocketAddr>, load: Load, reuse: Option<Reuse>) -> Self {
        let shared = Arc::new(Shared {
            load,
            replicas: Mutex::new(replicas),
            next: AtomicUsize::new(0),
            made: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            pool: reuse.map(|reuse| (reuse, Mutex::new(Pool::new(reuse)))),
            sent: Mutex::default(),
        });
        let mut workers = JoinSet::new();
        for worker in 0..load.workers {
            workers.spawn(work(Arc::clone(&shared), worker));
        }
        Self { shared, workers }
    }

    /// Who takes webhooks from now on.
    pub(crate) fn aim(&self, replicas: Vec<SocketAddr>) {
        *lock(&self.shared.replicas) = replicas;
    }

    /// Ids accepted so far; one that came again after it was taken counts again.
    pub(crate) fn accepted(&self) -> usize {
        let sent = lock(&self.shared.sent);
        sent.taken + sent.accepted.len()
    }

    /// Takes what was accepted so far, so that it does not fill the memory.
    pub(crate) fn take(&self) -> Vec<Webhook> {
        let mut sent = lock(&self.shared.sent);
        sent.taken += std::mem::take(&mut sent.accepted).len();
        std::mem::take(&mut sent.webhooks)
    }

    /// Answers with this status so far.
    pub(crate) fn answered(&self, status: u16) -> u64 {
        lock(&self.shared.sent).statuses.get(&status).copied().unwrap_or(0)
    }

    /// Whether new ids are made.
    pub(crate) fn pause(&self, paused: bool) {
        self.shared.paused.store(paused, Ordering::SeqCst);
    }

    /// Makes no more ids, waits until what is queued is settled, and says what came of it.
    pub(crate) async fn finish(mut self) -> Sent {
        self.shared.stopping.store(true, Ordering::SeqCst);
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("a worker of the CRM model ends");
        }
        lock(&self.shared.sent).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn work(shared: Arc<Shared>, worker: usize) {
    let load = shared.load;
    let mut waiting: VecDeque<Batch> = VecDeque::new();
    let mut delivered = 0_usize;
    loop {
        let stopping = shared.stopping.load(Ordering::SeqCst);
        let mut next = match waiting.front() {
            Some(first) if first.due <= Instant::now() => waiting.pop_front().expect("it has a front"),
            // A sender with much to repeat makes nothing new, and the load of an outage stays bounded.
            _ if !stopping && !shared.paused.load(Ordering::SeqCst) && waiting.len() < 20 => {
                let mut ids =
                    shared.pool.as_ref().map_or_else(Vec::new, |(reuse, pool)| lock(pool).draw(reuse.of_a_batch));
                let new = || format!("w{worker}-{}", shared.made.fetch_add(1, Ordering::Relaxed));
                ids.resize_with(load.batch, new);
                Batch { ids, attempts: 0, due: Instant::now() }
            }
            Some(first) => {
                tokio::time::sleep_until(first.due.into()).await;
                continue;
            }
            None if stopping => return,
            None => {
                tokio::time::sleep(load.pause).await;
                continue;
            }
        };
        let body = padded(batch(&next.ids), load.bytes);
        let verdict = send(&shared, &next.ids, &body).await.map_or(Verdict::Again, decide);
        next.attempts += 1;
        match verdict {
            Verdict::Delivered => {
                lock(&shared.sent).accepted.extend(next.ids.iter().cloned());
                delivered += 1;
                if load.repeat_every > 0 && delivered.is_multiple_of(load.repeat_every) {
                    send(&shared, &next.ids, &body).await;
                }
            }
            Verdict::Again if next.attempts < load.attempts => {
                next.due = Instant::now() + load.retry_after;
                waiting.push_back(next);
            }
            Verdict::Again | Verdict::GiveUp => lock(&shared.sent).given_up.extend(next.ids),
        }
        tokio::time::sleep(load.pause).await;
    }
}

/// Pads the first record with an attribute that hookgate skips.
fn padded(body: String, bytes: usize) -> String {
    let missing = bytes.saturating_sub(body.len());
    if missing == 0 { body } else { body.replacen('{', &format!("{{\"note\":\"{}\",", "x".repeat(missing)), 1) }
}

enum Verdict {
    Delivered,
    Again,
    GiveUp,
}

/// The decision table of `EspoCRM`, read in its source.
const fn decide(status: u16) -> Verdict {
    match status {
        200..=399 => Verdict::Delivered,
        0 | 401 | 403 | 404 | 405 | 408 | 500 | 503 => Verdict::Again,
        _ => Verdict::GiveUp,
    }
}

/// Sends a batch to the next replica that takes connections; the status, 0 for a connection that was cut.
/// `None` without a replica: an ingress would answer 503.
async fn send(shared: &Shared, ids: &[String], body: &str) -> Option<u16> {
    let request = post(PATH, body.as_bytes());
    let replicas = lock(&shared.replicas).clone();
    let first = shared.next.fetch_add(1, Ordering::Relaxed);
    let began = Instant::now();
    let mut answer = None;
    let mut claimed = 0;
    let mut from = SystemTime::now();
    for turn in 0..replicas.len() {
        from = SystemTime::now();
        answer = match try_exchange(replicas[(first + turn) % replicas.len()], &request).await {
            Ok(answer) => {
                if answer.status == 200 {
                    claimed = answer.counts().0;
                }
                Some(answer.status)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
            Err(_cut) => Some(0),
        };
        break;
    }
    let status = answer?;
    let mut sent = lock(&shared.sent);
    if matches!(decide(status), Verdict::Delivered) {
        sent.webhooks.push(Webhook { ids: ids.to_vec(), time: Span { from, to: SystemTime::now() } });
    }
    *sent.statuses.entry(status).or_default() += 1;
    sent.claimed += claimed;
    sent.offered += u64::try_from(ids.len()).expect("few");
    sent.longest = sent.longest.max(began.elapsed());
    Some(status)
}
