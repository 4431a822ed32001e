//! Reads OpenMetrics as far as these tests need it, and rejects what breaks a scrape. `tests/alerts/run` checks the whole
//! format with an independent parser.

use std::collections::{BTreeMap, BTreeSet, HashMap};

type Key = (String, BTreeMap<String, String>);

pub(super) struct Samples(HashMap<Key, f64>);

impl Samples {
    pub(super) fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("no end in {text}"));
        let mut samples = HashMap::new();
        let (mut families, mut family) = (BTreeSet::new(), String::new());
        for line in body.lines() {
            if let Some(described) = line.strip_prefix("# ") {
                let name = described.split(' ').nth(1).expect("a description names its family");
                if name != family {
                    assert!(families.insert(name.to_owned()), "{name} comes twice");
                    name.clone_into(&mut family);
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in {line:?}"));
            let value = value.parse().unwrap_or_else(|error| panic!("{error} in {line:?}"));
            let key = read_series(series);
            assert!(key.0.starts_with(family.as_str()), "{line:?} stands below {family}");
            assert!(samples.insert(key, value).is_none(), "{line:?} comes twice");
        }
        Self(samples)
    }

    /// The value of a series that has to be there.
    pub(super) fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("there is no {name}{labels:?}"))
    }

    pub(super) fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.0.get(&(name.to_owned(), labels)).copied()
    }

    /// Number of series of this name with this label.
    pub(super) fn labelled(&self, name: &str, label: &str, value: &str) -> usize {
        let keys = self.0.keys();
        keys.filter(|(known, labels)| known == name && labels.get(label).is_some_and(|found| found == value)).count()
    }
}

fn read_series(series: &str) -> Key {
    let Some((name, labels)) = series.split_once('{') else { return (series.to_owned(), BTreeMap::new()) };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("no end of the labels of {series:?}"));
    let pairs = labels.split("\",").map(|pair| {
        let (label, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("no label in {pair:?} of {series:?}"));
        (label.to_owned(), value.trim_end_matches('"').to_owned())
    });
    (name.to_owned(), pairs.collect())
}
