//! Any TOML and any variables: a configuration or an error, and what is accepted can be printed and read again.
//!
//! The input is a TOML file, a line `---`, and variables as `NAME=value`.
#![no_main]

use hookgate::settings::{Layers, Settings, sections::Configuration};
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
    if let Ok((configuration, layers)) = load(file, variables.collect()) {
        let shown = toml::to_string(&configuration.redacted()).expect("it can be printed");
        if Settings::check(&configuration, &layers).is_ok() {
            load(&shown, Vec::new())
                .unwrap_or_else(|error| panic!("what is printed is not accepted: {error}\n{shown}"));
        }
    }
    Corpus::Keep
});

fn load(file: &str, variables: Vec<(String, String)>) -> Result<(Configuration, Layers), String> {
    let mut layers = Layers::default();
    layers.add_text("file", file).map_err(|error| error.to_string())?;
    layers.add_environment(variables).map_err(|error| error.to_string())?;
    Ok((layers.merge().map_err(|error| error.to_string())?, layers))
}
