//! What differs between two readings of a config, by the names of the keys: values may be secrets.

use std::collections::BTreeSet;

use super::keys::{self, PROPERTIES, Spec};
use super::settings::Settings;
use super::written::{Value, Written};

/// Keys that a relay can put in force while it runs.
const RELOADABLE: [(&str, &str); 12] = [
    ("outbox", "contracts"),
    ("outbox", "contract_version"),
    ("outbox", "on_violation"),
    ("outbox", "on_violation_by_event_type"),
    ("outbox", "on_missing_contract"),
    ("outbox", "version_header"),
    ("outbox", "freshness_budget"),
    ("outbox", "freshness_budget_by_topic"),
    ("outbox", "rows_per_second_max"),
    ("relay", "poll_interval_min"),
    ("relay", "poll_interval_max"),
    ("log", "filter"),
];

/// A key whose value changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// `section.key`, for an outbox with its table.
    pub key: String,
    /// Whether it can be put in force without a restart.
    pub reloadable: bool,
}

impl Settings {
    /// The keys whose values are others in `newer`.
    #[must_use]
    pub fn changes(&self, newer: &Self) -> BTreeSet<Change> {
        let mut changes = BTreeSet::new();
        let mut change = |key: String, reloadable| _ = changes.insert(Change { key, reloadable });
        let tables = |settings: &Self| -> Vec<Option<String>> {
            (0..settings.outboxes.len())
                .map(|index| text(settings.written(index, &keys::TABLE.spec).as_ref()))
                .collect()
        };
        let (ours, theirs) = (tables(self), tables(newer));
        if ours != theirs {
            change("the list of outboxes".to_owned(), false);
        }
        for spec in keys::ALL {
            let is_reloadable = RELOADABLE.contains(&(spec.section, spec.name));
            if spec.section != "outbox" {
                if self.differs(0, newer, 0, spec) {
                    change(spec.path(), is_reloadable);
                }
                continue;
            }
            // outboxes are the same if their tables are
            for (index, table) in ours.iter().enumerate() {
                let there = theirs.iter().position(|it| it == table);
                if let (Some(there), Some(table)) = (there, table)
                    && self.differs(index, newer, there, spec)
                {
                    change(format!("{} of {table}", spec.path()), is_reloadable);
                }
            }
        }
        // what files hold: a new password is a change, though its file has the same name
        let url = |settings: &Self| text(settings.url_written().ok().flatten().as_ref());
        if url(self) != url(newer) {
            change("database.url".to_owned(), false);
        }
        let (ours, theirs) = (self.properties_written(), newer.properties_written());
        let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        for name in names {
            let of = |all: &std::collections::BTreeMap<String, Result<Written, _>>| {
                text(
                    all.get(name)
                        .and_then(|it: &Result<_, super::problem::Problem>| it.as_ref().ok()),
                )
            };
            if of(&ours) != of(&theirs) {
                change(format!("{PROPERTIES}.{name}"), false);
            }
        }
        changes
    }

    fn differs(&self, index: usize, newer: &Self, there: usize, spec: &Spec) -> bool {
        text(self.written(index, spec).as_ref()) != text(newer.written(there, spec).as_ref())
    }
}

/// A value as text, to be compared with another and not to be shown.
fn text(written: Option<&Written>) -> Option<String> {
    Some(match &written?.value {
        Value::Text(text) | Value::Untyped(text) => text.expose().trim().to_owned(),
        Value::Whole(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::List(texts) => texts
            .iter()
            .map(super::Secret::expose)
            .collect::<Vec<_>>()
            .join(" "),
        Value::Pairs(pairs) => {
            let pair =
                |(name, value): (&String, &super::Secret)| format!("{name}={:?};", value.expose());
            pairs.iter().map(pair).collect()
        }
        Value::Other(name) => (*name).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags};

    fn settings(text: &str) -> Settings {
        Settings::of_text(text, &Environment::default(), &Flags::default())
    }

    #[test]
    fn changes_are_named_and_never_shown() {
        let old = settings(
            "[database]\nurl = \"postgres://a:canary@h/d\"\n[log]\nfilter = \"info\"\n\
             [kafka.properties]\n\"sasl.password\" = \"canary\"\n\
             [[outbox]]\ntable = \"a\"\n[[outbox]]\ntable = \"b\"\nlanes = 4",
        );
        let new = settings(
            "[database]\nurl = \"postgres://a:other@h/d\"\n[log]\nfilter = \"debug\"\n\
             [kafka.properties]\n\"sasl.password\" = \"other\"\n\
             [[outbox]]\ntable = \"b\"\nlanes = 4\nrows_per_second_max = 5\n\
             [[outbox]]\ntable = \"a\"\nlanes = 8",
        );
        let changes = old.changes(&new);
        let shown = |reloadable| -> Vec<&str> {
            let keys = changes
                .iter()
                .filter(|change| change.reloadable == reloadable);
            keys.map(|change| change.key.as_str()).collect()
        };
        assert_eq!(
            shown(true),
            ["log.filter", "outbox.rows_per_second_max of b"]
        );
        assert_eq!(
            shown(false),
            [
                "database.url",
                "kafka.properties.sasl.password",
                "outbox.lanes of a",
                "the list of outboxes"
            ]
        );
        assert!(!format!("{changes:?}").contains("canary"));
        assert!(old.changes(&old).is_empty());
    }

    #[test]
    fn every_key_that_can_be_reloaded_exists() {
        for (section, name) in RELOADABLE {
            assert!(keys::spec(section, name).is_some(), "{section}.{name}");
        }
    }
}
