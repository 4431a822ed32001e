//! The query of a list: filters, fields, order, page.

use url::form_urlencoded::Serializer;

/// What is asked of a list.
pub(super) struct Query {
    pairs: Vec<(String, String)>,
    filters: usize,
}

impl Query {
    /// Asks for some fields, separated by commas.
    pub(super) fn new(fields: &str) -> Self {
        Self { pairs: vec![("select".to_owned(), fields.to_owned())], filters: 0 }
    }

    pub(super) fn equals(self, attribute: &str, value: &str) -> Self {
        self.filter("equals", attribute, &["value"], &[value])
    }

    pub(super) fn greater(self, attribute: &str, value: &str) -> Self {
        self.filter("greaterThan", attribute, &["value"], &[value])
    }

    pub(super) fn at_least(self, attribute: &str, value: &str) -> Self {
        self.filter("greaterThanOrEquals", attribute, &["value"], &[value])
    }

    pub(super) fn starts_with(self, attribute: &str, value: &str) -> Self {
        self.filter("startsWith", attribute, &["value"], &[value])
    }

    pub(super) fn unset(self, attribute: &str) -> Self {
        self.filter("isFalse", attribute, &[], &[])
    }

    pub(super) fn any_of(self, attribute: &str, values: &[String]) -> Self {
        let values: Vec<_> = values.iter().map(String::as_str).collect();
        self.filter("in", attribute, &["value", ""], &values)
    }

    /// Smallest first.
    pub(super) fn order(self, attribute: &str) -> Self {
        self.with("orderBy", attribute).with("order", "asc")
    }

    pub(super) fn size(self, rows: usize) -> Self {
        self.with("maxSize", &rows.to_string())
    }

    pub(super) fn offset(self, rows: usize) -> Self {
        self.with("offset", &rows.to_string())
    }

    /// Percent-encoded.
    pub(super) fn text(&self) -> String {
        Serializer::new(String::new()).extend_pairs(&self.pairs).finish()
    }

    /// `path` are the words in brackets before each value.
    fn filter(mut self, kind: &str, attribute: &str, path: &[&str], values: &[&str]) -> Self {
        let name = |path: &[&str]| {
            path.iter().fold(format!("where[{}]", self.filters), |name, part| format!("{name}[{part}]"))
        };
        let mut pairs = vec![(name(&["type"]), kind.to_owned()), (name(&["attribute"]), attribute.to_owned())];
        pairs.extend(values.iter().map(|value| (name(path), (*value).to_owned())));
        self.pairs.extend(pairs);
        self.filters += 1;
        self
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.pairs.push((name.to_owned(), value.to_owned()));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_numbered() {
        let query =
            Query::new("id").equals("status", "Failed").any_of("event", &["A.create".to_owned()]).order("number");
        let decoded: Vec<_> = url::form_urlencoded::parse(query.text().as_bytes())
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            decoded,
            [
                "select=id",
                "where[0][type]=equals",
                "where[0][attribute]=status",
                "where[0][value]=Failed",
                "where[1][type]=in",
                "where[1][attribute]=event",
                "where[1][value][]=A.create",
                "orderBy=number",
                "order=asc",
            ]
        );
    }
}
