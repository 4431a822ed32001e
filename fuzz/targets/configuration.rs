//! Any TOML and any variables: a configuration or an error, and what is accepted can be printed and read again.
//!
//! The input is a TOML file, a line `---`, and variables as `NAME=value`.
#![no_main]

use hookgate::settings::{AuthSecrets, Layers, Settings, SettingsError, sections::Configuration};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|input: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(input) else { return Corpus::Reject };
    // Files are read when a configuration is checked, and some of the system's never end.
    if ["/dev", "/proc", "/sys"].iter().any(|folder| text.contains(folder)) {
        return Corpus::Reject;
    }
    let (file, variables) = text.split_once("\n---\n").unwrap_or((text, ""));
    let variables = variables
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let (configuration, layers) = load(file, variables.collect());
    let shown = toml::to_string(&configuration.redacted()).expect("it can be printed");
    if Settings::check(&configuration, layers, AuthSecrets::Read).is_ok() {
        let (again, layers) = load(&shown, Vec::new());
        // Without secrets: the passwords of addresses are not printed.
        if let Err(errors) = Settings::check(&again, layers, AuthSecrets::Leave) {
            let unread = errors.iter().find(|error| matches!(error, SettingsError::Layer { .. }));
            assert!(unread.is_none(), "what is printed is not accepted: {errors}\n{shown}");
        }
    }
    Corpus::Keep
});

fn load(file: &str, variables: Vec<(String, String)>) -> (Configuration, Layers) {
    let mut layers = Layers::default();
    layers.add_text("file", file);
    layers.add_environment(variables);
    (layers.merge(), layers)
}
