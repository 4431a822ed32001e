//! Environment variables: `HOOKGATE__SECTION__KEY` is the key `section.key`, and the key says how its text is read.

use std::{cell::Cell, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, Error, IntoDeserializer, Visitor, value::MapDeserializer},
};
use toml::{Table, Value};

use super::{reading, sections::Configuration, wording};

/// Variables that begin so are keys. Two underscores: Kubernetes makes variables such as `HOOKGATE_PORT` for a
/// service of this name.
pub(super) const PREFIX: &str = "HOOKGATE__";
/// Names the files that are read where no `--config` names one, separated by colons.
pub(super) const FILES: &str = "HOOKGATE_CONFIG";
/// All of ours begin so, and some of Kubernetes too.
const FAMILY: &str = "HOOKGATE_";

/// The variables of a process, as names and values.
pub type Environment = Vec<(String, String)>;

/// The environment of this process; values that are not UTF-8 are none of ours unless the name is.
#[must_use]
pub fn environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let name = name.into_string().ok().filter(|name| name.starts_with(FAMILY))?;
            Some((name, value.to_string_lossy().into_owned()))
        })
        .collect()
}

/// The key that a variable sets, if it is one of ours.
pub(super) fn path(name: &str) -> Option<Vec<String>> {
    Some(name.strip_prefix(PREFIX)?.split("__").map(str::to_ascii_lowercase).collect())
}

/// Reads a variable as its key asks for: a table that holds nothing else, or what is wrong with it.
pub(super) fn read(path: &[String], text: &str) -> Result<Table, Vec<String>> {
    if let (["routes"], true) = (&path.iter().map(String::as_str).collect::<Vec<_>>()[..], text.starts_with('[')) {
        return routes(text);
    }
    let reached = Cell::new(false);
    let read = serde_path_to_error::deserialize::<_, Configuration>(Variable { path, text, reached: &reached });
    let configuration = read.map_err(|error| {
        let at = error.path().to_string();
        let value = (at == path.join(".")).then(|| format!("{text:?}"));
        vec![wording::problem(&error.inner().0, Some(&at), value.as_deref())]
    })?;
    let all = Value::try_from(&configuration).map_err(|error| vec![error.to_string()])?;
    let value = path.iter().try_fold(&all, |value, key| value.get(key));
    let value = value.cloned().ok_or_else(|| vec![format!("{} was not understood", path.join("."))])?;
    let nested = path.iter().rev().fold(value, |value, key| Value::Table(Table::from_iter([(key.clone(), value)])));
    match nested {
        Value::Table(table) => Ok(table),
        _ => Err(vec!["it names no key".to_owned()]),
    }
}

/// The routes as a list of tables in JSON.
fn routes(text: &str) -> Result<Table, Vec<String>> {
    let wrong = |error: &dyn fmt::Display| vec![format!("routes: not a list of tables in JSON: {error}")];
    let list: Value = serde_json::from_str(text).map_err(|error| wrong(&error))?;
    let text = toml::to_string(&Table::from_iter([("routes".to_owned(), list)])).map_err(|error| wrong(&error))?;
    match reading::read(&text) {
        (table, mistakes) if mistakes.is_empty() => Ok(table),
        (_, mistakes) => Err(mistakes.into_iter().map(|mistake| mistake.problem).collect()),
    }
}

/// Whether there is such a key, and it holds no further ones.
fn is_key(path: &[String]) -> bool {
    let reached = Cell::new(false);
    let _any = Configuration::deserialize(Variable { path, text: "", reached: &reached });
    reached.get()
}

/// The right spelling of a variable that would be a key but for its underscores.
pub(super) fn right_spelling(name: &str) -> Option<String> {
    let text = name.strip_prefix(FAMILY).filter(|_| name != FILES)?.to_ascii_lowercase();
    let words: Vec<_> = text.split('_').filter(|word| !word.is_empty()).collect();
    if words.len() > MAX_WORDS {
        return None;
    }
    // Each gap is within a name, or between two.
    let gaps = words.len().saturating_sub(1);
    let paths = (0..1_u32 << gaps).map(|between| {
        let mut path: Vec<String> = Vec::new();
        for (index, word) in words.iter().enumerate() {
            match path.last_mut().filter(|_| between & (1 << index >> 1) == 0) {
                Some(name) => {
                    name.push('_');
                    name.push_str(word);
                }
                None => path.push((*word).to_owned()),
            }
        }
        path
    });
    let path = paths.into_iter().find(|path| is_key(path))?;
    let right = format!("{PREFIX}{}", path.join("__").to_ascii_uppercase());
    (right != name).then_some(right)
}

/// No key has more words with all its sections.
const MAX_WORDS: usize = 8;

/// Why a text does not fit its key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misfit(String);

impl Error for Misfit {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

/// Tables down to a key, and the text of a variable there. It is read as whatever the key takes.
#[derive(Clone, Copy)]
struct Variable<'a> {
    path: &'a [String],
    text: &'a str,
    /// Set once a key is asked for that takes a text.
    reached: &'a Cell<bool>,
}

impl<'a> Variable<'a> {
    fn tables<'de, V: Visitor<'de>>(
        self,
        (key, rest): (&'a String, &'a [String]),
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        visitor.visit_map(MapDeserializer::new(std::iter::once((key.as_str(), Variable { path: rest, ..self }))))
    }

    fn text<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        if let Some(deeper) = self.path.split_first() {
            return self.tables(deeper, visitor);
        }
        self.reached.set(true);
        visitor.visit_str(self.text)
    }

    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.text.parse::<i64>() {
            Ok(number) if self.path.is_empty() => {
                self.reached.set(true);
                visitor.visit_i64(number)
            }
            _ => self.text(visitor),
        }
    }
}

impl<'de> Deserializer<'de> for Variable<'_> {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.text(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.text.parse() {
            Ok(flag) if self.path.is_empty() => {
                self.reached.set(true);
                visitor.visit_bool(flag)
            }
            _ => self.text(visitor),
        }
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.number(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        self.number(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        if let Some(deeper) = self.path.split_first() {
            return self.tables(deeper, visitor);
        }
        self.reached.set(true);
        visitor.visit_enum(self.text.into_deserializer())
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.path.split_first() {
            Some(deeper) => self.tables(deeper, visitor),
            None => visitor.visit_str(self.text),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_map(visitor)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 u8 u16 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq tuple
        tuple_struct identifier ignored_any
    }
}

impl de::IntoDeserializer<'_, Misfit> for Variable<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
