//! Commands that print a text and need no configuration: `init`, `config-schema`, `completions`, `man`.

use std::{io::Write, process::ExitCode};

use clap::CommandFactory;
use clap_complete::Shell;

use super::Arguments;

/// A commented configuration to start from.
const START: &str = include_str!("../../config/start.toml");

pub(super) fn init() -> ExitCode {
    write(START.as_bytes())
}

pub(super) fn config_schema() -> ExitCode {
    write(format!("{:#}\n", hookgate::settings::schema().as_value()).as_bytes())
}

pub(super) fn completions(shell: Shell) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "hookgate", &mut text);
    write(&text)
}

pub(super) fn man() -> ExitCode {
    let mut text = Vec::new();
    match clap_mangen::Man::new(Arguments::command()).render(&mut text) {
        Ok(()) => write(&text),
        Err(_nothing) => ExitCode::FAILURE,
    }
}

/// A reader that goes away early is no failure.
fn write(text: &[u8]) -> ExitCode {
    let _gone = std::io::stdout().lock().write_all(text);
    ExitCode::SUCCESS
}
