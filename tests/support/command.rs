//! A command of the operator: runs, prints, ends.

use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{Process, gate::configure};

/// What came of it.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) printed: String,
    pub(crate) remarks: String,
}

impl Ran {
    /// What it printed, if all went well.
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.printed, self.remarks);
        self.printed
    }

    /// The same as an object a line.
    pub(crate) fn rows(self) -> Vec<Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        self.good().lines().map(parse).collect()
    }

    /// What it says to the side, if it failed as an operation does.
    pub(crate) fn bad(self) -> String {
        assert_eq!(self.code, Some(1), "{}{}", self.printed, self.remarks);
        self.remarks
    }
}

/// Starts hookgate with settings, as TOML, arguments and variables. It dies with what is given back.
pub(crate) fn start(settings: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Started {
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let process = Process::start(env!("CARGO_BIN_EXE_hookgate").as_ref(), |command| {
        configure(command, &files, &[settings]);
        command.args(arguments).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    });
    Started { process, _files: files }
}

/// A command that may be killed.
pub(crate) struct Started {
    pub(crate) process: Process,
    _files: TempDir,
}

/// Runs hookgate with settings, as TOML, and arguments.
pub(crate) fn run(settings: &str, arguments: &[&str]) -> Ran {
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hookgate"));
    configure(&mut command, &files, &[settings]);
    let output = command.args(arguments).stdin(Stdio::null()).output().expect("hookgate starts");
    let text = |bytes| String::from_utf8(bytes).expect("hookgate prints UTF-8");
    Ran { code: output.status.code(), printed: text(output.stdout), remarks: text(output.stderr) }
}
