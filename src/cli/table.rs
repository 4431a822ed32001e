//! Tables for people: a header, aligned columns, and a word where there is nothing.

use super::print;

/// Between two columns.
const GAP: &str = "  ";

/// A table that is printed in parts, as long lists are read.
pub(super) struct Table<const N: usize> {
    headers: [&'static str; N],
    widths: [usize; N],
    /// The header is out.
    begun: bool,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(headers: [&'static str; N]) -> Self {
        Self { headers, widths: headers.map(width), begun: false }
    }

    /// Prints rows, the header before the first. Returns false once standard output is closed.
    pub(super) fn rows(&mut self, rows: &[[String; N]]) -> bool {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(self::width(cell));
            }
        }
        if !rows.is_empty() && !std::mem::replace(&mut self.begun, true) && !print(&self.line(&self.headers)) {
            return false;
        }
        rows.iter().all(|row| print(&self.line(row)))
    }

    /// Says what there is none of, if there was no row.
    pub(super) fn end(self, nothing: &str) {
        if !self.begun {
            print(nothing);
        }
    }

    fn line(&self, cells: &[impl AsRef<str>; N]) -> String {
        let mut line = String::new();
        for (cell, column) in cells.iter().map(AsRef::as_ref).zip(self.widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', column - width(cell)));
            line.push_str(GAP);
        }
        line.truncate(line.trim_end().len());
        line
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// A number and what it counts: `1 entry`, `2 entries`.
pub(super) fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["A", "LONG"]);
        table.widths = [3, 4];
        assert_eq!(table.line(&["ü", "x"]), "ü    x");
        assert_eq!(table.line(&["abc", ""]), "abc");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|number| counted(number, "entry", "entries")), ["0 entries", "1 entry", "2 entries"]);
    }
}
