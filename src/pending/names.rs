//! The keys that an installation has once, and not for each route.

/// What they are called, by the name of the installation.
pub(super) struct Names {
    /// HASH pending key → the record of its route.
    pub(super) routes: String,
    pub(super) bad: Drawer,
    pub(super) given_up: Drawer,
    /// HASH event → its letter, of `given_up`.
    pub(super) given_up_events: String,
}

/// Where dead letters are kept. Those about events that consumers gave up have limits of their own: a flood of bad items must not
/// push them out.
pub(super) struct Drawer {
    /// The stream.
    pub(super) letters: String,
    /// Its size, in the same cluster slot.
    pub(super) bytes: String,
    /// HASH name of a letter → what became of its last replay.
    pub(super) notes: String,
    /// What its names begin with outside.
    pub(super) prefix: &'static str,
}

/// What the names of given-up letters begin with outside.
const GIVEN_UP: &str = "g";

impl Names {
    pub(super) fn of(instance: &str) -> Self {
        let drawer = |name: &str, prefix| {
            let letters = format!("{instance}:{name}");
            Drawer { bytes: format!("{{{letters}}}:bytes"), notes: format!("{{{letters}}}:notes"), letters, prefix }
        };
        Self {
            routes: format!("{instance}:routes"),
            bad: drawer("dead_letters", ""),
            given_up: drawer("given_up", GIVEN_UP),
            given_up_events: format!("{{{instance}:given_up}}:events"),
        }
    }

    pub(super) fn drawers(&self) -> [&Drawer; 2] {
        [&self.bad, &self.given_up]
    }

    /// The drawer of a letter, and the letter's name there.
    pub(super) fn drawer_of<'e>(&self, entry: &'e str) -> (&Drawer, &'e str) {
        entry.strip_prefix(GIVEN_UP).map_or((&self.bad, entry), |name| (&self.given_up, name))
    }
}

impl Drawer {
    pub(super) fn is_of_given_up(&self) -> bool {
        self.prefix == GIVEN_UP
    }
}
