//! A value as somebody wrote it, where they wrote it, and how to read it as what it should be.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::layout::{Layout, LayoutKind, Placed};
use super::{Secret, TableName, suggest};
use crate::cloudevents::{CloudEvents, Mode, Payload, Words};
use crate::connect::{Format, Formats};
use crate::record::{RESERVED, Standard};
use crate::route::{Allowed, Template, TopicPattern};

/// One value and where it is from.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) value: Value,
    pub(super) origin: Origin,
    /// The file that held the value, where the origin only names one.
    pub(super) held_by: Option<String>,
}

/// A value before anyone asked what it means. Text is hidden: any of it may be a secret, or a
/// secret that was put beside the wrong key.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A string of the file.
    Text(Secret),
    /// A whole number of the file.
    Whole(i64),
    /// `true` or `false` in the file.
    Bool(bool),
    /// A table of strings of the file.
    Pairs(BTreeMap<String, Secret>),
    /// A list of strings of the file.
    List(Vec<Secret>),
    /// Text of a variable or a flag, which may stand for a number or a boolean too.
    Untyped(Secret),
    /// Something no key takes, by the name of its type.
    Other(&'static str),
}

/// Where a value is from; the stronger compares greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// Nobody wrote it.
    Default,
    /// A line of the config file.
    File { path: String, line: usize },
    /// A variable that other programs know too, `DATABASE_URL` for one.
    PlainVariable(String),
    /// `OUTBOX_RELAY__SECTION__KEY`.
    Variable(String),
    /// An option of the command line.
    Flag(&'static str),
}

impl Origin {
    /// Sources of one rank: two values of the same rank contradict each other, whereas of two
    /// ranks the greater wins.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File { .. } => 1,
            Self::PlainVariable(_) => 2,
            Self::Variable(_) => 3,
            Self::Flag(_) => 4,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::PlainVariable(name) | Self::Variable(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// The headers that the relay sets itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StandardHeaders {
    /// What every event has, by the header's name, in the order they are sent.
    pub(super) of_event: Vec<(Standard, String)>,
    /// When the row was inserted: only where the table says.
    pub(super) created_at: Option<String>,
}

impl StandardHeaders {
    const NAMED: [(&'static str, Standard); 4] = [
        ("event_id", Standard::EventId),
        ("event_type", Standard::EventType),
        ("aggregate_type", Standard::AggregateType),
        ("seq", Standard::Seq),
    ];
}

/// A value was not what its key takes. The text says what is wrong with it where that is more than
/// "something else", and never what was written.
pub(super) type Reading<T> = Result<T, String>;

impl Written {
    pub(super) fn new(value: Value, origin: Origin) -> Self {
        Self {
            value,
            origin,
            held_by: None,
        }
    }

    /// The value `text`, which nobody wrote.
    pub(super) fn default(text: &str) -> Self {
        Self::new(Value::Untyped(Secret::new(text)), Origin::Default)
    }

    pub(super) fn text(&self) -> Reading<&str> {
        match &self.value {
            Value::Text(text) | Value::Untyped(text) => Ok(text.expose()),
            other => Err(format!("this is {}", other.type_name())),
        }
    }

    /// Text that is not empty.
    pub(super) fn some_text(&self) -> Reading<&str> {
        match self.text()?.trim() {
            "" => Err("this is empty".into()),
            text => Ok(text),
        }
    }

    pub(super) fn boolean(&self) -> Reading<bool> {
        match &self.value {
            Value::Bool(value) => Ok(*value),
            Value::Untyped(text) => text.expose().trim().parse().map_err(|_| String::new()),
            other => Err(format!("this is {}", other.type_name())),
        }
    }

    pub(super) fn whole<T>(&self, range: RangeInclusive<T>) -> Reading<T>
    where
        T: TryFrom<i64> + PartialOrd,
    {
        let number = match &self.value {
            Value::Whole(number) => *number,
            Value::Untyped(text) => whole_in(text.expose())?,
            other => return Err(format!("this is {}", other.type_name())),
        };
        within(number, &range)
    }

    /// A number of bytes: `4194304`, `"4MiB"`.
    pub(super) fn bytes(&self, range: RangeInclusive<usize>) -> Reading<usize> {
        let number = match &self.value {
            Value::Whole(number) => *number,
            Value::Text(text) | Value::Untyped(text) => bytes_in(text.expose())?,
            other => return Err(format!("this is {}", other.type_name())),
        };
        within(number, &range)
    }

    /// A length of time: `"100ms"`, `"1h 30m"`.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Reading<Duration> {
        if matches!(self.value, Value::Whole(_)) {
            return Err("a bare number has no unit".into());
        }
        let duration = humantime::parse_duration(self.text()?.trim()).map_err(|_| String::new())?;
        if range.contains(&duration) {
            Ok(duration)
        } else {
            Err("this is out of range".into())
        }
    }

    /// One of `choices`, by name.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Reading<T> {
        let text = self.text()?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(*choice);
        }
        match suggest::nearest(text, choices.iter().map(|(name, _)| *name)) {
            Some(name) => Err(format!("did you mean `{name}`?")),
            None => Err(String::new()),
        }
    }

    /// A table whose values are some of `choices`, by name: `{ a = "x", b = "y" }`.
    pub(super) fn choices<T: Copy>(&self, choices: &[(&str, T)]) -> Reading<BTreeMap<String, T>> {
        self.table(|value| value.choice(choices))
    }

    /// A table of lengths of time: `{ a = "5s" }`.
    pub(super) fn durations(
        &self,
        range: RangeInclusive<Duration>,
    ) -> Reading<BTreeMap<String, Duration>> {
        self.table(|value| value.duration(range.clone()))
    }

    /// A table, each of its values as `read` reads it.
    fn table<T>(&self, read: impl Fn(&Self) -> Reading<T>) -> Reading<BTreeMap<String, T>> {
        let parsed;
        let pairs = match &self.value {
            Value::Pairs(pairs) => pairs,
            Value::Untyped(text) => {
                parsed = pairs_in(text.expose())?;
                &parsed
            }
            other => return Err(format!("this is {}", other.type_name())),
        };
        let read = |(name, value): (&String, &Secret)| {
            let value = Self::new(Value::Text(value.clone()), Origin::Default);
            match read(&value) {
                Ok(value) => Ok((name.clone(), value)),
                Err(why) if why.is_empty() => Err(format!("look at `{name}`")),
                Err(why) => Err(format!("look at `{name}`: {why}")),
            }
        };
        pairs.iter().map(read).collect()
    }

    /// A list, each of its values as `read` reads it: `["a", "b"]`.
    pub(super) fn list<T>(&self, read: impl Fn(&str) -> Reading<T>) -> Reading<Vec<T>> {
        let parsed;
        let texts = match &self.value {
            Value::List(texts) => texts,
            Value::Untyped(text) => {
                parsed = list_in(text.expose())?;
                &parsed
            }
            other => return Err(format!("this is {}", other.type_name())),
        };
        let read = |(n, text): (usize, &Secret)| {
            read(text.expose()).map_err(|why| format!("look at number {}: {why}", n + 1))
        };
        texts.iter().enumerate().map(read).collect()
    }

    pub(super) fn table_name(&self) -> Reading<TableName> {
        TableName::parse(self.text()?)
    }

    pub(super) fn template(&self) -> Reading<Template> {
        Template::parse(self.text()?)
    }

    /// A layout by its name, or the columns of one: `{ id = "uid", … }`.
    pub(super) fn layout(&self) -> Reading<Layout> {
        match &self.value {
            Value::Text(_) => {}
            Value::Untyped(text) if !text.expose().trim_start().starts_with('{') => {}
            _ => return Layout::custom(&self.table(|name| name.text().map(str::to_owned))?),
        }
        self.choice(&LayoutKind::NAMED).map(Layout::of)
    }

    /// Columns that travel as headers.
    pub(super) fn placed(&self) -> Reading<Vec<Placed>> {
        self.list(Placed::parse)
    }

    /// Which headers the relay sets itself, and their names.
    pub(super) fn headers(&self) -> Reading<StandardHeaders> {
        let named = self.table(|name| name.text().map(str::to_owned))?;
        let mut found = StandardHeaders::default();
        for (what, name) in &named {
            if name.is_empty() || name.contains('\0') || name.starts_with(RESERVED) {
                return Err(format!(
                    "look at `{what}`: a header's name is not empty and does not begin with {RESERVED}"
                ));
            }
            if named
                .iter()
                .any(|(other, its)| other != what && its == name)
            {
                return Err(format!("two have the name `{name}`"));
            }
            if what == "created_at" {
                found.created_at = Some(name.clone());
                continue;
            }
            let known = StandardHeaders::NAMED
                .iter()
                .find(|(known, _)| known == what);
            let Some((_, standard)) = known else {
                let all = StandardHeaders::NAMED.iter().map(|(known, _)| *known);
                return Err(match suggest::nearest(what, all.chain(["created_at"])) {
                    Some(known) => format!("`{what}` is none; did you mean `{known}`?"),
                    None => format!("`{what}` is none of them"),
                });
            };
            found.of_event.push((*standard, name.clone()));
        }
        found.of_event.sort();
        match found.of_event.first() {
            Some((Standard::EventId, _)) => Ok(found),
            _ => Err("`event_id` is always one: consumers tell a repeat by it".into()),
        }
    }

    /// The format of each part of a record that has one of its own.
    pub(super) fn formats(&self) -> Reading<Formats> {
        let mut formats = Formats::default();
        for (part, format) in self.choices(&Format::NAMED)? {
            if format == Format::JsonExpanded && part != "value" {
                return Err(format!("look at `{part}`: only the value can be expanded"));
            }
            match part.as_str() {
                "key" => formats.key = format,
                "value" => formats.value = format,
                "headers" => formats.headers = format,
                _ => return Err(format!("`{part}` is none of key, value, headers")),
            }
        }
        Ok(formats)
    }

    /// How rows become CloudEvents, if they do.
    pub(super) fn cloudevents(&self) -> Reading<Option<CloudEvents>> {
        const KNOWN: [&str; 4] = ["mode", "source", "type", "datacontenttype"];
        let table = self.table(|value| value.text().map(str::to_owned))?;
        if table.is_empty() {
            return Ok(None);
        }
        if let Some(other) = table.keys().find(|name| !KNOWN.contains(&name.as_str())) {
            return Err(match suggest::nearest(other, KNOWN) {
                Some(known) => format!("`{other}` is none of it; did you mean `{known}`?"),
                None => format!("`{other}` is none of it"),
            });
        }
        let get = |name: &str| table.get(name).map(String::as_str);
        let look = |name: &str, why: String| format!("look at `{name}`: {why}");
        let mode = Mode::NAMED
            .iter()
            .find(|(name, _)| Some(*name) == get("mode"));
        let Some((_, mode)) = mode else {
            return Err("`mode` is \"binary\" or \"structured\"".into());
        };
        let Some(source) = get("source") else {
            return Err("`source` is wanted: it tells where events come from, as a URI".into());
        };
        let media_type = get("datacontenttype");
        if media_type
            .is_some_and(|it| !it.contains('/') || !it.chars().all(|c| matches!(c, ' '..='~')))
        {
            return Err(look("datacontenttype", "it is no media type".into()));
        }
        let event_type = get("type").unwrap_or("${event_type}");
        Ok(Some(CloudEvents {
            mode: *mode,
            source: Words::parse_reference(source).map_err(|why| look("source", why))?,
            event_type: Words::parse(event_type).map_err(|why| look("type", why))?,
            media_type: media_type.map(str::to_owned),
            payload: Payload::default(),
        }))
    }

    pub(super) fn topics(&self) -> Reading<Allowed> {
        self.list(TopicPattern::parse).map(Allowed::new)
    }
}

impl Value {
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Untyped(_) => "a string",
            Self::Whole(_) => "a number",
            Self::Bool(_) => "a boolean",
            Self::Pairs(_) => "a section",
            Self::List(_) => "a list",
            Self::Other(name) => name,
        }
    }
}

/// A value of TOML, in one line.
fn inline(text: &str) -> Option<toml::Value> {
    let text = text.trim();
    let mut table: toml::Table = format!("it = {text}").parse().ok()?;
    table.remove("it").filter(|_| table.is_empty())
}

/// A list of TOML whose values are strings.
fn list_in(text: &str) -> Reading<Vec<Secret>> {
    let Some(toml::Value::Array(values)) = inline(text) else {
        return Err("this is no list of TOML".into());
    };
    let text = |value: &toml::Value| value.as_str().map(Secret::new);
    let texts: Option<_> = values.iter().map(text).collect();
    texts.ok_or_else(|| "it has more than strings in it".to_owned())
}

/// An inline table of TOML whose values are strings.
fn pairs_in(text: &str) -> Reading<BTreeMap<String, Secret>> {
    let Some(toml::Value::Table(pairs)) = inline(text) else {
        return Err("this is no inline table of TOML".into());
    };
    let pair = |(name, value): (&String, &toml::Value)| match value {
        toml::Value::String(text) => Ok((name.clone(), Secret::new(text))),
        _ => Err(format!("`{name}` is no string")),
    };
    pairs.iter().map(pair).collect()
}

fn whole_in(text: &str) -> Reading<i64> {
    text.trim()
        .replace('_', "")
        .parse()
        .map_err(|_| String::new())
}

fn bytes_in(text: &str) -> Reading<i64> {
    const UNITS: [(&str, i64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let text = text.trim();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)))
        .unwrap_or((text, 1));
    whole_in(number)?
        .checked_mul(unit)
        .ok_or_else(|| "this is out of range".into())
}

fn within<T>(number: i64, range: &RangeInclusive<T>) -> Reading<T>
where
    T: TryFrom<i64> + PartialOrd,
{
    T::try_from(number)
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| "this is out of range".into())
}
