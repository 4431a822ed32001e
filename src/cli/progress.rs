//! How far long work is, on a terminal.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Bars on standard error, if it is a terminal.
pub(super) struct Progress(MultiProgress);

impl Progress {
    pub(super) fn new() -> Self {
        Self(MultiProgress::new())
    }

    /// Counts something; a total of 0 is one that nobody knows.
    pub(super) fn count(&self, what: &str, total: usize) -> ProgressBar {
        let bar = if total == 0 { ProgressBar::no_length() } else { ProgressBar::new(total as u64) };
        let template = if total == 0 { "{msg}: {pos}" } else { "{msg}: {wide_bar} {pos}/{len}, {eta} left" };
        let style = ProgressStyle::with_template(template).expect("the template is good");
        self.0.add(bar.with_style(style).with_message(what.to_owned()))
    }

    /// Says a line beside the bars.
    pub(super) fn say(&self, line: &str) {
        self.0.suspend(|| super::tell(line));
    }

    pub(super) fn end(&self) {
        let _no_terminal = self.0.clear();
    }
}
