//! The keys as text: the starter file, the reference, and a config in force.

use std::fmt::Write as _;

use super::keys::{self, PROPERTIES, PROPERTY_EXAMPLES, SECTIONS, Section, Spec};
use super::settings::{Settings, property_is_secret, url_shown};
use super::written::{Value, Written};

const HIDDEN: &str = "***";

/// The file to start from: every key with its comment, what must be set with an example, the rest
/// with its default in a comment. It is valid as it stands.
#[must_use]
pub fn starter() -> String {
    let mut text = String::from(
        "# outbox-relay. What is commented out shows the default, or an example where there is none.\n\
         # A value in the environment is stronger than one here, an option of the command line\n\
         # stronger still. `outbox-relay config check` tells whether the file is right,\n\
         # `outbox-relay config print` what is in force and where it is from.\n",
    );
    for section in &SECTIONS {
        text.push('\n');
        comment(&mut text, section.doc);
        line(&mut text, section.header);
        if section.name == PROPERTIES {
            for (name, value) in PROPERTY_EXAMPLES {
                line(
                    &mut text,
                    &format!("# {} = {}", quoted(name), quoted(value)),
                );
            }
        }
        for spec in keys::section_keys(section.name) {
            text.push('\n');
            comment(&mut text, spec.doc);
            comment(&mut text, &also(spec));
            let mark = if spec.starter { "" } else { "# " };
            let value = literal(spec, spec.default.unwrap_or(spec.example));
            line(&mut text, &format!("{mark}{} = {value}", spec.name));
        }
    }
    text
}

/// The reference of all keys, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Configuration\n\
         \n\
         <!-- Written by `outbox-relay config reference`; a test holds the two equal. -->\n\
         \n\
         `outbox-relay config init` prints a file with all of this in its comments.\n\
         A value comes from the strongest of these that has it:\n\
         \n\
         1. an option of the command line;\n\
         2. the variable `OUTBOX_RELAY__SECTION__KEY`, such as `OUTBOX_RELAY__RELAY__WORKERS`;\n\
         3. a variable that other programs know too: `DATABASE_URL`, `KAFKA_BROKERS`, `RUST_LOG`;\n\
         4. the file that `--config` names;\n\
         5. for the database alone: `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`, `PGDATABASE` and the\n   \
            `PGSSL…` variables, where nothing above names one;\n\
         6. the default.\n\
         \n\
         An empty variable counts as not set. Options and variables of `outbox` set the only outbox; with\n\
         several `[[outbox]]` sections they are refused. An unknown key or variable, a value of a wrong\n\
         type or out of range ends the program with exit code 78 and a line for each fault. Paths are\n\
         relative to the working directory. The line end behind a secret in a file is dropped.\n",
    );
    for section in &SECTIONS {
        section_reference(&mut text, section);
    }
    text
}

fn section_reference(text: &mut String, section: &Section) {
    line(text, &format!("\n## `{}`\n", section.header));
    line(text, section.doc);
    if section.name == PROPERTIES {
        line(text, "\n```toml\n[kafka.properties]");
        for (name, value) in PROPERTY_EXAMPLES {
            line(text, &format!("{} = {}", quoted(name), quoted(value)));
        }
        line(text, "```");
    }
    for spec in keys::section_keys(section.name) {
        line(text, &format!("\n### `{}`\n", spec.path()));
        line(text, &doc_text(spec.doc));
        line(text, &format!("\n- Takes {}.", spec.takes));
        if let Some(default) = spec.default {
            let mut said = format!("- Default: `{}`", literal(spec, default));
            if let Some(debezium) = spec.debezium {
                said.push_str(&format!(
                    "; `{}` with `layout = \"debezium\"`",
                    literal(spec, debezium)
                ));
            }
            line(text, &said);
        }
        let mut sources: Vec<String> = spec
            .flag
            .map(|flag| format!("`{flag}`"))
            .into_iter()
            .collect();
        sources.push(format!("`{}`", spec.variable()));
        sources.extend(spec.variables.iter().map(|name| format!("`{name}`")));
        line(text, &format!("- Also: {}", sources.join(", ")));
    }
}

impl Settings {
    /// What is in force, as TOML, with a comment on each value that says where it is from. Secrets
    /// are replaced. For settings that [`Settings::config`] takes.
    #[must_use]
    pub fn print(&self) -> String {
        let mut text = String::new();
        for section in &SECTIONS {
            match section.name {
                PROPERTIES => self.print_properties(&mut text),
                "outbox" => {
                    for index in 0..self.outboxes.len() {
                        self.print_section(&mut text, section, index);
                    }
                }
                _ => self.print_section(&mut text, section, 0),
            }
        }
        text
    }

    fn print_section(&self, text: &mut String, section: &Section, index: usize) {
        if !text.is_empty() {
            text.push('\n');
        }
        line(text, section.header);
        for spec in keys::section_keys(section.name) {
            // The URL is shown in its place, whether it came from there or from its file.
            if spec.name == keys::URL_FILE.spec.name {
                continue;
            }
            let written = if spec.secret {
                self.url_written().ok().flatten()
            } else {
                self.written(index, spec)
            };
            match written {
                None => line(text, &format!("# {} is not set", spec.name)),
                Some(written) => {
                    let value = shown(spec, &written);
                    line(text, &format!("{} = {value}{}", spec.name, from(&written)));
                }
            }
        }
    }

    fn print_properties(&self, text: &mut String) {
        let properties = self.properties_written();
        if properties.is_empty() {
            return;
        }
        line(text, "\n[kafka.properties]");
        for (name, written) in properties {
            let Ok(written) = written else { continue };
            let value = match &written.value {
                Value::Text(value) | Value::Untyped(value) => {
                    let value = value.expose();
                    if written.held_by.is_some() || property_is_secret(&name, value) {
                        quoted(HIDDEN)
                    } else {
                        quoted(value)
                    }
                }
                Value::Whole(_) | Value::Bool(_) if property_is_secret(&name, "") => quoted(HIDDEN),
                Value::Whole(number) => number.to_string(),
                Value::Bool(value) => value.to_string(),
                Value::Pairs(_) | Value::List(_) | Value::Other(_) => continue,
            };
            line(
                text,
                &format!("{} = {value}{}", quoted(&name), from(&written)),
            );
        }
    }
}

fn shown(spec: &Spec, written: &Written) -> String {
    if spec.secret {
        return quoted(&url_shown(written));
    }
    // What its key does not take may be anything, a misplaced password too.
    if (spec.check)(written).is_err() {
        return quoted(HIDDEN);
    }
    match &written.value {
        Value::Whole(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Text(text) => quoted(text.expose()),
        Value::Pairs(pairs) => {
            let pairs: Vec<String> = pairs
                .iter()
                .map(|(name, text)| format!("{} = {}", quoted(name), quoted(text.expose())))
                .collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Value::List(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| quoted(text.expose())).collect();
            format!("[{}]", texts.join(", "))
        }
        Value::Untyped(text) => literal(spec, text.expose()),
        Value::Other(_) => quoted(HIDDEN),
    }
}

fn from(written: &Written) -> String {
    match &written.held_by {
        None => format!("  # from {}", written.origin),
        Some(file) => format!("  # from {file}, named by {}", written.origin),
    }
}

/// `text` as the file takes it for this key: numbers, booleans, tables and lists bare, the rest quoted.
fn literal(spec: &Spec, text: &str) -> String {
    let bare = |text: &str| {
        text.parse::<i64>().is_ok() || text.parse::<bool>().is_ok() || text.starts_with(['{', '['])
    };
    if bare(text) && spec.default.is_some_and(bare) {
        text.to_owned()
    } else {
        quoted(text)
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// The other ways to set a key, for its comment.
fn also(spec: &Spec) -> String {
    let mut ways: Vec<&str> = spec.variables.to_vec();
    ways.extend(spec.flag);
    if ways.is_empty() {
        String::new()
    } else {
        format!("Also: {}.", ways.join(", "))
    }
}

/// A doc comment without the space that each of its lines begins with.
fn doc_text(doc: &str) -> String {
    let lines: Vec<&str> = doc
        .trim_end()
        .lines()
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect();
    lines.join("\n")
}

fn comment(text: &mut String, doc: &str) {
    for doc_line in doc_text(doc).lines() {
        line(text, &format!("# {doc_line}"));
    }
}

fn line(text: &mut String, written: &str) {
    // Writing to a string cannot fail.
    writeln!(text, "{written}").unwrap_or_default();
}
