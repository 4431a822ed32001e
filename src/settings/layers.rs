//! Files and environment variables, each read strictly, then put over each other. A mistake does not end the reading:
//! all of them are kept, for one report.

use std::path::Path;

use config::{Config, ConfigError, File, FileFormat};
use toml::Table;

use super::{
    SettingsError,
    reading::{self, Mistake},
    sections::Configuration,
    variables::{self, Environment},
};

/// The layers of a configuration, the first one lowest, and what is wrong with them.
#[derive(Debug, Default)]
pub struct Layers {
    stack: Vec<Layer>,
    errors: Vec<SettingsError>,
    warnings: Vec<String>,
    /// Keys whose values can't be read. The empty one stands for any key.
    unread: Vec<String>,
}

#[derive(Debug, Clone)]
struct Layer {
    name: String,
    table: Table,
}

impl Layers {
    /// The same without what is wrong with them: they tell where a value came from.
    #[must_use]
    pub fn origins(&self) -> Self {
        Self { stack: self.stack.clone(), ..Self::default() }
    }

    /// Puts a TOML file on top.
    pub fn add_file(&mut self, path: &Path) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.add_text(&path.display().to_string(), &text),
            Err(problem) => {
                self.unread.push(String::new());
                self.errors.push(SettingsError::File { path: path.to_owned(), problem });
            }
        }
    }

    /// Puts TOML text on top; `name` is for messages.
    pub fn add_text(&mut self, name: &str, text: &str) {
        let (table, mistakes) = reading::read(text);
        for Mistake { line, key, problem } in mistakes {
            self.unread.push(key);
            self.errors.push(SettingsError::Layer { source_name: format!("{name}, line {line}"), problem });
        }
        self.stack.push(Layer { name: name.to_owned(), table });
    }

    /// Puts environment variables on top: `HOOKGATE__SECTION__KEY`.
    pub fn add_environment(&mut self, mut variables: Environment) {
        variables.sort();
        for (name, text) in variables {
            let right = variables::right_spelling(&name);
            let source_name = format!("environment variable {name}");
            let Some(path) = variables::path(&name) else {
                self.warnings.extend(right.map(|right| format!("{source_name} has no effect: the key is {right}")));
                continue;
            };
            match variables::read(&path, &text) {
                Ok(table) => self.stack.push(Layer { name: source_name, table }),
                Err(problems) => {
                    self.unread.push(path.join("."));
                    let hint = right.map_or_else(String::new, |right| format!("; the key is {right}"));
                    self.errors.extend(problems.into_iter().map(|problem| SettingsError::Layer {
                        source_name: source_name.clone(),
                        problem: format!("{problem}{hint}"),
                    }));
                }
            }
        }
    }

    /// Puts the layers over each other, above the built-in defaults.
    #[must_use]
    pub fn merge(&mut self) -> Configuration {
        self.merged().unwrap_or_else(|error| {
            self.unread.push(String::new());
            let source_name = "merging the layers".to_owned();
            self.errors.push(SettingsError::Layer { source_name, problem: error.to_string() });
            Configuration::default()
        })
    }

    fn merged(&self) -> Result<Configuration, ConfigError> {
        let mut builder = Config::builder();
        for layer in &self.stack {
            let text = toml::to_string(&layer.table).map_err(|error| ConfigError::Foreign(Box::new(error)))?;
            builder = builder.add_source(File::from_str(&text, FileFormat::Toml));
        }
        builder.build()?.try_deserialize()
    }

    /// What was wrong with the layers so far.
    pub(super) fn take_errors(&mut self) -> Vec<SettingsError> {
        std::mem::take(&mut self.errors)
    }

    /// What was odd about them.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Whether the values of all these keys could be read, so that they can be compared.
    pub(super) fn are_read(&self, keys: &[&str]) -> bool {
        let covers = |unread: &str, key: &str| {
            let rest = key.strip_prefix(unread);
            unread.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        // Either may be the table that the other is in.
        let clash = |unread: &String, key: &str| covers(unread, key) || covers(key, unread);
        !keys.iter().any(|key| self.unread.iter().any(|unread| clash(unread, key)))
    }

    /// The name of the layer that set a key last.
    pub(super) fn origin(&self, key: &str) -> String {
        let sets = |layer: &&Layer| {
            let mut words = key.split('.');
            let first = words.next().and_then(|word| layer.table.get(word));
            words.try_fold(first?, |value, word| value.get(word)).map(|_| ())
        };
        let last = self.stack.iter().rev().find(|layer| sets(layer).is_some());
        last.map_or_else(|| "built-in default".to_owned(), |layer| layer.name.clone())
    }
}
