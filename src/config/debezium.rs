//! A Debezium connector's configuration → ours, and what of it has no place here.
//!
//! Two forms are read: the JSON of Kafka Connect, bare or as `{"name": …, "config": {…}}`, and the
//! `application.properties` of Debezium Server. No password is ever printed.

use std::fmt::Write as _;

use super::connector::{NEEDLESS, Written, connect, server, take_under};
use super::database_url::encoded;
use super::layout::{Layout, LayoutKind, Placed};
use super::settings::{Purpose, Settings, property_is_secret};
use crate::connect::{Format, Formats};
use crate::rewrite::Rewrite;
use crate::sink::properties;

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// A config of ours.
    pub toml: String,
    /// What is not in it, a line for each setting: its name, and what it means that it is not.
    pub left: Vec<String>,
}

/// Reads a connector's configuration.
///
/// # Errors
/// One sentence: it is none, or not of an outbox in Postgres.
pub fn import_debezium(text: &str) -> Result<Imported, String> {
    let is_server = !text.trim_start().starts_with('{');
    let mut written = match is_server {
        false => connect(text)?,
        true => server(text),
    };
    if written.is_empty() {
        return Err("it has no settings".to_owned());
    }
    let mut import = Import::default();
    let class = written.remove("connector.class").unwrap_or_default();
    if !class.ends_with("PostgresConnector") && !class.is_empty() {
        return Err(format!(
            "its connector.class is {class}, and the relay reads outboxes of Postgres"
        ));
    }
    let router = import.router(&mut written)?;
    import.database(&mut written);
    import.kafka(&mut written);
    let formats = import.formats(&mut written, is_server);
    let tables = import.tables(&mut written);
    let outbox = import.outbox(router, formats);
    for (name, value) in written {
        import.rest(&name, &value);
    }
    let toml = import.toml(&tables, &outbox);
    // what is printed is what will be read
    if let Err(error) = Settings::of_toml(&toml).config(Purpose::Show) {
        import
            .left
            .push(format!("what is printed does not hold as it is: {error}"));
    }
    Ok(Imported {
        toml,
        left: import.left,
    })
}

#[derive(Default)]
struct Import {
    left: Vec<String>,
    database: String,
    kafka: String,
}

/// The options of the event router, by their names.
struct Router(Written, String);

impl Router {
    fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.1)
    }
}

impl Import {
    fn leave(&mut self, name: &str, why: &str) {
        self.left.push(format!("{name}: {why}"));
    }

    fn router(&mut self, written: &mut Written) -> Result<Router, String> {
        let names = written.remove("transforms").unwrap_or_default();
        let mut found: Option<Router> = None;
        for name in names
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            let prefix = format!("transforms.{name}");
            let mut options = take_under(written, &format!("{prefix}."));
            let kind = options.remove("type").unwrap_or_default();
            if kind.ends_with("outbox.EventRouter") && found.is_none() {
                found = Some(Router(options, prefix));
            } else {
                self.leave(
                    &prefix,
                    &format!("the relay has no transforms; this one is {kind}"),
                );
            }
        }
        found.ok_or_else(|| {
            "none of its transforms is io.debezium.transforms.outbox.EventRouter: it is no connector of an \
             outbox"
                .to_owned()
        })
    }

    fn database(&mut self, written: &mut Written) {
        let mut take = |name: &str| {
            written
                .remove(&format!("database.{name}"))
                .filter(|value| !value.is_empty())
        };
        let mut left = Vec::new();
        let mut plain = |name: &str, value: Option<String>| {
            let refers = value.as_ref().is_some_and(|value| value.contains("${"));
            if refers {
                left.push((
                    format!("database.{name}"),
                    "it refers to something that is known elsewhere: set it in `url`, or by the \
                     environment (PGHOST, PGPORT, PGUSER, PGDATABASE)",
                ));
            }
            value.filter(|_| !refers)
        };
        let host = plain("hostname", take("hostname"));
        let port = plain("port", take("port"));
        let user = plain("user", take("user"));
        let dbname = plain("dbname", take("dbname"));
        let parameters: Vec<String> = ["sslmode", "sslrootcert", "sslcert", "sslkey"]
            .iter()
            .filter_map(|name| Some((name, plain(name, take(name))?)))
            .map(|(name, value)| format!("{name}={}", encoded(&value)))
            .collect();
        let password = take("password").is_some();
        let ssl_password = take("sslpassword").is_some();
        if let Some(host) = host {
            let mut url = "postgres://".to_owned();
            if let Some(user) = user {
                url.push_str(&format!("{}@", encoded(&user)));
            }
            url.push_str(&host);
            if let Some(port) = port {
                url.push_str(&format!(":{port}"));
            }
            url.push_str(&format!("/{}", encoded(&dbname.unwrap_or_default())));
            if !parameters.is_empty() {
                url.push_str(&format!("?{}", parameters.join("&")));
            }
            self.database.push_str(&format!("url = {}\n", quoted(&url)));
        } else {
            self.database
                .push_str("# url = \"postgres://user@host/database\"\n");
        }
        for (name, why) in left {
            self.leave(&name, why);
        }
        if password {
            self.database
                .push_str("# password_file = \"/run/secrets/database-password\"\n");
            self.leave(
                "database.password",
                "passwords are not printed: put it into a file and name that by database.password_file, or set \
                 PGPASSWORD",
            );
        }
        if ssl_password {
            self.leave(
                "database.sslpassword",
                "a key with a password cannot be used",
            );
        }
    }

    fn kafka(&mut self, written: &mut Written) {
        const PRODUCER: &str = "producer.override.";
        let mut brokers = written.remove("bootstrap.servers");
        let mut lines = String::new();
        for (name, value) in take_under(written, PRODUCER) {
            let (name, key) = (name.as_str(), format!("{PRODUCER}{name}"));
            match name {
                "bootstrap.servers" => brokers = Some(value),
                "key.serializer" | "value.serializer" => {}
                "sasl.jaas.config" => self.leave(
                    &key,
                    "it holds a password: set \"sasl.username\", and \"sasl.password_file\" to a file with the \
                     password, in [kafka.properties]",
                ),
                _ => match properties::check(name) {
                    Err(why) => self.leave(&key, &format!("`{name}` {why}")),
                    Ok(()) if property_is_secret(name, &value) || value.contains("${") => self.leave(
                        &key,
                        &format!("secrets are not printed: set \"{name}_file\" to a file that holds it"),
                    ),
                    Ok(()) => {
                        writeln!(lines, "{} = {}", quoted(name), quoted(&value)).unwrap_or_default();
                    }
                },
            }
        }
        match brokers.filter(|brokers| !brokers.contains("${")) {
            Some(brokers) => self
                .kafka
                .push_str(&format!("brokers = {}\n", quoted(&brokers))),
            None => {
                self.kafka.push_str("# brokers = \"host:9092\"\n");
                self.left.push(
                    "bootstrap.servers: it is a setting of the worker of Kafka Connect: set kafka.brokers, or \
                     KAFKA_BROKERS"
                        .to_owned(),
                );
            }
        }
        if !lines.is_empty() {
            self.kafka
                .push_str(&format!("\n[kafka.properties]\n{lines}"));
        }
    }

    /// Converters: what they made of key, value and headers is what consumers read today. A server's are
    /// json, with schemas, unless it says otherwise.
    fn formats(&mut self, written: &mut Written, is_server: bool) -> Formats {
        const AS_THEY_ARE: [&str; 6] = [
            "StringConverter",
            "BinaryDataConverter",
            "ByteArrayConverter",
            "SimpleHeaderConverter",
            "simplestring",
            "clientprovided",
        ];
        let mut formats = Formats::default();
        let of_all = written.remove("format.schemas.enable");
        for what in ["key", "value", "header"] {
            for (of_server, name) in [
                (false, format!("{what}.converter")),
                (true, format!("format.{what}")),
            ] {
                let options = take_under(written, &format!("{name}."));
                let usual = (is_server && of_server).then(|| "json".to_owned());
                let Some(format) = written.remove(&name).or(usual) else {
                    continue;
                };
                let schemas = options.get("schemas.enable").or(of_all.as_ref());
                let schemas = schemas.is_none_or(|it| !it.eq_ignore_ascii_case("false"));
                if format == "json" || format.ends_with("json.JsonConverter") {
                    let part = match what {
                        "key" => &mut formats.key,
                        "value" => &mut formats.value,
                        _ => &mut formats.headers,
                    };
                    *part = match schemas {
                        true => Format::JsonWithSchema,
                        false => Format::Json,
                    };
                    for option in options.keys().filter(|it| *it != "schemas.enable") {
                        self.leave(
                            &format!("{name}.{option}"),
                            "JsonConverter's own default is kept",
                        );
                    }
                    continue;
                }
                let delegate = options.get("delegate.converter.type");
                if delegate.is_some_and(|it| it.ends_with("json.JsonConverter")) {
                    self.leave(
                        &format!("{name}.delegate.converter.type"),
                        "it is for what is not bytea: if the payload is not, say so by `value` of `formats`",
                    );
                }
                if AS_THEY_ARE.iter().any(|known| format.ends_with(known)) {
                    continue;
                }
                let options = options.keys().map(|option| format!("{name}.{option}"));
                let all: Vec<String> = std::iter::once(name.clone()).chain(options).collect();
                self.leave(
                    &all.join(", "),
                    &format!(
                        "the {what} is written as it is in the table, as StringConverter does it, and not by \
                         {format}: consumers must be ready for that"
                    ),
                );
            }
        }
        formats
    }

    fn tables(&mut self, written: &mut Written) -> Vec<String> {
        let list = written.remove("table.include.list").unwrap_or_default();
        let mut tables = Vec::new();
        for pattern in list.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            let name = pattern.replace("\\.", ".");
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '.' | '-');
            if !name.chars().all(plain) || name.split('.').count() != 2 {
                self.leave(
                    "table.include.list",
                    &format!("{pattern} is a pattern; write an [[outbox]] for each table"),
                );
                continue;
            }
            // SQL folds what is not quoted
            let parts = name.split('.').map(|part| {
                let folds = part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                if folds {
                    part.to_owned()
                } else {
                    format!("\"{part}\"")
                }
            });
            tables.push(parts.collect::<Vec<_>>().join("."));
        }
        if tables.is_empty() {
            tables.push("public.outbox".to_owned());
            self.leave(
                "table.include.list",
                "it names no table, so the outbox is called public.outbox",
            );
        }
        tables
    }

    /// The settings of each outbox, as lines of TOML.
    fn outbox(&mut self, mut router: Router, mut formats: Formats) -> String {
        let usual = Layout::of(LayoutKind::Debezium);
        let told_type = router.0.contains_key("table.field.event.type");
        let mut take = |name: &str, or: &str| {
            router
                .take(name)
                .filter(|value| !value.is_empty())
                .unwrap_or_else(|| or.to_owned())
        };
        let id = take("table.field.event.id", &usual.id);
        let key = take("table.field.event.key", &usual.aggregate_id);
        let event_type = take("table.field.event.type", &usual.event_type);
        let payload = take("table.field.event.payload", &usual.payload);
        let by = take("route.by.field", &usual.aggregate_type);
        let same = id == usual.id
            && key == usual.aggregate_id
            && event_type == usual.event_type
            && payload == usual.payload;
        let mut toml = String::new();
        // the router reads the type of an aggregate for its topic alone
        let (routed, kind) = match same && by != event_type {
            true => {
                toml.push_str("layout = \"debezium\"\n");
                match by == usual.aggregate_type {
                    true => ("aggregate_type".to_owned(), None),
                    false => (by, None),
                }
            }
            false => ("aggregate_type".to_owned(), Some(by)),
        };
        if kind.is_some() && !told_type {
            self.leave(
                &router.path("table.field.event.type"),
                "it is not set: the router never reads that column, and the relay does. Name it as event_type of \
                 `layout` if it is not `type`",
            );
        }
        if let Some(by) = kind {
            let columns = [
                ("id", &id),
                ("aggregate_id", &key),
                ("aggregate_type", &by),
                ("event_type", &event_type),
                ("payload", &payload),
            ];
            let columns = columns.map(|(what, name)| format!("{what} = {}", quoted(name)));
            toml.push_str(&format!("layout = {{ {} }}\n", columns.join(", ")));
        }
        toml.push_str("# Debezium leaves this to the service; rows that the service deletes itself are never seen\n");
        toml.push_str("on_published = \"delete\"\n");
        self.topic(&mut router, &routed, &mut toml);
        toml.push_str("headers = { event_id = \"id\" }\n");
        self.placement(&mut router, &mut toml);
        if router.take("route.tombstone.on.empty.payload").as_deref() == Some("true") {
            toml.push_str("tombstone_on_empty_payload = true\n");
        }
        let expands = router.0.get("table.expand.json.payload");
        let nulls = router.0.get("table.json.payload.null.behavior");
        let kept = nulls.is_some_and(|it| it != "ignore");
        if expands.is_some_and(|it| it == "true") && formats.value == Format::Json && !kept {
            formats.value = Format::JsonExpanded;
            router.take("table.expand.json.payload");
            router.take("table.json.payload.null.behavior");
        }
        if !formats.are_plain() {
            let parts = [
                ("key", formats.key),
                ("value", formats.value),
                ("headers", formats.headers),
            ];
            let parts = parts.iter().filter(|(_, format)| *format != Format::Plain);
            let parts = parts.map(|(part, format)| format!("{part} = {}", quoted(format.name())));
            let parts = parts.collect::<Vec<_>>().join(", ");
            toml.push_str(&format!("formats = {{ {parts} }}\n"));
        }
        let why = |name: &str| match name {
            "table.field.event.timestamp" => {
                "records have the time they were published at; send the column by `headers_from`"
            }
            "table.field.event.schema.version" => "no schemas are registered",
            "table.field.additional.missing" | "table.fields.additional.error.on.missing" => {
                "columns that are missing are refused at start"
            }
            "table.op.invalid.behavior" => "updates of rows are not seen",
            "table.expand.json.payload"
            | "table.json.payload.null.behavior"
            | "table.json.payload.empty.array.behavior" => {
                "a payload is expanded only where the value's converter is JsonConverter without schemas, nulls \
                 are left out and nothing else is asked for"
            }
            "predicate" | "negate" => "the tables are named instead",
            name if name.starts_with("tracing.") => {
                "send the trace's column by `headers_from`, by the name that consumers read"
            }
            _ => "it is not known here",
        };
        let rest = std::mem::take(&mut router.0);
        for (name, value) in rest {
            if name == "table.expand.json.payload" && value == "false" {
                continue;
            }
            self.leave(&router.path(&name), why(&name));
        }
        toml
    }

    fn topic(&mut self, router: &mut Router, routed: &str, toml: &mut String) {
        const WHOLE: &str = "(?<routedByValue>.*)";
        let pattern = router
            .take("route.topic.regex")
            .unwrap_or_else(|| WHOLE.to_owned());
        let replacement = (router.take("route.topic.replacement"))
            .unwrap_or_else(|| Rewrite::DEFAULT_REPLACEMENT.to_owned());
        let field = format!("${{{routed}}}");
        let topic = replacement.replace("${routedByValue}", &field);
        let plain = topic.replace(&field, "");
        if pattern == WHOLE && !plain.contains(['$', '\\']) {
            toml.push_str(&format!("topic = {}\n", quoted(&topic)));
            return;
        }
        toml.push_str(&format!("topic = {}\n", quoted(&field)));
        match Rewrite::parse(&pattern, &replacement) {
            Ok(_) => toml.push_str(&format!(
                "topic_regex = {}\ntopic_replacement = {}\n",
                quoted(&pattern),
                quoted(&replacement)
            )),
            Err(why) => self.leave(&router.path("route.topic.regex"), &why),
        }
    }

    fn placement(&mut self, router: &mut Router, toml: &mut String) {
        let name = "table.fields.additional.placement";
        let list = router.take(name).unwrap_or_default();
        let mut placed = Vec::new();
        for field in list.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            match Placed::parse(field) {
                Ok(_) => placed.push(quoted(field)),
                Err(why) => self.leave(&router.path(name), &format!("`{field}`: {why}")),
            }
        }
        if !placed.is_empty() {
            toml.push_str(&format!("headers_from = [{}]\n", placed.join(", ")));
        }
    }

    fn rest(&mut self, name: &str, value: &str) {
        let known = NEEDLESS.iter().find(|(begin, _)| name.starts_with(begin));
        match known {
            Some((_, why)) => self.leave(name, why),
            None if value.is_empty() => {}
            None => self.leave(name, "it is not known here"),
        }
    }

    fn toml(&self, tables: &[String], outbox: &str) -> String {
        let mut toml = format!(
            "# From a configuration of Debezium. What could not be carried over was said on stderr.\n\n\
             [database]\n{}\n[kafka]\n{}",
            self.database, self.kafka
        );
        for table in tables {
            toml.push_str(&format!(
                "\n[[outbox]]\ntable = {}\n{outbox}",
                quoted(table)
            ));
        }
        toml
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
