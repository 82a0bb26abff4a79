//! One line of a check. Pure.

use serde_json::{Value, json};

use crate::finding::{Finding, Fix};

/// How bad it is, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It was not looked at, and why; no judgement.
    Skip,
    /// As it must be.
    Ok,
    /// It works, and will hurt one day.
    Warn,
    /// Rows are not published, or not as promised.
    Fail,
}

/// What was looked at, how it is, why, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How bad it is.
    pub level: Level,
    /// What was looked at, as docs/check.md has it.
    pub item: &'static str,
    /// Of which table or topic.
    pub about: Option<String>,
    /// What was found.
    pub why: String,
    /// What mends it.
    pub fix: Option<Fix>,
}

/// What a line cannot know by itself.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// The options that tell `outbox-relay` which config is meant, with a space before each.
    pub options: String,
    /// Those of them that say where the file is: some commands take no other.
    pub file: String,
}

impl Line {
    fn new(level: Level, item: &'static str, why: impl Into<String>) -> Self {
        Self {
            level,
            item,
            about: None,
            why: why.into(),
            fix: None,
        }
    }

    pub(super) fn ok(item: &'static str, why: impl Into<String>) -> Self {
        Self::new(Level::Ok, item, why)
    }

    pub(super) fn skip(item: &'static str, why: impl Into<String>) -> Self {
        Self::new(Level::Skip, item, why)
    }

    pub(super) fn warn(item: &'static str, why: impl Into<String>) -> Self {
        Self::new(Level::Warn, item, why)
    }

    pub(super) fn fail(item: &'static str, why: impl Into<String>) -> Self {
        Self::new(Level::Fail, item, why)
    }

    pub(super) fn found(item: &'static str, finding: &Finding) -> Self {
        Self {
            fix: finding.fix.clone(),
            ..Self::fail(item, &finding.why)
        }
    }

    pub(super) fn fix(self, fix: Fix) -> Self {
        Self {
            fix: Some(fix),
            ..self
        }
    }

    pub(super) fn sql(self, sql: impl Into<String>) -> Self {
        self.fix(Fix::Sql(sql.into()))
    }

    pub(super) fn shell(self, command: impl Into<String>) -> Self {
        self.fix(Fix::Shell(command.into()))
    }

    pub(super) fn words(self, words: impl Into<String>) -> Self {
        self.fix(Fix::Words(words.into()))
    }

    /// Of which table or topic, unless it says so already.
    pub(super) fn about(self, about: &str) -> Self {
        let about = self.about.or_else(|| Some(about.to_owned()));
        Self { about, ..self }
    }

    /// For people, without a line end: the level, the item, and the rest, the fix last.
    #[must_use]
    pub fn text(&self, names: &Names) -> String {
        let mut text = format!("{:<4}  {:<11}  ", self.level.name(), self.item);
        // most reasons name the table themselves
        if let Some(about) = self.about.as_deref().filter(|it| !self.why.contains(*it)) {
            text.push_str(&format!("{about}: "));
        }
        text.push_str(&self.why);
        if let Some(fix) = &self.fix {
            text.push_str(&format!(". Fix: {}", in_full(fix, names)));
        }
        text
    }

    /// For machines.
    #[must_use]
    pub fn json(&self, names: &Names) -> Value {
        let fix = self.fix.as_ref();
        json!({
            "level": self.level.name(),
            "item": self.item,
            "about": self.about,
            "why": self.why,
            "fix": fix.map(|fix| in_full(fix, names)),
            "fix_kind": fix.map(kind),
        })
    }
}

impl Level {
    /// As it is printed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The worst of all levels.
#[must_use]
pub fn worst(levels: impl IntoIterator<Item = Level>) -> Level {
    levels.into_iter().max().unwrap_or(Level::Ok)
}

fn in_full(fix: &Fix, names: &Names) -> String {
    match fix {
        Fix::Sql(text) | Fix::Shell(text) | Fix::Words(text) => text.clone(),
        Fix::Relay(arguments) => {
            let options = match arguments.starts_with("parked") {
                true => &names.file,
                false => &names.options,
            };
            format!("outbox-relay {arguments}{options}")
        }
        Fix::Setting { section, line } => format!("{line} in [{section}] of the config"),
    }
}

fn kind(fix: &Fix) -> &'static str {
    match fix {
        Fix::Sql(_) => "sql",
        Fix::Shell(_) | Fix::Relay(_) => "shell",
        Fix::Setting { .. } => "setting",
        Fix::Words(_) => "words",
    }
}

/// A word as a shell has it.
#[must_use]
pub fn shell(word: &str) -> String {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | ',');
    match word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_what_mends_it_ready_to_paste() {
        let names = Names {
            options: " --config relay.toml --table outbox".to_owned(),
            file: " --config relay.toml".to_owned(),
        };
        let finding = Finding::migrate("public.outbox has no lanes yet");
        let line = Line::found("lanes", &finding).about("public.outbox");
        assert_eq!(
            line.text(&names),
            "fail  lanes        public.outbox has no lanes yet. Fix: outbox-relay migrate --yes \
             --config relay.toml --table outbox"
        );
        let json = line.json(&names);
        assert_eq!(
            json["fix"],
            "outbox-relay migrate --yes --config relay.toml --table outbox"
        );
        assert_eq!(json["fix_kind"], "shell");
        // which takes no other option
        let parked = line.clone().fix(Fix::Relay("parked list".to_owned()));
        assert_eq!(
            parked.json(&names)["fix"],
            "outbox-relay parked list --config relay.toml"
        );
        assert_eq!(json["about"], "public.outbox");
        let line = Line::ok("claim", "by its index").about("public.outbox");
        assert_eq!(
            line.text(&names),
            "ok    claim        public.outbox: by its index"
        );
        assert_eq!(line.json(&names)["fix"], Value::Null);
    }

    #[test]
    fn the_worst_line_counts_and_a_skipped_one_says_nothing() {
        use Level::{Fail, Ok, Skip, Warn};
        assert_eq!(worst([]), Ok);
        assert_eq!(worst([Skip]), Skip);
        assert_eq!(worst([Ok, Skip]), Ok);
        assert_eq!(worst([Warn, Ok]), Warn);
        assert_eq!(worst([Warn, Fail, Ok]), Fail);
    }
}
