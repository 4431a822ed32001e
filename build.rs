//! Says which revision is built: `HOOKGATE_REVISION`, or else what git calls the commit. Without either it is unknown.

use std::{path::Path, process::Command};

#[expect(clippy::disallowed_methods, reason = "the build's own environment")]
fn main() {
    println!("cargo::rerun-if-env-changed=HOOKGATE_REVISION");
    // A file that is not there would run this at each build.
    for path in ["build.rs", "Cargo.toml", "Cargo.lock", "src", "config"] {
        println!("cargo::rerun-if-changed={path}");
    }
    if std::env::var_os("HOOKGATE_REVISION").is_some() || !Path::new(".git").exists() {
        return;
    }
    // A commit moves one of these, also in a work tree of its own.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    if let Some(revision) = git(&["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]) {
        println!("cargo::rustc-env=HOOKGATE_REVISION={revision}");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).env("GIT_OPTIONAL_LOCKS", "0").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| output.status.success() && !text.is_empty())
}
