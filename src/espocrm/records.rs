//! Records that were created, modified or deleted since a time.

use std::time::SystemTime;

use hashbrown::HashSet;

use super::{
    CrmError, EspoCrm, PAGE,
    answers::{ActionRow, RecordRow, time_text},
    query::Query,
};

/// Which changes are looked for. Restored records and silent updates leave no trace that could be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangesOf {
    /// Records by `createdAt`.
    Created {
        /// Such as `CBeteiligte`.
        entity_type: String,
    },
    /// Records by `modifiedAt`, but those that were only created.
    Modified {
        /// Such as `CBeteiligte`.
        entity_type: String,
    },
    /// Records that somebody deleted, from the history of actions. Needs an administrator.
    Deleted {
        /// Such as `CBeteiligte`.
        entity_type: String,
    },
}

impl ChangesOf {
    const fn attribute(&self) -> &'static str {
        match self {
            Self::Created { .. } | Self::Deleted { .. } => "createdAt",
            Self::Modified { .. } => "modifiedAt",
        }
    }

    fn query(&self, since: SystemTime, offset: usize) -> Query {
        let query = match self {
            Self::Created { .. } => Query::new("id,createdAt"),
            Self::Modified { .. } => Query::new("id,createdAt,modifiedAt"),
            Self::Deleted { entity_type } => {
                Query::new("targetId,createdAt").equals("action", "delete").equals("targetType", entity_type)
            }
        };
        let attribute = self.attribute();
        query.at_least(attribute, &time_text(since)).order(attribute).size(PAGE).offset(offset)
    }
}

/// A record that changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    /// Its id.
    pub id: String,
    /// When, by the CRM's clock.
    pub time: SystemTime,
}

/// What changed since a time, page by page.
///
/// Each page begins at the time at which the one before ended, since offsets shift while records change. Where a page is
/// full of one second (a mass update), it goes on by half a page within that second.
pub struct Changes<'a> {
    crm: &'a EspoCrm,
    of: ChangesOf,
    from: SystemTime,
    until: Option<SystemTime>,
    offset: usize,
    ended: bool,
    /// What was given out of the second at which the next page begins.
    seen: HashSet<Change>,
}

/// A row: the record, if it counts, and its time.
type Row = (Option<String>, Option<SystemTime>);

impl<'a> Changes<'a> {
    pub(super) fn new(crm: &'a EspoCrm, of: ChangesOf, since: SystemTime, until: Option<SystemTime>) -> Self {
        Self { crm, of, from: since, until, offset: 0, ended: false, seen: HashSet::new() }
    }

    /// The next changes; `None` at the end.
    ///
    /// # Errors
    /// [`CrmError`].
    pub async fn next(&mut self) -> Result<Option<Vec<Change>>, CrmError> {
        if self.ended {
            return Ok(None);
        }
        let query = self.of.query(self.from, self.offset);
        let rows: Vec<Row> = match &self.of {
            ChangesOf::Created { entity_type } => {
                self.crm.record_rows(entity_type, &query).await?.into_iter().map(created).collect()
            }
            ChangesOf::Modified { entity_type } => {
                self.crm.record_rows(entity_type, &query).await?.into_iter().map(modified).collect()
            }
            ChangesOf::Deleted { entity_type } => {
                self.crm.action_rows(entity_type, &query).await?.into_iter().map(deleted).collect()
            }
        };
        self.ended = rows.len() < PAGE;
        let last = rows.last().and_then(|(_, time)| *time);
        let mut changes = Vec::new();
        for (id, time) in rows {
            let (Some(id), Some(time)) = (id, time) else { continue };
            if self.until.is_some_and(|until| time > until) {
                self.ended = true;
                continue;
            }
            let change = Change { id, time };
            if self.seen.insert(change.clone()) {
                changes.push(change);
            }
        }
        match last {
            Some(last) if last > self.from => {
                (self.from, self.offset) = (last, 0);
                self.seen.retain(|change| change.time >= last);
            }
            // Half a page: rows that leave this second move those behind them.
            _ => self.offset += PAGE / 2,
        }
        Ok(Some(changes))
    }
}

fn created(row: RecordRow) -> Row {
    (Some(row.id), row.created_at)
}

/// A record that was never modified has the time of its creation: no update webhook is due for it.
fn modified(row: RecordRow) -> Row {
    let counts = row.modified_at != row.created_at;
    (counts.then_some(row.id), row.modified_at)
}

fn deleted(row: ActionRow) -> Row {
    (row.target_id, row.created_at)
}
