//! What was written, from every source, and how it becomes what was meant.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::environment::{Environment, PREFIX};
use super::keys::{self, Key, PROPERTIES, Spec};
use super::problem::{Error, Problem};
use super::written::{Origin, Value, Written};
use super::{
    Config, Database, Freshness, Http, Kafka, LayoutKind, Log, OnPublished, Outbox, Relay, Secret,
    TableName, database_url, file,
};
use crate::settle::Policies;
use crate::sink::properties;

/// What a config is wanted for: what may be missing from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To run: all of it.
    Run,
    /// To change the database: the brokers may be missing, and are empty then.
    Migrate,
    /// To print what would change: the database may be missing too, and is empty then.
    Print,
    /// To deal with parked rows: only the database is needed, and nothing of Kafka is looked at. No
    /// outbox means all that the database has.
    Parked,
    /// To watch a relay: any of it may be missing, and nothing of Kafka is looked at. No database means
    /// that none is asked.
    Watch,
    /// To show it: any of it may be missing, the outbox too.
    Show,
}

/// What the options of the command line say. The names are those of the options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--database-url`
    pub database_url: Option<Secret>,
    /// `--brokers`
    pub brokers: Option<String>,
    /// `--table`
    pub table: Option<String>,
    /// `--layout`
    pub layout: Option<String>,
    /// `--on-published`
    pub on_published: Option<String>,
}

/// Everything that was written, the stronger source over the weaker, with where it is from and what
/// is wrong with it. It holds secrets and shows none.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    values: BTreeMap<(&'static str, usize, &'static str), Written>,
    pub(super) properties: BTreeMap<String, Written>,
    /// Where each outbox begins.
    pub(super) outboxes: Vec<Origin>,
    pub(super) problems: Vec<Problem>,
}

impl Settings {
    /// Collects what `file`, `environment` and `flags` say. What is wrong with it comes out of
    /// [`Settings::config`].
    #[must_use]
    pub fn gather(file: Option<&Path>, environment: &Environment, flags: &Flags) -> Self {
        let mut settings = Self::default();
        if let Some(path) = file {
            file::read(path, &mut settings);
        }
        settings.plain_variables(environment);
        settings.own_variables(environment);
        settings.flags(flags);
        settings
    }

    /// As [`Settings::gather`], of a file's `text`.
    #[cfg(any(test, feature = "failpoints"))]
    #[doc(hidden)]
    #[must_use]
    pub fn of_text(text: &str, environment: &Environment, flags: &Flags) -> Self {
        let mut settings = Self::default();
        file::parse("relay.toml", text, &mut settings);
        settings.plain_variables(environment);
        settings.own_variables(environment);
        settings.flags(flags);
        settings
    }

    /// What a file says that has this text, and nothing else.
    pub(super) fn of_toml(text: &str) -> Self {
        let mut settings = Self::default();
        file::parse("", text, &mut settings);
        settings
    }

    pub(super) fn set(&mut self, spec: &'static Spec, index: usize, written: Written) {
        self.values
            .insert((spec.section, index, spec.name), written);
    }

    fn plain_variables(&mut self, environment: &Environment) {
        for spec in keys::ALL {
            for name in spec.variables {
                if let Some(value) = environment.get(name) {
                    let origin = Origin::PlainVariable((*name).to_owned());
                    self.set_alone(spec, value.clone(), origin);
                }
            }
        }
    }

    fn own_variables(&mut self, environment: &Environment) {
        for name in environment.unreadable() {
            if name.starts_with(PREFIX) || keys::ALL.iter().any(|k| k.variables.contains(&name)) {
                let place = Origin::Variable(name.to_owned());
                self.problems
                    .push(Problem::at(&place, "the value is not UTF-8"));
            }
        }
        for (name, value) in environment.own() {
            let origin = Origin::Variable(name.to_owned());
            if let Some(spec) = keys::ALL.iter().find(|spec| spec.variable() == name) {
                self.set_alone(spec, value.clone(), origin);
            } else if let Some(property) = name
                .strip_prefix(PREFIX)
                .and_then(|name| name.strip_prefix("KAFKA__PROPERTIES__"))
                .filter(|property| !property.is_empty())
            {
                let value = Value::Untyped(value.clone());
                self.properties
                    .insert(property_of_variable(property), Written::new(value, origin));
            } else {
                let variables: Vec<String> = keys::ALL.iter().map(Spec::variable).collect();
                let valid: Vec<&str> = variables.iter().map(String::as_str).collect();
                let hint = match super::suggest::nearest(name, valid) {
                    Some(variable) => format!("; did you mean `{variable}`?"),
                    None => String::new(),
                };
                self.problems
                    .push(Problem::at(&origin, format!("no key has this name{hint}")));
            }
        }
        // Only where nothing stronger names a database. The file does too.
        let named = [&keys::URL.spec, &keys::URL_FILE.spec]
            .iter()
            .any(|spec| self.values.contains_key(&(spec.section, 0, spec.name)));
        if let (false, Some((url, names))) = (named, environment.libpq_url()) {
            self.set_alone(&keys::URL.spec, url, Origin::PlainVariable(names));
        }
    }

    fn flags(&mut self, flags: &Flags) {
        let texts = [
            ("--brokers", &flags.brokers),
            ("--table", &flags.table),
            ("--layout", &flags.layout),
            ("--on-published", &flags.on_published),
        ]
        .map(|(flag, text)| (flag, text.as_ref().map(Secret::new)));
        let url = [("--database-url", flags.database_url.clone())];
        for (flag, value) in url.into_iter().chain(texts) {
            let spec = keys::ALL.iter().find(|spec| spec.flag == Some(flag));
            if let (Some(spec), Some(value)) = (spec, value) {
                self.set_alone(spec, value, Origin::Flag(flag));
            }
        }
    }

    /// Sets a key from a source that can name no outbox: there must be one of them at most.
    fn set_alone(&mut self, spec: &'static Spec, value: Secret, origin: Origin) {
        if spec.section == "outbox" {
            match self.outboxes.len() {
                0 => self.outboxes.push(origin.clone()),
                1 => {}
                many => {
                    let text = format!(
                        "this sets `{}` of the only outbox, but the file has {many}: set it there",
                        spec.name
                    );
                    return self.problems.push(Problem::at(&origin, text));
                }
            }
        }
        self.set(spec, 0, Written::new(Value::Untyped(value), origin));
    }

    /// What was meant.
    ///
    /// # Errors
    /// Everything that is wrong with what was written, and what `purpose` needs and nobody wrote.
    pub fn config(&self, purpose: Purpose) -> Result<Config, Error> {
        let mut problems = self.problems.clone();
        for (&(section, _, name), written) in &self.values {
            if let Some(spec) = keys::spec(section, name)
                && let Err(why) = (spec.check)(written)
            {
                problems.push(misread(spec, written, &why));
            }
        }
        let (url, url_file) = self.url(purpose, &mut problems).unzip();
        let (password, password_file) = self.password(&mut problems).unzip();
        let brokers = self.brokers(purpose, &mut problems);
        // its secrets may be in files that only the relay can read
        let (properties, files) = match purpose {
            Purpose::Parked | Purpose::Watch => Default::default(),
            _ => self.properties(&mut problems),
        };
        self.outboxes_agree(purpose, &mut problems);
        self.limits_agree(&mut problems);
        if !problems.is_empty() {
            return Err(problems.into());
        }
        let outboxes = (0..self.outboxes.len())
            .map(|index| self.outbox(index, purpose))
            .collect::<Result<_, _>>()?;
        Ok(Config {
            database: Database {
                url: url.unwrap_or_else(|| Secret::new("")),
                url_file: url_file.flatten(),
                password,
                password_file: password_file.flatten(),
                connect_timeout: self.read(&keys::CONNECT_TIMEOUT)?,
                statement_timeout: self.read(&keys::STATEMENT_TIMEOUT)?,
                prepared_statements: self.read(&keys::PREPARED_STATEMENTS)?,
            },
            kafka: Kafka {
                brokers,
                message_bytes_max: self.read(&keys::MESSAGE_BYTES_MAX)?,
                properties,
                files,
            },
            outboxes,
            relay: Relay {
                workers: self.read(&keys::WORKERS)?,
                producers: self.read(&keys::PRODUCERS)?,
                claim_rows_max: self.read(&keys::CLAIM_ROWS_MAX)?,
                claim_bytes_max: self.read(&keys::CLAIM_BYTES_MAX)?,
                poll_interval_min: self.read(&keys::POLL_INTERVAL_MIN)?,
                poll_interval_max: self.read(&keys::POLL_INTERVAL_MAX)?,
                publish_timeout: self.read(&keys::PUBLISH_TIMEOUT)?,
                retry_backoff_max: self.read(&keys::RETRY_BACKOFF_MAX)?,
                drain_timeout: self.read(&keys::DRAIN_TIMEOUT)?,
                sample_interval: self.read(&keys::SAMPLE_INTERVAL)?,
                sweep_interval: self.read(&keys::SWEEP_INTERVAL)?,
            },
            http: Http {
                listen: self.read(&keys::LISTEN)?,
                strict_readiness: self.read(&keys::STRICT_READINESS)?,
                stuck_after: self.read(&keys::STUCK_AFTER)?,
            },
            log: Log {
                format: self.read(&keys::FORMAT)?,
                filter: self.read(&keys::FILTER)?,
                heartbeat: self.read(&keys::HEARTBEAT)?,
            },
        })
    }

    fn outbox(&self, index: usize, purpose: Purpose) -> Result<Outbox, Error> {
        let (layout, topic, encoding) = self.wire(index)?;
        Ok(Outbox {
            table: self.read_of(index, &keys::TABLE)?,
            layout,
            on_published: self.read_of(index, &keys::ON_PUBLISHED)?,
            topic,
            encoding,
            topics_allowed: self.read_of(index, &keys::TOPICS_ALLOWED)?,
            on_rejected: Policies {
                usual: self.read_of(index, &keys::ON_REJECTED)?,
                by_event_type: self.read_of(index, &keys::ON_REJECTED_BY_EVENT_TYPE)?,
            },
            contracts: self.contracts(index, purpose)?,
            dead_letter_topic: self.read_of(index, &keys::DEAD_LETTER_TOPIC)?,
            lanes: self.read_of(index, &keys::LANES)?,
            retention: self.read_of(index, &keys::RETENTION)?,
            archive_partition: self.read_of(index, &keys::ARCHIVE_PARTITION)?,
            parked_retention: self.read_of(index, &keys::PARKED_RETENTION)?,
            rows_per_second_max: self.read_of(index, &keys::ROWS_PER_SECOND_MAX)?,
            notify: self.read_of(index, &keys::NOTIFY)?,
            flush_before_publish: self.read_of(index, &keys::FLUSH_BEFORE_PUBLISH)?,
            freshness: Freshness {
                usual: self.read_of(index, &keys::FRESHNESS_BUDGET)?,
                by_topic: self.read_of(index, &keys::FRESHNESS_BUDGET_BY_TOPIC)?,
            },
        })
    }

    /// The value of a key of a section there is one of, or its default.
    fn read<T>(&self, key: &Key<T>) -> Result<T, Problem> {
        self.read_of(0, key)
    }

    /// The value of a key of outbox `index`, or its default.
    pub(super) fn read_of<T>(&self, index: usize, key: &Key<T>) -> Result<T, Problem> {
        let spec = &key.spec;
        let written = self
            .written(index, spec)
            .ok_or_else(|| Problem::nowhere(format!("`{}` is not set", spec.path())))?;
        (key.read)(&written).map_err(|why| misread(spec, &written, &why))
    }

    /// What was written for a key, else its default.
    pub(super) fn written(&self, index: usize, spec: &Spec) -> Option<Written> {
        self.values
            .get(&(spec.section, index, spec.name))
            .cloned()
            .or_else(|| self.default_of(index, spec).map(Written::default))
    }

    /// What a key is where nobody wrote it.
    fn default_of(&self, index: usize, spec: &Spec) -> Option<&'static str> {
        if spec.debezium.is_some()
            && self
                .read_of(index, &keys::LAYOUT)
                .is_ok_and(|it| it.kind == LayoutKind::Debezium)
        {
            return spec.debezium;
        }
        spec.default
    }

    /// The URL, from itself or from its file, and that file. `None` also where it is wrong, which `problems`
    /// tell.
    fn url(
        &self,
        purpose: Purpose,
        problems: &mut Vec<Problem>,
    ) -> Option<(Secret, Option<PathBuf>)> {
        let needed = matches!(purpose, Purpose::Run | Purpose::Migrate | Purpose::Parked);
        match self.url_written() {
            Ok(Some(written)) => match (keys::URL.read)(&written) {
                Ok(url) => Some((url, holder(&written))),
                Err(why) => {
                    // Of the key itself this was said; of a file's contents not yet.
                    problems.push(misread(&keys::URL.spec, &written, &why));
                    None
                }
            },
            Ok(None) => {
                if needed {
                    problems.push(Problem::nowhere(
                        "no database: set `url` in [database], DATABASE_URL, or PGHOST and its kin",
                    ));
                }
                None
            }
            Err(problem) => {
                problems.push(problem);
                None
            }
        }
    }

    /// The URL as written, or as its file has it.
    pub(super) fn url_written(&self) -> Result<Option<Written>, Problem> {
        let url = self.written(0, &keys::URL.spec);
        let file = self.written(0, &keys::URL_FILE.spec);
        resolve("database.url", "database.url_file", url, file)
    }

    /// The password that a file of its own holds, and that file.
    fn password(&self, problems: &mut Vec<Problem>) -> Option<(Secret, Option<PathBuf>)> {
        let spec = &keys::PASSWORD_FILE.spec;
        let held = contents(&spec.path(), &self.written(0, spec)?);
        let password = held.and_then(|held| {
            let text = held.text().map_err(|why| misread(spec, &held, &why))?;
            Ok((Secret::new(text), holder(&held)))
        });
        password.map_err(|problem| problems.push(problem)).ok()
    }

    fn brokers(&self, purpose: Purpose, problems: &mut Vec<Problem>) -> String {
        match self.written(0, &keys::BROKERS.spec) {
            Some(written) => (keys::BROKERS.read)(&written).unwrap_or_default(),
            None => {
                if purpose == Purpose::Run {
                    problems.push(Problem::nowhere(
                        "no brokers: set `brokers` in [kafka], KAFKA_BROKERS, or --brokers",
                    ));
                }
                String::new()
            }
        }
    }

    fn properties(
        &self,
        problems: &mut Vec<Problem>,
    ) -> (BTreeMap<String, Secret>, BTreeMap<String, PathBuf>) {
        let (mut properties, mut files) = (BTreeMap::new(), BTreeMap::new());
        for (name, written) in self.properties_written() {
            let read = written.and_then(|it| Ok((property_text(&name, &it)?, holder(&it))));
            match read {
                Ok((text, file)) => {
                    files.extend(file.map(|file| (name.clone(), file)));
                    properties.insert(name, text);
                }
                Err(problem) => problems.push(problem),
            }
        }
        (properties, files)
    }

    /// Each librdkafka setting, by its own name, as written or as its file has it.
    pub(super) fn properties_written(&self) -> BTreeMap<String, Result<Written, Problem>> {
        let mut found: BTreeMap<&str, (Option<Written>, Option<Written>)> = BTreeMap::new();
        let mut resolved = BTreeMap::new();
        for (name, written) in &self.properties {
            match (properties::check(name), name.strip_suffix("_file")) {
                (Ok(()), _) => found.entry(name).or_default().0 = Some(written.clone()),
                (Err(_), Some(stem)) if properties::check(stem).is_ok() => {
                    found.entry(stem).or_default().1 = Some(written.clone());
                }
                (Err(why), stem) => {
                    let why = stem.map_or(why, |stem| {
                        properties::check(stem).err().unwrap_or_default()
                    });
                    let text = format!("`{PROPERTIES}.{name}` {why}");
                    let problem = Problem::at(&written.origin, text);
                    resolved.insert(name.clone(), Err(problem));
                }
            }
        }
        for (name, (value, file)) in found {
            let path = format!("{PROPERTIES}.{name}");
            match resolve(&path, &format!("{path}_file"), value, file) {
                Ok(Some(written)) => {
                    resolved.insert(name.to_owned(), Ok(written));
                }
                Ok(None) => {}
                Err(problem) => {
                    resolved.insert(name.to_owned(), Err(problem));
                }
            }
        }
        resolved
    }

    fn outboxes_agree(&self, purpose: Purpose, problems: &mut Vec<Problem>) {
        let optional = matches!(purpose, Purpose::Show | Purpose::Parked | Purpose::Watch);
        if self.outboxes.is_empty() && !optional {
            problems.push(Problem::nowhere(
                "no outbox: write an `[[outbox]]` section with its `table`, or use --table",
            ));
        }
        let mut seen: HashMap<TableName, Origin> = HashMap::new();
        for (index, place) in self.outboxes.iter().enumerate() {
            let Some(written) = self.written(index, &keys::TABLE.spec) else {
                problems.push(Problem::at(place, "this outbox has no `table`"));
                continue;
            };
            if let Ok(table) = (keys::TABLE.read)(&written) {
                let text = format!("`outbox.table`: {} is already served by", table.quoted());
                if let Some(first) = seen.insert(table, written.origin.clone()) {
                    problems.push(Problem::at(&written.origin, format!("{text} {first}")));
                }
            }
            if let Some(written) = self.written(index, &keys::TOPICS_ALLOWED.spec)
                && let Ok(allowed) = (keys::TOPICS_ALLOWED.read)(&written)
                && let Ok((_, template, _)) = self.wire(index)
                && let Some(topic) = template.constant().filter(|topic| !allowed.allows(topic))
            {
                let text = format!(
                    "`outbox.topics_allowed` does not have `outbox.topic`, {topic}: every row would be parked"
                );
                problems.push(Problem::at(&written.origin, text));
            }
            // of a value that is wrong in itself this was said before
            if let Err(problem) = self.wire(index)
                && !problems.contains(&problem)
            {
                problems.push(problem);
            }
            let retention = self.written(index, &keys::RETENTION.spec);
            if let Some(retention) = retention
                && matches!((keys::RETENTION.read)(&retention), Ok(Some(_)))
                && self.read_of(index, &keys::ON_PUBLISHED) == Ok(OnPublished::Delete)
            {
                problems.push(Problem::at(
                    &retention.origin,
                    "`outbox.retention` is for marked rows and a history; with `on_published = \"delete\"` none are kept",
                ));
            }
        }
    }

    fn limits_agree(&self, problems: &mut Vec<Problem>) {
        let shortest = self.read(&keys::POLL_INTERVAL_MIN);
        let longest = self.read(&keys::POLL_INTERVAL_MAX);
        if let (Ok(shortest), Ok(longest)) = (shortest, longest)
            && shortest > longest
            && let Some(culprit) = [&keys::POLL_INTERVAL_MIN, &keys::POLL_INTERVAL_MAX]
                .into_iter()
                .filter_map(|key: &Key<Duration>| self.written(0, &key.spec))
                .max_by_key(|written| written.origin.rank())
        {
            problems.push(Problem::at(
                &culprit.origin,
                format!(
                    "`relay.poll_interval_min` ({}) is more than `relay.poll_interval_max` ({})",
                    humantime::format_duration(shortest),
                    humantime::format_duration(longest)
                ),
            ));
        }
    }
}

/// The stronger of a value and of a file that holds it, the latter read.
fn resolve(
    key: &str,
    file_key: &str,
    value: Option<Written>,
    file: Option<Written>,
) -> Result<Option<Written>, Problem> {
    match (value, file) {
        (value, None) => Ok(value),
        (None, Some(file)) => contents(file_key, &file).map(Some),
        (Some(value), Some(file)) if value.origin.rank() == file.origin.rank() => Err(Problem::at(
            &file.origin,
            format!(
                "`{file_key}` and `{key}` ({}) say the same thing; keep one",
                value.origin
            ),
        )),
        (Some(value), Some(file)) if value.origin.rank() > file.origin.rank() => Ok(Some(value)),
        (Some(_), Some(file)) => contents(file_key, &file).map(Some),
    }
}

/// What the file that `written` names holds, without the line end behind it.
fn contents(key: &str, written: &Written) -> Result<Written, Problem> {
    let problem = |why: String| Problem::at(&written.origin, format!("`{key}`: {why}"));
    let path = written
        .some_text()
        .map_err(|why| problem(format!("takes the path of a file; {why}")))?;
    Ok(Written {
        value: Value::Text(Secret::of_file(Path::new(path)).map_err(problem)?),
        origin: written.origin.clone(),
        held_by: Some(path.to_owned()),
    })
}

/// The file that held a value.
fn holder(written: &Written) -> Option<PathBuf> {
    written.held_by.as_ref().map(PathBuf::from)
}

fn property_text(name: &str, written: &Written) -> Result<Secret, Problem> {
    match &written.value {
        Value::Text(text) | Value::Untyped(text) => Ok(text.clone()),
        Value::Whole(number) => Ok(Secret::new(number.to_string())),
        Value::Bool(value) => Ok(Secret::new(value.to_string())),
        other => Err(Problem::at(
            &written.origin,
            format!(
                "`{PROPERTIES}.{name}` takes a string, a number or a boolean; this is {}",
                other.type_name()
            ),
        )),
    }
}

/// `SASL_PASSWORD_FILE` is `sasl.password_file`, unless librdkafka has a name that ends so.
fn property_of_variable(variable: &str) -> String {
    let name = variable.to_ascii_lowercase().replace('_', ".");
    match name.strip_suffix(".file") {
        Some(stem) if properties::check(&name).is_err() => format!("{stem}_file"),
        _ => name,
    }
}

fn misread(spec: &Spec, written: &Written, why: &str) -> Problem {
    let why = if why.is_empty() {
        String::new()
    } else {
        format!("; {why}")
    };
    Problem::at(
        &written.origin,
        format!("`{}` takes {}{why}", spec.path(), spec.takes),
    )
}

/// Whether the value of a librdkafka setting must not be shown: too often rather than too seldom.
pub(super) fn property_is_secret(name: &str, text: &str) -> bool {
    const TELLING: [&str; 9] = [
        "password",
        "passphrase",
        "secret",
        "token",
        "key",
        "pem",
        "jaas",
        "config",
        "assertion",
    ];
    TELLING.iter().any(|word| name.contains(word)) || text.contains('@')
}

/// What may be shown of the database's URL.
pub(super) fn url_shown(written: &Written) -> String {
    written.text().map_or_else(
        |_| "***".to_owned(),
        |url| database_url::redacted(url.trim()),
    )
}
