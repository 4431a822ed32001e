//! What to send: `name=value` words.

use std::{net::SocketAddr, time::Duration};

/// How a run goes.
pub(crate) struct Arguments {
    pub(crate) address: SocketAddr,
    pub(crate) connections: usize,
    /// Records of a request.
    pub(crate) batch: usize,
    /// How long requests are sent; their answers are awaited beyond it.
    pub(crate) time: Duration,
    /// What of the time does not count for throughput, at its start.
    pub(crate) settle: Duration,
    /// Most requests.
    pub(crate) requests: u64,
    /// Requests a second that fall due; `None`: each connection sends when it is answered.
    pub(crate) rate: Option<f64>,
    /// Whether half of the ids are ones that were accepted before.
    pub(crate) duplicates: bool,
    /// The start of every id, different for each run.
    pub(crate) nonce: u32,
}

impl Arguments {
    /// Reads the words after the program's name.
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut address = None;
        let mut read = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            connections: 1,
            batch: 1,
            time: Duration::from_secs(1),
            settle: Duration::ZERO,
            requests: u64::MAX,
            rate: None,
            duplicates: false,
            nonce: 0,
        };
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is not name=value"))?;
            match name {
                "address" => address = Some(number(name, value)?),
                "connections" => read.connections = number(name, value)?,
                "batch" => read.batch = number(name, value)?,
                "seconds" => read.time = seconds(name, value)?,
                "settle" => read.settle = seconds(name, value)?,
                "requests" => read.requests = number(name, value)?,
                "rate" => read.rate = Some(number(name, value)?),
                "duplicates" => read.duplicates = number(name, value)?,
                "nonce" => read.nonce = number(name, value)?,
                _ => return Err(format!("{name:?} is no argument")),
            }
        }
        read.address = address.ok_or("address=127.0.0.1:PORT is missing")?;
        if !read.address.ip().is_loopback() {
            return Err(format!("{} is not this machine: only loopback is loaded", read.address));
        }
        let bounds = [
            ("connections", read.connections, 16_384),
            ("batch", read.batch, 1000),
            ("seconds", usize::try_from(read.time.as_secs()).unwrap_or(usize::MAX).max(1), 600),
        ];
        for (name, value, limit) in bounds {
            if !(1..=limit).contains(&value) {
                return Err(format!("{name}={value} is not between 1 and {limit}"));
            }
        }
        if read.rate.is_some_and(|rate| !(rate > 0.0 && rate <= 1e6)) {
            return Err("rate is not between 0 and 1000000 requests a second".into());
        }
        if read.settle >= read.time {
            return Err("settle leaves nothing of seconds".into());
        }
        Ok(read)
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{name}={value:?} can't be read"))
}

fn seconds(name: &str, value: &str) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number(name, value)?).map_err(|error| format!("{name}={value}: {error}"))
}
