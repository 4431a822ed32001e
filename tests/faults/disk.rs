//! A Redis whose machine can lose power: what was written and not synced is then gone.

use std::{
    collections::HashMap, ffi::OsString, fs::OpenOptions, os::unix::fs::MetadataExt, path::PathBuf, process::Command,
};

use tempfile::TempDir;

use crate::support::{RedisServer, binary};

/// Where `scripts/ensure-tools.sh faults` puts a Redis that knows WAITAOF.
const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/redis-server-aof");

/// The record of what each sync has brought to the disk.
pub(super) struct Disk {
    files: TempDir,
}

impl Disk {
    /// Redis 7.2 or newer, with every sync of it on record.
    pub(super) async fn redis() -> (RedisServer, Self) {
        let files = tempfile::tempdir().expect("a temporary folder can be made");
        let library = files.path().join("synced.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/synced.c");
        let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(source).status();
        assert!(compiled.expect("there is a C compiler").success(), "{source} compiles");
        let disk = Self { files };
        let environment = vec![("LD_PRELOAD", library.into_os_string()), ("SYNCED", disk.record().into_os_string())];
        let program: OsString = binary("HOOKGATE_REDIS_AOF_SERVER", SERVER);
        (RedisServer::of(program, environment).await, disk)
    }

    fn record(&self) -> PathBuf {
        self.files.path().join("synced")
    }

    /// The disk hangs, or works again: writes go on, and no sync comes to its end.
    pub(super) fn hang(&self, hangs: bool) {
        let hold = self.files.path().join("synced.hold");
        let done = if hangs { std::fs::write(hold, "") } else { std::fs::remove_file(hold) };
        done.expect("the folder is ours");
    }

    /// Ends Redis as the end of its machine does; how many bytes of its append-only file were not on the disk.
    pub(super) fn lose_power(&self, redis: &mut RedisServer) -> u64 {
        redis.kill();
        let record = std::fs::read_to_string(self.record()).expect("Redis has synced something");
        let synced = record.lines().filter_map(|line| {
            let (inode, bytes) = line.split_once(' ')?;
            Some((inode.parse::<u64>().ok()?, bytes.parse::<u64>().ok()?))
        });
        let synced: HashMap<_, _> = synced.collect();
        let folder = std::fs::read_dir(redis.folder().join("appendonlydir")).expect("Redis keeps its files there");
        let mut lost = 0;
        for file in folder.map(|entry| entry.expect("the folder can be read").path()) {
            // The others are written whole, and synced before they get their names.
            if file.to_string_lossy().ends_with(".incr.aof") {
                let file = OpenOptions::new().write(true).open(file).expect("it is ours");
                let now = file.metadata().expect("it is there");
                let kept = synced.get(&now.ino()).copied().unwrap_or(0);
                file.set_len(kept).expect("it is ours");
                lost += now.len() - kept;
            }
        }
        lost
    }
}
