//! One layer read strictly, to its end: each mistake is reported, and what is left can be merged.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_path_to_error::{Path, Segment};
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue, Deserializer},
};

use super::{sections::Configuration, wording};

/// Most mistakes that are reported for one layer.
const MAX_MISTAKES: usize = 50;

/// Something in a layer that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// Line of the text, from 1.
    pub(super) line: usize,
    /// Dotted key; empty if it is the whole text.
    pub(super) key: String,
    /// What is wrong, with key and value.
    pub(super) problem: String,
}

/// Reads TOML text: what fits the configuration, and what does not.
pub(super) fn read(text: &str) -> (Table, Vec<Mistake>) {
    let line = |offset: usize| text[..offset].matches('\n').count() + 1;
    let mut root = match DeTable::parse(text) {
        Ok(root) => root,
        Err(error) => {
            let span = error.span().unwrap_or_default();
            let problem = wording::problem(error.message(), None, text.get(span.clone()));
            return (Table::new(), vec![Mistake { line: line(span.start), key: String::new(), problem }]);
        }
    };
    let mut mistakes: Vec<Mistake> = Vec::new();
    let mut removed = Removed::default();
    while let Err(error) = serde_path_to_error::deserialize::<_, Configuration>(Deserializer::from(root.clone())) {
        let path = segments(error.path());
        let (span, message) = (error.inner().span().unwrap_or_default(), error.inner().message());
        if is_stand_in(&mut root, &path) {
            // The key takes no such text; what was wrong with its table has been said.
            let Some((_, table)) = path.split_last() else { break };
            remove(root.get_mut(), table);
            removed.note(table.to_vec());
            continue;
        }
        let key = removed.original(&path);
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        // A key whose value was refused before is not missing.
        let refused = missing.map(|field| format!("{key}.{field}"));
        if refused.is_none_or(|refused| mistakes.iter().all(|mistake| mistake.key != refused)) {
            let problem = wording::problem(message, Some(&key), text.get(span.clone()));
            mistakes.push(Mistake { line: line(span.start), key, problem });
        }
        let went_on = match missing {
            Some(field) => stand_in(&mut root, &path, field),
            None => remove(root.get_mut(), &path),
        };
        if mistakes.len() == MAX_MISTAKES || !went_on {
            return (Table::new(), mistakes);
        }
        if missing.is_none() {
            removed.note(path);
        }
    }
    let mut table = Table::deserialize(Deserializer::from(root)).unwrap_or_default();
    table.iter_mut().for_each(|(_, value)| drop_stand_ins(value));
    (table, mistakes)
}

/// Stands for a key that is missing, so that the rest of its table is read too.
const STAND_IN: &str = "\0missing";

fn stand_in(root: &mut Spanned<DeTable<'_>>, table: &[Step], field: &str) -> bool {
    let Some(DeValue::Table(table)) = value_at(root.get_mut(), table) else { return false };
    let value = DeValue::String(STAND_IN.into());
    table.insert(Spanned::new(0..0, field.to_owned().into()), Spanned::new(0..0, value)).is_none()
}

fn is_stand_in(root: &mut Spanned<DeTable<'_>>, path: &[Step]) -> bool {
    value_at(root.get_mut(), path).is_some_and(|value| value.as_str() == Some(STAND_IN))
}

/// Drops the tables that miss a key from their lists.
fn drop_stand_ins(value: &mut Value) {
    let misses = |item: &Value| {
        item.as_table().is_some_and(|table| table.values().any(|value| value.as_str() == Some(STAND_IN)))
    };
    match value {
        Value::Array(list) => {
            list.retain(|item| !misses(item));
            list.iter_mut().for_each(drop_stand_ins);
        }
        Value::Table(table) => table.iter_mut().for_each(|(_, value)| drop_stand_ins(value)),
        _ => {}
    }
}

/// A step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Index(usize),
}

fn segments(path: &Path) -> Vec<Step> {
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().map_while(step).collect()
}

fn value_at<'r, 'a>(root: &'r mut DeTable<'a>, path: &[Step]) -> Option<&'r mut DeValue<'a>> {
    let Some((Step::Key(first), rest)) = path.split_first() else { return None };
    let first = root.get_mut(first.as_str())?.get_mut();
    rest.iter().try_fold(first, |value, step| {
        let next = match (value, step) {
            (DeValue::Table(table), Step::Key(key)) => table.get_mut(key.as_str()),
            (DeValue::Array(list), Step::Index(index)) => list.get_mut(*index),
            _ => None,
        };
        next.map(Spanned::get_mut)
    })
}

/// Takes a value out; whether it was there.
fn remove(root: &mut DeTable<'_>, path: &[Step]) -> bool {
    let Some((last, way)) = path.split_last() else { return false };
    if way.is_empty() {
        return matches!(last, Step::Key(key) if root.remove(key.as_str()).is_some());
    }
    match (value_at(root, way), last) {
        (Some(DeValue::Table(table)), Step::Key(key)) => table.remove(key.as_str()).is_some(),
        (Some(DeValue::Array(items)), Step::Index(index)) => {
            let before = items.len();
            let left = items.iter().enumerate().filter(|(position, _)| position != index);
            *items = left.map(|(_, item)| item.clone()).collect();
            items.len() < before
        }
        _ => false,
    }
}

/// Items that were taken out of lists: those behind them have moved up.
#[derive(Debug, Default)]
struct Removed(BTreeMap<Vec<Step>, Vec<usize>>);

impl Removed {
    fn note(&mut self, mut path: Vec<Step>) {
        let path_before = self.resolve(&path);
        if let (Some(Step::Index(_)), Some(Step::Index(original))) = (path.pop(), path_before.last()) {
            let list = &path_before[..path_before.len() - 1];
            let gone = self.0.entry(list.to_vec()).or_default();
            gone.push(*original);
            gone.sort_unstable();
        }
    }

    /// The path as it is in the text.
    fn resolve(&self, path: &[Step]) -> Vec<Step> {
        path.iter().fold(Vec::new(), |mut way, step| {
            let step = match step {
                Step::Index(index) => {
                    let gone = self.0.get(&way).map(Vec::as_slice).unwrap_or_default();
                    Step::Index(gone.iter().fold(*index, |index, gone| if *gone <= index { index + 1 } else { index }))
                }
                key @ Step::Key(_) => key.clone(),
            };
            way.push(step);
            way
        })
    }

    /// The same as a dotted key.
    fn original(&self, path: &[Step]) -> String {
        self.resolve(path).iter().fold(String::new(), |key, step| match step {
            Step::Index(index) => format!("{key}[{index}]"),
            Step::Key(name) if key.is_empty() => name.clone(),
            Step::Key(name) => format!("{key}.{name}"),
        })
    }
}
