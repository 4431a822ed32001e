//! The process as the kernel sees it (`/proc`), read at the moment of looking. Elsewhere than on Linux there
//! is nothing to read, and nothing is shown.

use std::{
    fmt,
    fs::{read_dir, read_to_string},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Units of time in `/proc/self/stat`: Linux has shown 100 a second to programs on all its machines since 2.6.
const TICKS_PER_SECOND: f64 = 100.0;

/// Shows the usual series of every process.
#[derive(Debug)]
pub(super) struct Process;

/// What is known of this process.
#[derive(Debug, PartialEq)]
struct Facts {
    cpu_seconds: f64,
    start_time_seconds: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_fds: u64,
    max_fds: Option<u64>,
}

impl Facts {
    fn read() -> Option<Self> {
        let file = |name: &str| read_to_string(format!("/proc/{name}")).ok();
        let (stat, status) = (file("self/stat")?, file("self/status")?);
        // The name of the program, in parentheses, may hold anything.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
        let booted = after(&file("stat")?, "btime ")?.parse::<f64>().ok()?;
        let kibibytes = |name| after(&status, name)?.trim_end_matches(" kB").trim().parse::<u64>().ok();
        let limits = file("self/limits").unwrap_or_default();
        Some(Self {
            cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
            start_time_seconds: booted + ticks(19)? / TICKS_PER_SECOND,
            resident_bytes: 1024 * kibibytes("VmRSS:")?,
            virtual_bytes: 1024 * kibibytes("VmSize:")?,
            // Less the one that looks.
            open_fds: (read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1),
            max_fds: after(&limits, "Max open files").and_then(|line| line.split_whitespace().next()?.parse().ok()),
        })
    }
}

/// What stands behind a name, in its line.
fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(facts) = Facts::read() else { return Ok(()) };
        let cpu = ConstCounter::new(facts.cpu_seconds);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu",
            "Time on the processors, user and system.",
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?)?;
        let start = ConstGauge::new(facts.start_time_seconds);
        start.encode(encoder.encode_descriptor(
            "process_start_time",
            "Start of the process, since 1970.",
            Some(&Unit::Seconds),
            start.metric_type(),
        )?)?;
        for (name, help, unit, value) in [
            ("process_resident_memory", "Memory in use.", Some(Unit::Bytes), Some(facts.resident_bytes)),
            ("process_virtual_memory", "Address space in use.", Some(Unit::Bytes), Some(facts.virtual_bytes)),
            ("process_open_fds", "Open files and sockets.", None, Some(facts.open_fds)),
            ("process_max_fds", "Most files and sockets that may be open.", None, facts.max_fds),
        ] {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, unit.as_ref(), gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_kernel_is_understood() {
        let facts = Facts::read().expect("/proc can be read");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs_f64();
        let age = now - facts.start_time_seconds;
        assert!((-2.0..3600.0).contains(&age), "this test started {age} s ago");
        assert!((0.0..3600.0).contains(&facts.cpu_seconds), "{facts:?}");
        assert!((100_000..1 << 32).contains(&facts.resident_bytes), "{facts:?}");
        assert!(facts.virtual_bytes >= facts.resident_bytes, "{facts:?}");
        assert!((3..1000).contains(&facts.open_fds), "{facts:?}");
        assert!(facts.max_fds.is_none_or(|most| most > facts.open_fds), "{facts:?}");
    }
}
