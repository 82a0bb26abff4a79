//! The config as operators meet it: values, origins, problems.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::written::{Origin, Value, Written};
use super::*;
use crate::settle::Policy;

/// What must never be seen.
const CANARY: &str = "canary-4711";

const SMALL: &str = "[database]\nurl = \"postgres://u:canary-4711@h/db\"\n[kafka]\nbrokers = \"h:9092\"\n[[outbox]]\ntable = \"outbox\"\n";

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment::of(variables.iter().copied())
}

fn settings(text: &str, variables: &[(&str, &str)]) -> Settings {
    Settings::of_text(text, &environment(variables), &Flags::default())
}

fn config(text: &str) -> Config {
    settings(text, &[])
        .config(Purpose::Run)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// The error of [`SMALL`] with `more` behind it, and of nothing else.
fn error_of(more: &str) -> String {
    error(&settings(&format!("{SMALL}{more}"), &[]))
}

fn error(settings: &Settings) -> String {
    let error = settings.config(Purpose::Run).unwrap_err();
    for text in [
        error.to_string(),
        format!("{error:?}"),
        format!("{settings:?}"),
        settings.print(),
    ] {
        assert!(!text.contains(CANARY), "{text}");
    }
    error.to_string()
}

#[test]
fn what_nobody_wrote_has_its_default() {
    let config = config(SMALL);
    assert_eq!(config.database.connect_timeout, Duration::from_secs(5));
    assert_eq!(config.database.statement_timeout, Duration::from_secs(30));
    assert!(config.database.prepared_statements);
    assert_eq!(config.kafka.message_bytes_max, 1_000_000);
    assert!(config.kafka.properties.is_empty());
    let outbox = &config.outboxes[0];
    assert_eq!(outbox.table.to_string(), "public.outbox");
    assert_eq!(outbox.layout.kind, LayoutKind::Classic);
    assert_eq!(outbox.on_published, OnPublished::Mark);
    assert_eq!(outbox.topic.to_string(), Template::DEFAULT);
    assert_eq!(outbox.on_rejected, Policy::Block.into());
    assert_eq!(outbox.lanes, 16);
    assert_eq!(outbox.retention, None);
    assert!(!outbox.notify);
    assert_eq!(config.relay.workers, 4);
    assert_eq!(config.relay.producers, 2);
    assert_eq!(config.relay.claim_rows_max, 2000);
    assert_eq!(config.relay.claim_bytes_max, 4 << 20);
    assert_eq!(config.relay.poll_interval_min, Duration::from_millis(1));
    assert_eq!(config.relay.poll_interval_max, Duration::from_millis(100));
    assert_eq!(config.relay.publish_timeout, Duration::from_secs(10));
    assert_eq!(config.relay.retry_backoff_max, Duration::from_secs(2));
    assert_eq!(config.relay.drain_timeout, Duration::from_secs(10));
    assert_eq!(config.log.format, LogFormat::Auto);
    assert_eq!(config.log.filter, "info");
}

#[test]
fn every_key_is_read_from_the_file() {
    let config = config(
        r#"
        [database]
        url = "postgresql://u:p@h:1/db"
        connect_timeout = "1s"
        statement_timeout = "2m"
        prepared_statements = false
        [kafka]
        brokers = " a:1, SASL_SSL://b:2 ,[::1]:3,c"
        message_bytes_max = "2MiB"
        [kafka.properties]
        security.protocol = "SASL_SSL"
        "linger.ms" = 5
        socket.keepalive.enable = true
        [[outbox]]
        table = 'Shop."OutBox"'
        layout = "native"
        on_published = "mark"
        topic = "all"
        on_rejected = "dead_letter"
        lanes = 64
        retention = "7days"
        notify = true
        [[outbox]]
        table = "b"
        on_published = "delete"
        [relay]
        workers = 0x10
        producers = 3
        claim_rows_max = 1_000
        claim_bytes_max = 65536
        poll_interval_min = "3ms"
        poll_interval_max = "1h"
        publish_timeout = "3s"
        retry_backoff_max = "4s"
        drain_timeout = "0s"
        [log]
        format = "json"
        filter = "warn,outbox_relay=debug"
        "#,
    );
    assert_eq!(config.database.url.expose(), "postgresql://u:p@h:1/db");
    assert_eq!(config.database.connect_timeout, Duration::from_secs(1));
    assert_eq!(config.database.statement_timeout, Duration::from_secs(120));
    assert!(!config.database.prepared_statements);
    assert_eq!(config.kafka.brokers, "a:1,SASL_SSL://b:2,[::1]:3,c");
    assert_eq!(config.kafka.message_bytes_max, 2 << 20);
    let properties: Vec<(&str, &str)> = config
        .kafka
        .properties
        .iter()
        .map(|(name, value)| (name.as_str(), value.expose()))
        .collect();
    assert_eq!(
        properties,
        [
            ("linger.ms", "5"),
            ("security.protocol", "SASL_SSL"),
            ("socket.keepalive.enable", "true")
        ]
    );
    let outbox = &config.outboxes[0];
    assert_eq!(outbox.table.to_string(), "shop.OutBox");
    assert_eq!(outbox.layout.kind, LayoutKind::Native);
    assert_eq!(outbox.topic.to_string(), "all");
    assert_eq!(outbox.on_rejected, Policy::DeadLetter.into());
    assert_eq!(outbox.lanes, 64);
    assert_eq!(outbox.retention, Some(Duration::from_secs(7 * 86_400)));
    assert!(outbox.notify);
    assert_eq!(config.outboxes[1].on_published, OnPublished::Delete);
    assert_eq!(config.relay.workers, 16);
    assert_eq!(config.relay.producers, 3);
    assert_eq!(config.relay.claim_rows_max, 1000);
    assert_eq!(config.relay.claim_bytes_max, 65536);
    assert_eq!(config.relay.poll_interval_min, Duration::from_millis(3));
    assert_eq!(config.relay.poll_interval_max, Duration::from_secs(3600));
    assert_eq!(config.relay.publish_timeout, Duration::from_secs(3));
    assert_eq!(config.relay.retry_backoff_max, Duration::from_secs(4));
    assert_eq!(config.relay.drain_timeout, Duration::ZERO);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.log.filter, "warn,outbox_relay=debug");
}

#[test]
fn unknown_keys_are_named_with_their_line_and_the_nearest_key() {
    for (more, message) in [
        (
            "tabel = 1",
            "relay.toml:7: unknown key `outbox.tabel`; did you mean `table`?",
        ),
        (
            "[databse]\n",
            "relay.toml:7: unknown key `databse`; did you mean `database`?",
        ),
        (
            "\n[relay]\nworker = 3",
            "relay.toml:9: unknown key `relay.worker`; did you mean `workers`?",
        ),
        (
            "workers = 3",
            "relay.toml:7: unknown key `outbox.workers`; did you mean `relay.workers`?",
        ),
        (
            "[log]\nx = 1",
            "relay.toml:8: unknown key `log.x`; there are `format`, `filter`, `heartbeat`",
        ),
        (
            "[kafka.propertys]",
            "relay.toml:7: unknown key `kafka.propertys`; did you mean `properties`?",
        ),
        (
            "[kafka.properties]\nsasl.pasword = 'canary-4711'",
            "relay.toml:8: `kafka.properties.sasl.pasword` is not a setting the relay passes on; is `sasl.password` meant?",
        ),
        (
            "[kafka.properties]\nacks_file = 'x'",
            "relay.toml:8: `kafka.properties.acks_file` is fixed by the relay: order and acknowledgement rest on it",
        ),
    ] {
        assert_eq!(error_of(more), message);
    }
}

#[test]
fn what_a_key_does_not_take_is_named_with_what_it_takes() {
    for (more, message) in [
        (
            "lanes = 12",
            "relay.toml:7: `outbox.lanes` takes a power of two from 1 to 1024; the nearest are 8 and 16",
        ),
        (
            "lanes = 2048",
            "relay.toml:7: `outbox.lanes` takes a power of two from 1 to 1024; this is out of range",
        ),
        (
            "layout = 'clasic'",
            "relay.toml:7: `outbox.layout` takes \"classic\", \"native\", \"debezium\" or a table of columns, such as { id = \"uid\", aggregate_id = \"key\", aggregate_type = \"kind\", event_type = \"name\", payload = \"body\" }; did you mean `classic`?",
        ),
        (
            "topic = '${aggregate_id}'",
            "relay.toml:7: `outbox.topic` takes a topic, such as \"${aggregate_type:lower}-events\"; a topic for each `aggregate_id` is not what topics are for",
        ),
        (
            "retention = 'canary-4711'",
            "relay.toml:7: `outbox.retention` takes \"forever\" or a duration, such as \"7days\"",
        ),
        (
            "[relay]\nworkers = 65",
            "relay.toml:8: `relay.workers` takes a number from 1 to 64; this is out of range",
        ),
        (
            "[relay]\nworkers = -1",
            "relay.toml:8: `relay.workers` takes a number from 1 to 64; this is out of range",
        ),
        (
            "[relay]\nworkers = '4'",
            "relay.toml:8: `relay.workers` takes a number from 1 to 64; this is a string",
        ),
        (
            "[relay]\nworkers = 99999999999999999999",
            "relay.toml:8: `relay.workers` takes a number from 1 to 64; this is a number beyond 64 bits",
        ),
        (
            "[relay]\nclaim_rows_max = 0",
            "relay.toml:8: `relay.claim_rows_max` takes a number from 1 to 1000000; this is out of range",
        ),
        (
            "[relay]\nclaim_bytes_max = '4 parsecs'",
            "relay.toml:8: `relay.claim_bytes_max` takes a size from 1 byte to 1GiB, such as 4194304 or \"4MiB\"",
        ),
        (
            "[relay]\npublish_timeout = 10",
            "relay.toml:8: `relay.publish_timeout` takes a duration from 1ms to 1h, such as \"5s\"; a bare number has no unit",
        ),
        (
            "[relay]\npublish_timeout = '0s'",
            "relay.toml:8: `relay.publish_timeout` takes a duration from 1ms to 1h, such as \"5s\"; this is out of range",
        ),
        (
            "[relay]\npoll_interval_min = '1s'",
            "relay.toml:8: `relay.poll_interval_min` (1s) is more than `relay.poll_interval_max` (100ms)",
        ),
        (
            "[log]\nfilter = 'canary-4711=loud'",
            "relay.toml:8: `log.filter` takes a filter, such as \"info\" or \"warn,outbox_relay=debug\"; it does not parse",
        ),
        (
            "[kafka.properties]\nlinger.ms = 0.5",
            "relay.toml:8: `kafka.properties.linger.ms` takes a string, a number or a boolean; this is a fraction",
        ),
        (
            "[kafka.properties]\nlinger.ms = 5\n'linger.ms' = 6",
            "relay.toml:9: `kafka.properties.linger.ms` is written twice",
        ),
        (
            "on_published = 'delete'\nretention = '1day'",
            "relay.toml:8: `outbox.retention` is for marked rows and a history; with `on_published = \"delete\"` none are kept",
        ),
        (
            "[[outbox]]\ntable = 'PUBLIC.outbox'",
            "relay.toml:8: `outbox.table`: public.outbox is already served by relay.toml:6",
        ),
        (
            "[[outbox]]\nlanes = 1",
            "relay.toml:7: this outbox has no `table`",
        ),
        (
            "formats = { headers = 'json' }\ncontracts = 'nowhere'",
            "relay.toml:5: `outbox.contracts`: its header `event_version` does not go together with the headers of \
             `outbox.formats` or `outbox.cloudevents`",
        ),
    ] {
        assert_eq!(error_of(more), message);
    }
}

#[test]
fn sections_of_a_wrong_shape_say_how_to_write_them() {
    for (text, message) in [
        (
            "database = 3",
            "relay.toml:1: `database` is a section: write `[database]`",
        ),
        (
            "[[kafka]]",
            "relay.toml:1: `kafka` is a section: write `[kafka]`",
        ),
        (
            "[outbox]\ntable = 'a'",
            "relay.toml:1: `outbox` is a list: write `[[outbox]]`",
        ),
        (
            "[kafka]\nproperties = 1",
            "relay.toml:2: `kafka.properties` is a section: write `[kafka.properties]`",
        ),
    ] {
        let error = settings(text, &[]).config(Purpose::Show).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn every_fault_is_told_at_once_in_the_order_of_the_file() {
    let settings = settings(
        "[relay]\nworkers = 0\nworkres = 1\n[database]\nurl = 'mysql://canary-4711'\n[kafka]\n",
        &[("OUTBOX_RELAY__RELAY__CLAIM_ROWS_MAX", "many")],
    );
    assert_eq!(
        error(&settings),
        "no brokers: set `brokers` in [kafka], KAFKA_BROKERS, or --brokers\n\
         no outbox: write an `[[outbox]]` section with its `table`, or use --table\n\
         relay.toml:2: `relay.workers` takes a number from 1 to 64; this is out of range\n\
         relay.toml:3: unknown key `relay.workres`; did you mean `workers`?\n\
         relay.toml:5: `database.url` takes a postgres:// URL; it does not begin with `postgres://`\n\
         environment OUTBOX_RELAY__RELAY__CLAIM_ROWS_MAX: `relay.claim_rows_max` takes a number from 1 to 1000000"
    );
}

#[test]
fn a_syntax_error_has_its_line_and_does_not_quote_it() {
    let settings = settings("[database]\nurl = \"postgres://u:canary-4711@h\n", &[]);
    assert!(error(&settings).contains("relay.toml:2: not TOML: "));
    for text in [
        "canary-4711",
        "a = canary-4711",
        "a = 'x' canary-4711",
        "[canary-4711",
        "a = \"\\canary-4711\"",
        "a = 1canary-4711",
    ] {
        let settings = Settings::of_text(text, &Environment::default(), &Flags::default());
        let text = error(&settings);
        assert!(text.contains("relay.toml:1: not TOML: "), "{text}");
    }
}

#[test]
fn every_key_refuses_what_it_does_not_take() {
    let list = Written::new(Value::Other("a list"), Origin::Default);
    for spec in keys::ALL {
        assert_eq!(
            (spec.check)(&list),
            Err("this is a list".into()),
            "{}",
            spec.path()
        );
    }
}

#[test]
fn every_default_and_example_is_what_its_key_takes() {
    for spec in keys::ALL {
        let text = spec.default.unwrap_or(spec.example);
        assert_eq!(
            (spec.check)(&Written::default(text)),
            Ok(()),
            "{}",
            spec.path()
        );
    }
}

#[test]
fn the_stronger_source_wins() {
    let text = format!("{SMALL}lanes = 1\n[relay]\nworkers = 1\nclaim_rows_max = 1\n");
    let variables = [
        ("DATABASE_URL", "postgres://plain/db"),
        ("OUTBOX_RELAY__DATABASE__URL", "postgres://own/db"),
        ("KAFKA_BROKERS", "plain:9092"),
        ("OUTBOX_RELAY__OUTBOX__TABLE", "own"),
        ("OUTBOX_RELAY__OUTBOX__LANES", "2"),
        ("OUTBOX_RELAY__RELAY__WORKERS", "2"),
        ("OUTBOX_RELAY__OUTBOX__NOTIFY", "true"),
        ("RUST_LOG", "debug"),
        ("PGHOST", "pg"),
    ];
    let flags = Flags {
        table: Some("flag".into()),
        ..Flags::default()
    };
    let settings = Settings::of_text(&text, &environment(&variables), &flags);
    let config = settings.config(Purpose::Run).unwrap();
    assert_eq!(config.database.url.expose(), "postgres://own/db");
    assert_eq!(config.kafka.brokers, "plain:9092");
    assert_eq!(config.outboxes.len(), 1);
    assert_eq!(config.outboxes[0].table.table, "flag");
    assert_eq!(config.outboxes[0].lanes, 2);
    assert!(config.outboxes[0].notify);
    assert_eq!(config.relay.workers, 2);
    assert_eq!(config.relay.claim_rows_max, 1);
    assert_eq!(config.log.filter, "debug");

    let flags = Flags {
        database_url: Some(Secret::new("postgres://flag/db")),
        brokers: Some("flag:1".into()),
        layout: Some("native".into()),
        on_published: Some("delete".into()),
        ..flags
    };
    let config = Settings::of_text(&text, &environment(&variables), &flags)
        .config(Purpose::Run)
        .unwrap();
    assert_eq!(config.database.url.expose(), "postgres://flag/db");
    assert_eq!(config.kafka.brokers, "flag:1");
    assert_eq!(config.outboxes[0].layout.kind, LayoutKind::Native);
    assert_eq!(config.outboxes[0].on_published, OnPublished::Delete);
}

#[test]
fn no_file_is_needed() {
    let config = settings(
        "",
        &[
            ("DATABASE_URL", "postgres://h/db"),
            ("KAFKA_BROKERS", "h:9092"),
            ("OUTBOX_RELAY__OUTBOX__TABLE", "outbox"),
        ],
    )
    .config(Purpose::Run)
    .unwrap();
    assert_eq!(config.outboxes[0].table.to_string(), "public.outbox");
}

#[test]
fn libpq_variables_count_where_nothing_else_names_a_database() {
    let rest = "[kafka]\nbrokers = 'h'\n[[outbox]]\ntable = 'a'\n";
    let variables = [
        ("PGHOST", "pg"),
        ("PGPASSWORD", CANARY),
        ("DATABASE_URL", ""),
    ];
    let settings = settings(rest, &variables);
    let config = settings.config(Purpose::Run).unwrap();
    assert_eq!(
        config.database.url.expose(),
        "postgres:///?host=pg&password=canary-4711"
    );
    let printed = settings.print();
    assert!(
        printed.contains("host=pg&password=***\"  # from environment PGHOST, PGPASSWORD"),
        "{printed}"
    );
    assert!(!printed.contains(CANARY), "{printed}");

    let config = super::tests::settings(SMALL, &variables)
        .config(Purpose::Run)
        .unwrap();
    assert_eq!(
        config.database.url.expose(),
        "postgres://u:canary-4711@h/db"
    );
}

#[test]
fn variables_of_a_wrong_name_or_value_are_refused() {
    for (name, value, message) in [
        (
            "OUTBOX_RELAY__RELAY__WORKRES",
            CANARY,
            "no key has this name; did you mean `OUTBOX_RELAY__RELAY__WORKERS`?",
        ),
        (
            "OUTBOX_RELAY__KAFKA__PROPERTIES__ACKS",
            CANARY,
            "`kafka.properties.acks` is fixed by the relay: order and acknowledgement rest on it",
        ),
        (
            "OUTBOX_RELAY__OUTBOX__NOTIFY",
            CANARY,
            "`outbox.notify` takes true or false",
        ),
        (
            "DATABASE_URL",
            CANARY,
            "`database.url` takes a postgres:// URL; it does not begin with `postgres://`",
        ),
    ] {
        let error = error(&settings(SMALL, &[(name, value)]));
        assert_eq!(error, format!("environment {name}: {message}"));
    }
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_no_text_is_refused() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;

    let bad = OsString::from_vec(vec![0xff]);
    let environment = Environment::of([
        (OsString::from("DATABASE_URL"), bad.clone()),
        (OsString::from("LESS"), bad),
    ]);
    let settings = Settings::of_text(SMALL, &environment, &Flags::default());
    assert_eq!(
        error(&settings),
        "environment DATABASE_URL: the value is not UTF-8"
    );
}

#[test]
fn one_outbox_can_be_set_from_outside_and_several_cannot() {
    let text = format!("{SMALL}[[outbox]]\ntable = 'b'\n");
    let flags = Flags {
        on_published: Some("delete".into()),
        ..Flags::default()
    };
    let settings = Settings::of_text(&text, &Environment::default(), &flags);
    assert_eq!(
        error(&settings),
        "--on-published: this sets `on_published` of the only outbox, but the file has 2: set it there"
    );
}

#[test]
fn a_purpose_needs_no_more_than_it_uses() {
    let table = "[[outbox]]\ntable = 'a'";
    let no_database = "no database: set `url` in [database], DATABASE_URL, or PGHOST and its kin";
    let tell = |text: &str, purpose| {
        settings(text, &[])
            .config(purpose)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    assert_eq!(tell(table, Purpose::Migrate), Err(no_database.into()));
    assert_eq!(tell(table, Purpose::Print), Ok(()));
    assert!(tell("", Purpose::Print).is_err_and(|error| error.starts_with("no outbox")));
    assert_eq!(tell("", Purpose::Show), Ok(()));
    let database = format!("{table}\n[database]\nurl = 'postgres://h'");
    assert_eq!(tell(&database, Purpose::Migrate), Ok(()));
}

#[test]
fn parked_rows_are_dealt_with_by_a_config_whose_kafka_cannot_be_read() {
    let text = "[database]\nurl = 'postgres://h'\n[kafka.properties]\nsasl.password_file = '/none'";
    let settings = settings(text, &[]);
    let config = settings.config(Purpose::Parked).unwrap();
    assert!(config.outboxes.is_empty() && config.kafka.properties.is_empty());
    assert!(settings.config(Purpose::Run).is_err());
    let error = self::settings("", &[]).config(Purpose::Parked).unwrap_err();
    assert!(error.to_string().starts_with("no database"), "{error}");
}

#[test]
fn policies_are_named_by_event_type_in_the_file_and_in_the_environment() {
    let key = "on_rejected_by_event_type";
    let table = "{ OrderViewed = \"dead_letter\", \"Order Paid\" = \"block\" }";
    let variables = [("OUTBOX_RELAY__OUTBOX__ON_REJECTED_BY_EVENT_TYPE", table)];
    let in_file = settings(&format!("{SMALL}{key} = {table}"), &[]);
    for settings in [&in_file, &settings(SMALL, &variables)] {
        let policies = &settings.config(Purpose::Run).unwrap().outboxes[0].on_rejected;
        assert_eq!(policies.usual, Policy::Block);
        let named: Vec<_> = policies.by_event_type.iter().collect();
        assert_eq!(
            named,
            [
                (&"Order Paid".to_owned(), &Policy::Block),
                (&"OrderViewed".to_owned(), &Policy::DeadLetter)
            ]
        );
        // What is printed is a config.
        let again = self::settings(&settings.print(), &[]);
        let again = again.config(Purpose::Run).unwrap();
        assert_eq!(&again.outboxes[0].on_rejected, policies);
    }
    for (value, part) in [
        ("\"block\"", "this is a string"),
        ("{ A = 1 }", "more than strings"),
        ("{ A = \"dead\" }", "look at `A`"),
        ("{ A = \"dead_leter\" }", "did you mean `dead_letter`?"),
    ] {
        let error = error_of(&format!("{key} = {value}"));
        assert!(error.contains(part), "{value}: {error}");
    }
    for value in ["block", "{ A = 1 }", "{} \n b = {}"] {
        let variables = [("OUTBOX_RELAY__OUTBOX__ON_REJECTED_BY_EVENT_TYPE", value)];
        let error = error(&settings(SMALL, &variables));
        assert!(error.contains("takes a table of event types"), "{error}");
    }
}

#[test]
fn topics_allowed_are_a_list_in_the_file_and_in_the_environment() {
    assert!(config(SMALL).outboxes[0].topics_allowed.is_any());
    let key = "topics_allowed";
    let list = "[\"*-events\", \"billing\"]";
    let variables = [("OUTBOX_RELAY__OUTBOX__TOPICS_ALLOWED", list)];
    let in_file = settings(&format!("{SMALL}{key} = {list}"), &[]);
    for settings in [&in_file, &settings(SMALL, &variables)] {
        let allowed = &settings.config(Purpose::Run).unwrap().outboxes[0].topics_allowed;
        assert!(allowed.allows("billing") && allowed.allows("order-events"));
        assert!(!allowed.allows("secret"));
        // What is printed is a config.
        let again = self::settings(&settings.print(), &[]);
        let again = again.config(Purpose::Run).unwrap();
        assert_eq!(&again.outboxes[0].topics_allowed, allowed);
    }
    for (value, part) in [
        ("\"billing\"", "this is a string"),
        ("[1]", "more than strings"),
        ("[\"billing\", \"a b\"]", "look at number 2"),
        ("[\"\"]", "it is empty"),
    ] {
        let error = error_of(&format!("{key} = {value}"));
        assert!(error.contains(part), "{value}: {error}");
    }
    for value in ["billing", "[1]", "[] \n b = []"] {
        let variables = [("OUTBOX_RELAY__OUTBOX__TOPICS_ALLOWED", value)];
        let error = error(&settings(SMALL, &variables));
        assert!(error.contains("takes a list of topics"), "{error}");
    }
    let error = error_of("topic = \"orders\"\ntopics_allowed = [\"*-events\"]");
    assert!(error.contains("every row would be parked"), "{error}");
    config(&format!(
        "{SMALL}topic = \"orders\"\ntopics_allowed = [\"ord*\"]"
    ));
}

#[test]
fn a_dead_letter_topic_is_a_legal_one_and_parked_rows_are_kept_by_default() {
    let outbox = &config(SMALL).outboxes[0];
    assert_eq!(
        (&outbox.dead_letter_topic, outbox.parked_retention),
        (&None, None)
    );
    let more = "dead_letter_topic = \"orders-dead\"\nparked_retention = \"90days\"";
    let outbox = &config(&format!("{SMALL}{more}")).outboxes[0];
    assert_eq!(outbox.dead_letter_topic.as_deref(), Some("orders-dead"));
    let days = Duration::from_secs(90 * 86_400);
    assert_eq!(outbox.parked_retention, Some(days));
    assert!(error_of("dead_letter_topic = \"a/b\"").contains("'/'"));
}

#[test]
fn a_history_has_a_retention_and_partitions_of_hours_to_a_year() {
    let more = "on_published = \"archive\"\nretention = \"30days\"\narchive_partition = \"6h\"";
    let outbox = &config(&format!("{SMALL}{more}")).outboxes[0];
    assert_eq!(outbox.on_published, OnPublished::Archive);
    assert_eq!(outbox.retention, Some(Duration::from_secs(30 * 86_400)));
    assert_eq!(outbox.archive_partition, Duration::from_secs(6 * 3600));
    let usual = &config(SMALL).outboxes[0];
    assert_eq!(usual.archive_partition, Duration::from_secs(86_400));
    for wrong in ["1min", "400days", "forever"] {
        let error = error_of(&format!("archive_partition = \"{wrong}\""));
        assert!(error.contains("a duration from 1h to 366days"), "{error}");
    }
}

#[test]
fn secrets_come_from_files_too_without_their_line_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let url = path("url", "postgres://u:canary-4711@h/db\r\n");
    let password = path("password", "canary-4711 \n");
    let empty = path("empty", "\n");
    let rest = "[kafka]\nbrokers = 'h'\n[[outbox]]\ntable = 'a'\n";
    let text = format!(
        "{rest}[database]\nurl_file = '{url}'\n[kafka.properties]\nsasl.password_file = '{password}'\n"
    );
    let good = settings(&text, &[]);
    let config = good.config(Purpose::Run).unwrap();
    assert_eq!(
        config.database.url.expose(),
        "postgres://u:canary-4711@h/db"
    );
    assert_eq!(
        config.kafka.properties["sasl.password"].expose(),
        "canary-4711 "
    );
    // where they are read anew
    assert_eq!(config.database.url_file.as_deref(), Some(Path::new(&url)));
    let held = &config.kafka.files["sasl.password"];
    assert_eq!(held, Path::new(&password));
    let alone = format!("{rest}[database]\nurl = 'postgres://u@h'\npassword_file = '{password}'\n");
    let config = settings(&alone, &[]).config(Purpose::Run).unwrap();
    let held = config.database.password.as_ref().map(Secret::expose);
    assert_eq!(held, Some("canary-4711 "));
    assert_eq!(
        config.database.password_file.as_deref(),
        Some(Path::new(&password))
    );
    assert_eq!(config.database.url_file, None);
    let printed = good.print();
    assert!(
        printed.contains(&format!(
            "url = \"postgres://u:***@h/db\"  # from {url}, named by relay.toml:6"
        )),
        "{printed}"
    );
    assert!(!printed.contains(CANARY), "{printed}");

    // a stronger value over a weaker file, and a stronger file over a weaker value
    let strong = settings(&text, &[("DATABASE_URL", "postgres://strong")]);
    assert_eq!(
        strong.config(Purpose::Run).unwrap().database.url.expose(),
        "postgres://strong"
    );
    let variables = [
        ("OUTBOX_RELAY__DATABASE__URL_FILE", url.as_str()),
        (
            "OUTBOX_RELAY__KAFKA__PROPERTIES__SASL_PASSWORD_FILE",
            password.as_str(),
        ),
    ];
    let strong = settings(SMALL.replace("u:", "weak:").as_str(), &variables);
    let config = strong.config(Purpose::Run).unwrap();
    assert_eq!(
        config.database.url.expose(),
        "postgres://u:canary-4711@h/db"
    );
    assert_eq!(
        config.kafka.properties["sasl.password"].expose(),
        "canary-4711 "
    );

    for (more, message) in [
        (
            "[database]\nurl_file = '/none'",
            "`database.url_file`: cannot read /none: ",
        ),
        (&format!("[database]\nurl_file = '{empty}'"), " is empty"),
        (
            "[database]\nurl = 'postgres://h'\npassword_file = '/none'",
            "`database.password_file`: cannot read /none: ",
        ),
        (
            &format!("[database]\nurl_file = '{password}'"),
            "relay.toml:6: `database.url` takes a postgres:// URL; it does not begin",
        ),
        (
            &format!("[database]\nurl = 'postgres://h'\nurl_file = '{url}'"),
            "relay.toml:7: `database.url_file` and `database.url` (relay.toml:6) say the same thing; keep one",
        ),
    ] {
        let error = error(&settings(&format!("{rest}{more}"), &[]));
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_config_file_that_cannot_be_read_is_named() {
    let missing = Path::new("/none/relay.toml");
    let settings = Settings::gather(Some(missing), &Environment::default(), &Flags::default());
    let error = settings.config(Purpose::Show).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot read /none/relay.toml: "),
        "{error}"
    );
}

#[test]
fn secrets_are_hidden_wherever_a_config_is_shown() {
    let text = format!(
        "{SMALL}[kafka.properties]\nsasl.password = '{CANARY}'\nssl.key.pem = '{CANARY}'\nsasl.username = 'me'\n"
    );
    let variables = [("OUTBOX_RELAY__KAFKA__PROPERTIES__SSL_KEY_PASSWORD", CANARY)];
    let settings = settings(&text, &variables);
    let config = settings.config(Purpose::Run).unwrap();
    let environment = environment(&variables);
    for text in [
        settings.print(),
        format!("{settings:?}"),
        format!("{config:?}"),
        format!("{environment:?}"),
    ] {
        assert!(!text.contains(CANARY), "{text}");
    }
    assert!(settings.print().contains("\"sasl.username\" = \"me\""));
    assert_eq!(config.kafka.properties["ssl.key.password"].expose(), CANARY);
}

#[test]
fn print_shows_what_is_in_force_and_where_it_is_from() {
    let variables = [("OUTBOX_RELAY__RELAY__WORKERS", "8")];
    let printed = settings(SMALL, &variables).print();
    for line in [
        "url = \"postgres://u:***@h/db\"  # from relay.toml:2",
        "table = \"outbox\"  # from relay.toml:6",
        "workers = 8  # from environment OUTBOX_RELAY__RELAY__WORKERS",
        "claim_bytes_max = \"4MiB\"  # from default",
    ] {
        assert!(
            printed.lines().any(|printed| printed == line),
            "{line}\n{printed}"
        );
    }
    // What is printed is a config.
    let again = Settings::of_text(&printed, &Environment::default(), &Flags::default());
    assert_eq!(again.config(Purpose::Run).unwrap().relay.workers, 8);
}

#[test]
fn the_starter_file_is_valid_and_says_the_defaults() {
    let bare = config(&starter());
    assert_eq!(bare.outboxes.len(), 1);
    // With every comment that is a key made one.
    let filled: String = starter()
        .lines()
        .filter(|line| !line.contains("_file"))
        .map(|line| match line.strip_prefix("# ") {
            Some(key)
                if key
                    .split_once(" = ")
                    .is_some_and(|(name, _)| !name.contains(' ')) =>
            {
                format!("{key}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let mut filled = config(&filled);
    assert_eq!(filled.kafka.properties.len(), 3);
    filled.kafka.properties.clear();
    assert_eq!(format!("{filled:?}"), format!("{bare:?}"));
}

#[test]
fn the_starter_file_and_the_reference_are_as_committed() {
    for (name, text, command) in [
        ("config/outbox-relay.toml", starter(), "init"),
        ("docs/config.md", reference(), "reference"),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == text,
            "{name} is out of date: cargo run -- config {command} > {name}"
        );
    }
}

#[test]
fn the_reference_has_every_key() {
    for spec in keys::ALL {
        assert!(reference().contains(&format!("### `{}`", spec.path())));
        assert!(starter().contains(&format!("\n# {} = ", spec.name)) || spec.starter);
    }
}

/// A line of a config: a good one, one that is nearly good, or anything.
fn line() -> impl Strategy<Value = String> {
    let good = prop_oneof![
        Just(SMALL.to_owned()),
        Just("[[outbox]]\ntable = \"b\"".to_owned())
    ];
    let names: Vec<&str> = keys::ALL.iter().map(|spec| spec.name).collect();
    let name = prop_oneof![
        4 => proptest::sample::select(names),
        1 => Just("tables"),
        1 => Just("sasl.password"),
        1 => Just("plugin.library.paths"),
    ];
    let value = prop_oneof![
        Just("\"canary-4711\"".to_owned()),
        Just("\"postgres://u:canary-4711@h/db?x=%zz\"".to_owned()),
        Just("-9223372036854775809".to_owned()),
        "(0|-1|16|3000000000|true|1\\.5|inf|nan|1979-05-27|\\[1\\]|\\{a = 1\\})",
        "\"[a-z0-9 .:/${}_-]{0,20}\"",
        "'[^'\r\n]{0,20}'",
    ];
    let section = prop_oneof![
        Just("[database]"),
        Just("[kafka]"),
        Just("[kafka.properties]"),
        Just("[[outbox]]"),
        Just("[outbox]"),
        Just("[relay]"),
        Just("[log]"),
        Just("[logs]"),
    ];
    prop_oneof![
        2 => good,
        2 => section.prop_map(str::to_owned),
        4 => (name, value).prop_map(|(name, value)| format!("{name} = {value}")),
        1 => "[a-z\\[\\]\"'=#. \\\\{}]{0,30}",
        1 => any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_stands_in_the_file_every_refusal_names_a_key_or_a_place(
        lines in proptest::collection::vec(line(), 0..8)
    ) {
        let settings = settings(&lines.join("\n"), &[]);
        for purpose in [Purpose::Run, Purpose::Migrate, Purpose::Print, Purpose::Watch, Purpose::Show] {
            let Err(refusal) = settings.config(purpose) else {
                continue;
            };
            let refusal = refusal.to_string();
            // the name of a file that is not there may be told, and must be
            let told = |line: &str| line.contains(CANARY) && !line.contains("cannot read");
            prop_assert!(!refusal.lines().any(told), "{}", refusal);
            prop_assert!(!refusal.is_empty());
            for line in refusal.lines() {
                let placed = line.strip_prefix("relay.toml:").is_some_and(|rest| {
                    rest.split_once(": ").is_some_and(|(at, _)| at.parse::<usize>().is_ok())
                });
                let names = |name: &str| line.contains(&format!("`{name}`"));
                let keyed = keys::ALL.iter().any(|spec| names(&spec.path()) || names(spec.name));
                let sectioned = line.contains("[[outbox]]");
                prop_assert!(placed || keyed || sectioned, "{:?} in\n{}", line, refusal);
            }
        }
    }
}

#[test]
fn layouts_headers_and_topics_go_together_or_say_why_not() {
    let config = |outbox: &str| {
        let text = format!(
            "[database]\nurl = 'postgres://h/d'\n[kafka]\nbrokers = 'k:1'\n[[outbox]]\ntable = 'o'\n{outbox}"
        );
        Settings::of_text(&text, &environment(&[]), &Flags::default()).config(Purpose::Run)
    };
    const OWN: &str = "layout = { id = 'i', aggregate_id = 'k', aggregate_type = 't', event_type = 'e', payload = 'p' }";

    let debezium = config("layout = 'debezium'").unwrap();
    let outbox = &debezium.outboxes[0];
    assert_eq!(outbox.on_published, OnPublished::Delete);
    assert_eq!(outbox.topic.to_string(), "outbox.event.${aggregate_type}");
    assert_eq!(outbox.encoding.id_header(), "id");
    assert_eq!(outbox.encoding.headers.len(), 1);

    let all = config(&format!(
        "{OWN}\non_published = 'delete'\ntopic = '${{t}}.${{x}}.${{x:upper}}'\nheaders_from = ['x', 'y:header:z']"
    ));
    let layout = &all.unwrap().outboxes[0].layout;
    assert_eq!(
        layout.routing,
        ["x"],
        "the aggregate's type is known by its role"
    );
    let placed: Vec<_> = layout
        .placed
        .iter()
        .map(|it| (&*it.column, &*it.header))
        .collect();
    assert_eq!(placed, [("x", "x"), ("y", "z")]);
    assert_eq!(
        Layout::of_kept(&layout.kept().unwrap().to_string()).as_ref(),
        Some(layout)
    );
    assert_eq!(Layout::default().kept(), None);

    for (outbox, why) in [
        (
            "layout = 'debezium'\non_published = 'mark'",
            "no column to mark",
        ),
        (OWN, "no column to mark"),
        (
            "layout = { id = 'i' }",
            "which column is the `aggregate_id`",
        ),
        ("layout = { idd = 'i' }", "did you mean `id`?"),
        (
            "layout = { id = 'a', aggregate_id = 'a', aggregate_type = 't', event_type = 'e', payload = 'p' }",
            "`a` is named twice",
        ),
        ("headers_from = ['a:envelope']", "wrap the payload"),
        ("headers_from = ['a:partition']", "the key gives"),
        ("headers_from = ['a:b']", "it is no `column`"),
        (
            "headers_from = ['a', 'b:header:a']",
            "there is a header `a` already",
        ),
        (
            "headers_from = ['event_id']",
            "there is a header `event_id` already",
        ),
        ("headers_from = ['outbox_relay_x']", "there is a header"),
        ("headers = { event_type = 'a' }", "`event_id` is always one"),
        (
            "headers = { event_id = 'a', seq = 'a' }",
            "two have the name `a`",
        ),
        (
            "headers = { event_id = 'a', sek = 'b' }",
            "did you mean `seq`?",
        ),
        (
            "headers = { event_id = 'outbox_relay_id' }",
            "does not begin with",
        ),
        (
            "layout = 'debezium'\nheaders = { event_id = 'id', created_at = 'at' }",
            "names no column for it",
        ),
        ("formats = { value = 'jsonn' }", "did you mean `json`?"),
        ("formats = { body = 'json' }", "none of key, value, headers"),
        (
            "formats = { key = 'json_expanded' }",
            "only the value can be expanded",
        ),
        (
            "layout = 'native'\nformats = { headers = 'json' }",
            "leave one of the two out",
        ),
        ("cloudevents = { mode = 'binary' }", "`source` is wanted"),
        ("cloudevents = { source = '/a' }", "`mode` is"),
        (
            "cloudevents = { mode = 'binary', source = '/a b' }",
            "look at `source`",
        ),
        (
            "cloudevents = { mode = 'binary', source = '/a', tipe = 'b' }",
            "did you mean `type`?",
        ),
        (
            "cloudevents = { mode = 'binary', source = '/a', type = '${tenant}' }",
            "look at `type`",
        ),
        (
            "cloudevents = { mode = 'binary', source = '/a', datacontenttype = 'json' }",
            "no media type",
        ),
        (
            "cloudevents = { mode = 'binary', source = '/a' }\nheaders_from = ['x:header:ce_id']",
            "`ce_id` is a header of its own",
        ),
        (
            "cloudevents = { mode = 'binary', source = '/a' }\nformats = { key = 'json' }",
            "do not go together",
        ),
        ("topic_regex = '(?=a)'", "lookahead"),
        (
            "topic_regex = '(a)'\ntopic_replacement = '$2'",
            "no group 2",
        ),
        (
            "topic = 'a'\ntopic_regex = 'a'\ntopic_replacement = 'b'\ntopics_allowed = ['a']",
            "does not have",
        ),
    ] {
        let error = config(outbox).unwrap_err().to_string();
        assert!(error.contains(why), "{outbox}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
