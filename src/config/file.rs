//! The file as operators write it. Every value keeps its line; nothing is judged here but whether
//! its key exists.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Secret;
use super::keys::{self, PROPERTIES, SECTIONS};
use super::problem::Problem;
use super::settings::Settings;
use super::written::{Origin, Value, Written};

/// Reads the file at `path` into `settings`.
pub(super) fn read(path: &Path, settings: &mut Settings) {
    let shown = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&shown, &text, settings),
        Err(error) => settings
            .problems
            .push(Problem::nowhere(format!("cannot read {shown}: {error}"))),
    }
}

/// Reads `text`, calling it `path`, into `settings`.
pub(super) fn parse(path: &str, text: &str, settings: &mut Settings) {
    let mut file = File {
        path,
        text,
        settings,
    };
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        // Not its `Display`, which quotes the line: the line may hold a password.
        let place = file.place(error.span().unwrap_or(0..0));
        file.problem(&place, format!("not TOML: {}", error.message()));
    }
    // After a syntax error the rest of the tree is a guess.
    if errors.is_empty() {
        file.root(root.get_ref());
    }
}

/// A file that is being read.
struct File<'a> {
    path: &'a str,
    text: &'a str,
    settings: &'a mut Settings,
}

impl File<'_> {
    fn root(&mut self, root: &DeTable<'_>) {
        for (name, value) in root {
            let place = self.place(name.span());
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("outbox", DeValue::Array(tables)) => {
                    for table in tables.iter() {
                        self.outbox(table);
                    }
                }
                ("outbox", _) => {
                    self.problem(&place, "`outbox` is a list: write `[[outbox]]`".into());
                }
                (
                    name @ ("database" | "kafka" | "relay" | "http" | "log"),
                    DeValue::Table(table),
                ) => {
                    self.section(name, 0, table);
                }
                (name @ ("database" | "kafka" | "relay" | "http" | "log"), _) => {
                    let text = format!("`{name}` is a section: write `[{name}]`");
                    self.problem(&place, text);
                }
                (name, _) => self.unknown("", name, &place),
            }
        }
    }

    fn outbox(&mut self, table: &Spanned<DeValue<'_>>) {
        let place = self.place(table.span());
        if let Some(table) = table.get_ref().as_table() {
            let index = self.settings.outboxes.len();
            self.settings.outboxes.push(place);
            self.section("outbox", index, table);
        } else {
            self.problem(&place, "`outbox` is a list: write `[[outbox]]`".into());
        }
    }

    fn section(&mut self, section: &str, index: usize, table: &DeTable<'_>) {
        for (name, value) in table {
            let place = self.place(name.span());
            let name = name.get_ref().as_ref();
            if let Some(spec) = keys::spec(section, name) {
                let written = self.written(value, place);
                self.settings.set(spec, index, written);
            } else if format!("{section}.{name}") == PROPERTIES {
                match value.get_ref() {
                    DeValue::Table(table) => self.properties("", table),
                    _ => self.problem(
                        &place,
                        format!("`{PROPERTIES}` is a section: write `[{PROPERTIES}]`"),
                    ),
                }
            } else {
                self.unknown(section, name, &place);
            }
        }
    }

    /// `sasl.username = "x"` is a table in TOML, yet a name with a dot in librdkafka.
    fn properties(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let place = self.place(name.span());
            let name = format!("{prefix}{}", name.get_ref());
            match value.get_ref() {
                DeValue::Table(table) => self.properties(&format!("{name}."), table),
                _ if self.settings.properties.contains_key(&name) => {
                    self.problem(&place, format!("`{PROPERTIES}.{name}` is written twice"));
                }
                _ => {
                    let written = self.written(value, place);
                    self.settings.properties.insert(name, written);
                }
            }
        }
    }

    fn unknown(&mut self, section: &str, name: &str, place: &Origin) {
        // A key that only stands in the wrong section.
        let elsewhere: Vec<String> = keys::ALL
            .iter()
            .filter(|spec| spec.name == name)
            .map(keys::Spec::path)
            .collect();
        let mut valid: Vec<&str> = match section {
            "" => SECTIONS.iter().map(|section| section.name).collect(),
            _ => keys::section_keys(section).map(|spec| spec.name).collect(),
        };
        if section == "kafka" {
            valid.push("properties");
        }
        if !elsewhere.is_empty() {
            valid = elsewhere.iter().map(String::as_str).collect();
        }
        let path = match section {
            "" => name.to_owned(),
            _ => format!("{section}.{name}"),
        };
        let problem = match elsewhere.as_slice() {
            [only] => Problem::at(
                place,
                format!("unknown key `{path}`; did you mean `{only}`?"),
            ),
            _ => Problem::unknown_key(place, &path, name, &valid),
        };
        self.settings.problems.push(problem);
    }

    fn problem(&mut self, place: &Origin, text: String) {
        self.settings.problems.push(Problem::at(place, text));
    }

    fn written(&self, value: &Spanned<DeValue<'_>>, origin: Origin) -> Written {
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(Secret::new(text.as_ref())),
            DeValue::Boolean(value) => Value::Bool(*value),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Value::Other("a number beyond 64 bits"), Value::Whole),
            DeValue::Float(_) => Value::Other("a fraction"),
            DeValue::Datetime(_) => Value::Other("a date"),
            DeValue::Array(values) => {
                let text = |value: &Spanned<DeValue<'_>>| value.get_ref().as_str().map(Secret::new);
                let texts: Option<_> = values.iter().map(text).collect();
                texts.map_or(Value::Other("a list of more than strings"), Value::List)
            }
            DeValue::Table(table) => pairs(table),
        };
        Written::new(value, origin)
    }

    fn place(&self, span: Range<usize>) -> Origin {
        let before = self
            .text
            .as_bytes()
            .get(..span.start)
            .unwrap_or(self.text.as_bytes());
        Origin::File {
            path: self.path.to_owned(),
            line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
        }
    }
}

/// A table whose values are all strings; no key takes another.
fn pairs(table: &DeTable<'_>) -> Value {
    let mut pairs = BTreeMap::new();
    for (name, value) in table {
        let Some(text) = value.get_ref().as_str() else {
            return Value::Other("a section with more than strings in it");
        };
        pairs.insert(name.get_ref().to_string(), Secret::new(text));
    }
    Value::Pairs(pairs)
}
