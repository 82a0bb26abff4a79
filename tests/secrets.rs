//! What must not get out: a password and a payload go through every command at the lowest level of the log,
//! and are looked for in all that comes out. And what is to be erased: SECURITY.md has the statements.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::operating::{command, ends};
use crate::see::{Seen, watched};
use crate::support::outbox::{Layout, OnPublished, Outbox, parked};
use crate::support::writers::one;
use crate::support::{self, World, eventually, topic_of};

const SOON: Duration = Duration::from_secs(60);

/// The password of the database and of Kafka. It has what a URL must write otherwise.
const SECRET: &str = "canary-of-a/password";
const SECRET_IN_URL: &str = "canary-of-a%2Fpassword";
/// In every payload.
const PAYLOAD: &str = "canary-of-a-payload";
/// An aggregate id.
const KEY: &str = "canary-of-a-key";
/// A header's value.
const HEADER: &str = "canary-of-a-header";

fn assert_hidden(what: &str, text: &str, canaries: &[&str]) {
    for canary in canaries {
        let found = text.lines().find(|line| line.contains(canary));
        assert!(found.is_none(), "{what} tells {canary}: {found:?}");
    }
}

/// Writes an event whose payload, key and headers nobody may see.
async fn write(world: &World, aggregate_type: &str, topic: Option<&str>) -> Uuid {
    let id = Uuid::new_v4();
    sqlx::query(
        "insert into outbox (id, aggregate_id, aggregate_type, event_type, payload, headers, topic)
         values ($1, $2, $3, 'Paid', jsonb_build_object('card', $4::text), jsonb_build_object('who', $5::text), $6)",
    )
    .bind(id)
    .bind(KEY)
    .bind(aggregate_type)
    .bind(PAYLOAD)
    .bind(HEADER)
    .bind(topic)
    .execute(&world.pool)
    .await
    .unwrap();
    id
}

#[test]
fn no_command_tells_a_password_or_a_payload_at_any_level() {
    support::run(async |world| {
        let mut outbox = Outbox::new("outbox", Layout::Native, OnPublished::Mark);
        outbox.config = "on_rejected = \"dead_letter\"\nretention = \"1h\"".to_owned();
        let (plain, aggregate_type) = outbox.prepare(world).await;
        let runner = world.runner();
        // a role that may run every command, and has the password
        world
            .execute(&format!(
                "alter role \"{runner}\" superuser password '{SECRET}'"
            ))
            .await;
        let url = world.url_as(&runner, SECRET_IN_URL);
        let setup = || {
            watched(world.relay(&[&outbox]))
                .set("database", "url", &format!("\"{url}\""))
                .set(
                    "kafka.properties",
                    "\"sasl.password\"",
                    &format!("\"{SECRET}\""),
                )
                .env("RUST_LOG", "trace")
        };
        drop(plain);
        // its own complaints at this level are no fault
        world.expect_errors("");

        // A relay at work: rows that are published, parked, and wait for a topic that does not exist.
        let seen = Seen::start(&setup()).await;
        let published = write(world, &aggregate_type, None).await;
        let refused = write(world, &aggregate_type, Some("no such/topic")).await;
        let missing = world.topic("missing");
        write(world, &aggregate_type, Some(&missing)).await;
        eventually(SOON, "all but one are dealt with", async || {
            outbox.pending(world).await == 1 && parked(world).await == 1
        })
        .await;
        seen.relay.wait_line("next_step", SOON).await;
        let all = [SECRET, SECRET_IN_URL, PAYLOAD, KEY, HEADER];
        for path in ["/", "/status", "/metrics", "/livez", "/readyz", "/nothing"] {
            assert_hidden(path, &seen.get(path).await.1, &all);
        }
        let process = format!("/proc/{}/cmdline", seen.relay.id());
        let arguments = std::fs::read(process).expect("a process has arguments");
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        assert!(arguments.contains("run"), "{arguments}");
        assert_hidden("ps", &arguments, &all);
        let statements: Vec<String> = sqlx::query_scalar(
            "select coalesce(query, '') || coalesce(application_name, '') from pg_stat_activity",
        )
        .fetch_all(&world.pool)
        .await
        .unwrap();
        // (the test's own statements bind them too)
        assert_hidden("pg_stat_activity", &statements.join("\n"), &all);

        // Every command that ends by itself, beside it.
        let id = world
            .number("select min(parked_id) from outbox_relay.parked")
            .await;
        let (id, published, refused) = (id.to_string(), published.to_string(), refused.to_string());
        let topic = topic_of(&aggregate_type);
        // what the operator asks for by its id is told with its key, never with its payload
        let outputs = [SECRET, SECRET_IN_URL, PAYLOAD];
        for arguments in [
            &["config", "print"][..],
            &["config", "check"],
            &["migrate", "--print"],
            &["migrate", "--print", "--grants"],
            &["migrate", "--yes"],
            &["check"],
            &["check", "--json"],
            &["status"],
            &["tail", "--topic", &topic],
            &["inspect", &published],
            &["inspect", &refused],
            &["parked", "list"],
            &["parked", "list", "--json"],
            &["parked", "show", &id],
            &["pause", "--reason", "for the test", "--yes"],
            &["pause", "--list"],
            &["resume", "--yes"],
            &["replay", "--id", &published, "--yes"],
            &["parked", "retry", "--id", &id, "--yes"],
            &["parked", "skip", "--id", &id, "--yes"],
            &["purge", "--older-than", "1h", "--yes"],
            &["adopt", "--yes"],
            &["run", "--until-empty"],
            &["uninstall", "--yes"],
        ] {
            let (code, said) = command(&setup(), arguments).await;
            // 64 would be a mistake of this test, and 70 of the product
            assert!(
                code != Some(64) && code != Some(70),
                "{arguments:?}: {said}"
            );
            assert!(said.len() > 10, "{arguments:?} says something");
            assert_hidden(&format!("{arguments:?}"), &said, &outputs);
        }

        // What goes wrong: a wrong password, nobody there, a server that is none, a bad file.
        let wrong = url.replace(SECRET_IN_URL, &format!("{SECRET_IN_URL}-wrong"));
        let nobody = format!("postgres://{runner}:{SECRET_IN_URL}@127.0.0.1:9/x");
        let kafka = world.kafka.brokers.split(',').next().unwrap();
        let other = format!("postgres://{runner}:{SECRET_IN_URL}@{kafka}/x?sslmode=disable");
        let faults = [
            setup().set("database", "url", &format!("\"{wrong}\"")),
            setup().set("database", "url", &format!("\"{nobody}\"")),
            setup().set("database", "url", &format!("\"{other}\"")).set(
                "database",
                "connect_timeout",
                "\"1s\"",
            ),
            setup().set("database", "url", &format!("\"{SECRET}\"")),
            setup().set("database", "urll", &format!("\"{url}\"")),
            setup().set("database", "connect_timeout", &format!("\"{SECRET}\"")),
            setup().set(
                "kafka.properties",
                "\"sasl.pasword\"",
                &format!("\"{SECRET}\""),
            ),
            setup().set(
                "kafka.properties",
                "\"ssl.key.pem\"",
                &format!("\"{SECRET}\""),
            ),
            setup().env(
                "OUTBOX_RELAY__DATABASE__URL",
                &format!("postgres//{SECRET}"),
            ),
            setup().set("kafka", "brokers", "\"127.0.0.1:9\"").set(
                "relay",
                "publish_timeout",
                "\"1s\"",
            ),
        ];
        for (n, setup) in faults.iter().enumerate() {
            for arguments in [
                &["run", "--until-empty"][..],
                &["check"],
                &["config", "print"],
            ] {
                let (_, said) = command(setup, arguments).await;
                assert_hidden(&format!("fault {n}, {arguments:?}"), &said, &outputs);
            }
        }
        let log = seen.relay.lines().join("\n");
        assert!(
            log.contains("\"level\":\"TRACE\""),
            "the level is the lowest"
        );
        assert_hidden("the log of run", &log, &all);
        seen.relay.stop().await;
    });
}

/// The statements of SECURITY.md for one person, as they stand there.
fn statements_of_security_md() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/SECURITY.md");
    let text = std::fs::read_to_string(path).expect("SECURITY.md is there");
    let (_, rest) = text
        .split_once("```sql\n-- erase\n")
        .expect("its statements");
    rest.split_once("```").expect("their end").0.to_owned()
}

#[test]
fn one_persons_data_is_erased_by_the_statements_in_the_docs() {
    support::run(async |world| {
        let mut outbox = Outbox::new("outbox", Layout::Native, OnPublished::Archive);
        outbox.config = "on_rejected = \"block\"".to_owned();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        // of this person: two in the history, one blocked, one behind it, one still to come; of another: two
        for _ in 0..2 {
            write(world, &aggregate_type, None).await;
        }
        one(world, &outbox, &aggregate_type, "another", 1).await;
        assert!(setup.until_empty(SOON).await.success());
        write(world, &aggregate_type, Some("no such/topic")).await;
        write(world, &aggregate_type, None).await;
        ends(&setup, &["run", "--until-empty"], 75).await;
        ends(&setup, &["parked", "retry", "--key", KEY, "--yes"], 0).await;
        ends(&setup, &["run", "--until-empty"], 75).await;
        ends(&setup, &["pause", "--reason", "to erase", "--yes"], 0).await;
        write(world, &aggregate_type, None).await;
        one(world, &outbox, &aggregate_type, "another", 2).await;

        let everywhere = async |what: &str| {
            let tables: Vec<String> = sqlx::query_scalar(
                "select format('%I.%I', n.nspname, c.relname)
                   from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where n.nspname in ('public', 'outbox_relay') and c.relkind = 'r'",
            )
            .fetch_all(&world.pool)
            .await
            .unwrap();
            let mut found = Vec::new();
            for table in tables {
                let like = format!(
                    "select count(*) from {table} t
                      where t::text like '%' || $1 || '%' or t::text like '%' || encode($1::bytea, 'hex') || '%'"
                );
                let rows: i64 = sqlx::query_scalar(AssertSqlSafe(like))
                    .bind(what)
                    .fetch_one(&world.pool)
                    .await
                    .unwrap();
                if rows > 0 {
                    found.push((table, rows));
                }
            }
            found.sort();
            found
        };
        let before = everywhere(KEY).await;
        let tables: Vec<&str> = before.iter().map(|(table, _)| table.as_str()).collect();
        assert!(
            ["public.outbox", "outbox_relay.parked", "outbox_relay.audit"]
                .iter()
                .all(|table| tables.contains(table)),
            "{before:?}"
        );
        assert!(
            tables.iter().any(|table| table.contains("history")),
            "{before:?}"
        );
        assert!(!everywhere(PAYLOAD).await.is_empty());
        let another = everywhere("another").await;

        // by the docs: what blocks and what waits is given up, then the statements
        for state in ["blocked", "behind"] {
            ends(
                &setup,
                &["parked", "skip", "--key", KEY, "--state", state, "--yes"],
                0,
            )
            .await;
        }
        let statements = statements_of_security_md().replace("PERSON", KEY);
        world.execute(&statements).await;
        assert_eq!(everywhere(KEY).await, []);
        assert_eq!(everywhere(PAYLOAD).await, []);
        assert_eq!(everywhere(HEADER).await, []);
        assert_eq!(everywhere("another").await, another, "nobody else's");

        // and the relay goes on
        ends(&setup, &["resume", "--yes"], 0).await;
        let (code, said) = command(&setup, &["run", "--until-empty"]).await;
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(outbox.pending(world).await, 0);
    });
}
