//! Files and environment variables, each read strictly, then put over each other.

use std::path::Path;

use config::{Config, File, FileFormat};
use toml::{Table, Value};

use super::{SettingsError, redaction::hide_credentials, sections::Configuration};

/// Variables that begin so belong to hookgate. Two underscores: Kubernetes makes variables such as
/// `HOOKGATE_PORT` for a service of this name.
const PREFIX: &str = "HOOKGATE__";

/// The variables of the process, as names and values.
pub type Environment = Vec<(String, String)>;

/// The environment of this process; values that are not UTF-8 are none of ours unless the name is.
#[must_use]
pub fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
            Some((name, value.to_string_lossy().into_owned()))
        })
        .collect()
}

/// The layers of a configuration, the first one lowest.
#[derive(Debug, Clone, Default)]
pub struct Layers(Vec<Layer>);

#[derive(Debug, Clone)]
struct Layer {
    name: String,
    table: Table,
}

impl Layers {
    /// Puts a TOML file on top.
    ///
    /// # Errors
    /// If it can't be read or understood.
    pub fn add_file(&mut self, path: &Path) -> Result<(), SettingsError> {
        let text =
            std::fs::read_to_string(path).map_err(|problem| SettingsError::File { path: path.to_owned(), problem })?;
        self.add_text(&path.display().to_string(), &text)
    }

    /// Puts TOML text on top; `name` is for messages.
    ///
    /// # Errors
    /// If it can't be understood: with line, key and value.
    pub fn add_text(&mut self, name: &str, text: &str) -> Result<(), SettingsError> {
        let wrong = |error: &toml::de::Error, key: Option<String>| {
            let span = error.span().unwrap_or_default();
            let line = text[..span.start].matches('\n').count() + 1;
            SettingsError::Layer {
                source_name: format!("{name}, line {line}"),
                problem: problem(error.message(), key.as_deref(), text.get(span)),
            }
        };
        let strict = toml::Deserializer::parse(text).map_err(|error| wrong(&error, None))?;
        if let Err(error) = serde_path_to_error::deserialize::<_, Configuration>(strict) {
            return Err(wrong(error.inner(), Some(error.path().to_string())));
        }
        let table = text.parse::<Table>().map_err(|error| wrong(&error, None))?;
        self.0.push(Layer { name: name.to_owned(), table });
        Ok(())
    }

    /// Puts environment variables on top: `HOOKGATE__SECTION__KEY`.
    ///
    /// # Errors
    /// For an unknown key or a value that does not fit its key.
    pub fn add_environment(&mut self, variables: Environment) -> Result<(), SettingsError> {
        let mut variables: Vec<_> = variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        variables.sort();
        for (name, text) in variables {
            let path: Vec<_> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
            let table = fit(&path, &text).map_err(|problem| SettingsError::Layer {
                source_name: format!("environment variable {name}"),
                problem,
            })?;
            self.0.push(Layer { name: format!("environment variable {name}"), table });
        }
        Ok(())
    }

    /// Puts the layers over each other, above the built-in defaults.
    ///
    /// # Errors
    /// If two layers that are right by themselves do not fit together.
    pub fn merge(&self) -> Result<Configuration, SettingsError> {
        let wrong = |problem: String| SettingsError::Layer { source_name: "merging the layers".to_owned(), problem };
        let mut builder = Config::builder();
        for layer in &self.0 {
            let text = toml::to_string(&layer.table).map_err(|error| wrong(error.to_string()))?;
            builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
        }
        builder.build().and_then(Config::try_deserialize).map_err(|error| wrong(error.to_string()))
    }

    /// The name of the layer that set a key last.
    pub(super) fn origin(&self, key: &str) -> String {
        let sets = |layer: &&Layer| {
            let mut words = key.split('.');
            let first = words.next().and_then(|word| layer.table.get(word));
            words.try_fold(first?, |value, word| value.get(word)).map(|_| ())
        };
        self.0
            .iter()
            .rev()
            .find(|layer| sets(layer).is_some())
            .map_or_else(|| "built-in default".to_owned(), |layer| layer.name.clone())
    }
}

/// Reads a variable as whatever its key takes: the first reading that the key accepts counts. Text comes
/// first, so that a name of digits stays text.
fn fit(path: &[String], text: &str) -> Result<Table, String> {
    let key = path.join(".");
    let json = serde_json::from_str::<Value>(text);
    let integer = text.parse().ok().map(Value::Integer);
    let boolean = text.parse().ok().map(Value::Boolean);
    let tables = json.as_ref().ok().filter(|value| value.is_array()).cloned();
    let list = Value::Array(text.split(',').map(|item| Value::String(item.trim().to_owned())).collect());
    // Whoever writes a list of tables wants to hear what is wrong inside it.
    let meant = tables.as_ref().or(integer.as_ref()).or(boolean.as_ref()).cloned();
    let mut complaints = Vec::new();
    for reading in [Some(Value::String(text.to_owned())), integer, boolean, tables, Some(list)].into_iter().flatten() {
        let mut table = Table::new();
        nest(&mut table, path, reading.clone());
        match serde_path_to_error::deserialize::<_, Configuration>(table.clone()) {
            Ok(_) => return Ok(table),
            Err(error) => {
                let at = error.path().to_string();
                let value = (at == key).then(|| format!("{text:?}"));
                complaints.push((reading, problem(error.inner().message(), Some(&at), value.as_deref())));
            }
        }
    }
    // The complaint about a wrong type is worth less than one about the value itself.
    let telling = complaints.iter().find(|(_, complaint)| !complaint.contains("invalid type"));
    let meant = complaints.iter().find(|(reading, _)| Some(reading) == meant.as_ref());
    let complaint = telling.or(meant).or(complaints.first()).map(|(_, complaint)| complaint.as_str());
    Err(match json {
        Err(error) if text.starts_with('[') => format!("{key}: not a list of tables in JSON: {error}"),
        _ => complaint.unwrap_or_default().to_owned(),
    })
}

fn nest(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [section, rest @ ..] => {
            let mut inner = Table::new();
            nest(&mut inner, rest, value);
            table.insert(section.clone(), Value::Table(inner));
        }
    }
}

/// Longest value that a message repeats.
const MAX_SHOWN: usize = 80;

/// What serde calls by the names of Rust.
const IN_WORDS: [(&str, &str); 6] = [
    ("expected usize", "expected a whole number that is not negative"),
    ("expected u32", "expected a whole number that is not negative"),
    ("expected struct RouteSection", "expected a table"),
    ("expected a sequence", "expected a list"),
    ("expected a boolean", "expected true or false"),
    ("invalid socket address syntax", "not an address; write an IP address and a port, such as 0.0.0.0:3000"),
];

/// Says what is wrong with which key, and with its value unless that may be a secret or is a whole table.
fn problem(message: &str, key: Option<&str>, value: Option<&str>) -> String {
    // What a key that does not exist was meant to hold is anybody's guess: perhaps a password.
    let of_the_key = ["unknown field", "missing field", "duplicate key"].iter().any(|start| message.starts_with(start));
    let value = value.filter(|text| !of_the_key && text.len() <= MAX_SHOWN && !text.is_empty() && !text.contains('\n'));
    let message = IN_WORDS.iter().fold(message.to_owned(), |text, (rust, words)| text.replace(rust, words));
    let text = match (key.filter(|key| *key != "."), value) {
        (Some(key), Some(value)) => format!("{key} = {value}: {message}"),
        (Some(key), None) => format!("{key}: {message}"),
        (None, _) => message,
    };
    hide_credentials(&text)
}
