//! `outbox_relay.emit`: events written by a call. What arrives, who may call it, what is refused, and that the
//! functions go with the table.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use uuid::Uuid;

use crate::operating::{SOON, command, ends, native};
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::{self, World, topic_of};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// What a statement that must fail fails with: its code and all of its message.
async fn refusal(connection: &mut PgConnection, sql: &str) -> (String, String) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut *connection)
        .await;
    let error = done.err().unwrap_or_else(|| panic!("it was taken: {sql}"));
    let error = error.into_database_error().expect("Postgres refused it");
    let code = error.code().unwrap_or_default().into_owned();
    (code, error.message().to_owned())
}

async fn text(world: &World, sql: &str) -> String {
    let text = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(sql.to_owned()))
        .fetch_one(&world.pool)
        .await;
    text.unwrap_or_else(|error| panic!("{error} in {sql}"))
        .unwrap_or_default()
}

/// A role of this test's own that may log in, and its URL.
async fn role(world: &World, name: &str) -> (String, String) {
    let role = format!("{}-{name}", world.database());
    world
        .execute(&format!("create role \"{role}\" login password 'writes'"))
        .await;
    let url = world.url_as(&role, "writes");
    (role, url)
}

#[test]
fn a_call_is_as_good_as_an_insert_and_a_rollback_emits_nothing() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        let (setup, order) = outbox.prepare(world).await;
        let (topic, chosen) = (topic_of(&order), world.topic("chosen"));
        world.kafka.create_topic(&chosen, 1, &[]).await;
        let id = Uuid::new_v4();
        world
            .execute(&format!(
                "begin;
                 select outbox_relay.emit('{order}', 'a', 'Undone', '{{}}');
                 rollback;
                 begin;
                 insert into outbox (aggregate_type, aggregate_id, event_type, payload, headers)
                 values ('{order}', 'a', 'Paid', '{{\"b\": 1.50, \"a\": \"é\"}}', '{{\"n\": 1}}');
                 select outbox_relay.emit('{order}', 'a', 'Paid', '{{\"b\": 1.50, \"a\": \"é\"}}',
                                          headers => '{{\"n\": 1}}', id => '{id}');
                 select outbox_relay.emit('{order}', 'a', 'Gone', null);
                 select outbox_relay.emit('{order}', 7, 'Sent', '[1]'::jsonb, topic => '{chosen}');
                 select outbox_relay.emit('{order}', '{id}'::uuid, 'Sent', '[2]'::json, topic => '{chosen}');
                 set local outbox_relay.traceparent = 'nonsense';
                 select outbox_relay.emit('{order}', 't', 'Untraced', '{{}}', topic => '{chosen}');
                 set local outbox_relay.traceparent = '{TRACE}';
                 set local outbox_relay.tracestate = 'rojo=1';
                 select outbox_relay.emit('{order}', 't', 'Traced', '{{}}', topic => '{chosen}');
                 select outbox_relay.emit('{order}', 't', 'Own', '{{}}', '{{\"traceparent\": \"mine\"}}', '{chosen}');
                 commit;
                 select outbox_relay.emit('{order}', 't', 'After', '{{}}', topic => '{chosen}')"
            ))
            .await;
        // in the order of the array, whose numbers keep their text where the column does
        let events: String = (1..=50)
            .map(|n| {
                format!(
                    "{{\"aggregate_type\": \"{order}\", \"aggregate_id\": \"batch\", \"event_type\": \"E{n}\",
                       \"payload\": {{\"n\": {n}}}, \"headers\": {{\"k\": \"v\"}}}},"
                )
            })
            .collect();
        let events = format!("[{}]", events.trim_end_matches(','));
        let ids: Vec<Uuid> = sqlx::query_scalar("select outbox_relay.emit_batch($1)")
            .bind(&events)
            .fetch_all(&world.pool)
            .await
            .unwrap();
        let status = setup.until_empty(SOON).await;
        assert!(status.success(), "{status}");

        let records = world.kafka.read_all(&topic).await;
        let of = |key: &str| {
            let mut all: Vec<_> = (records.iter())
                .filter(|record| record.key.as_deref() == Some(key.as_bytes()))
                .collect();
            all.sort_by_key(|record| record.offset);
            all
        };
        let a = of("a");
        assert_eq!(a.len(), 3, "what was rolled back is not there");
        assert_eq!(
            a[0].value, a[1].value,
            "inserted and emitted, the same bytes"
        );
        assert_eq!(a[0].headers[1..], a[1].headers[1..]);
        assert_eq!(
            a[1].headers[0].1.as_deref(),
            Some(id.to_string().as_bytes())
        );
        assert_eq!(a[2].value, None, "a tombstone");
        let batch = of("batch");
        let arrived: Vec<_> = (batch.iter())
            .map(|record| String::from_utf8(record.headers[0].1.clone().unwrap()).unwrap())
            .collect();
        let written: Vec<_> = ids.iter().map(Uuid::to_string).collect();
        assert_eq!(arrived, written);
        assert_eq!(
            batch[7].value.as_deref(),
            Some("{\"n\": 8}".as_bytes()),
            "the eighth"
        );
        assert_eq!(batch[7].headers[2], ("k".to_owned(), Some(b"v".to_vec())));

        let mut moved = world.kafka.read_all(&chosen).await;
        moved.sort_by_key(|record| record.offset);
        let header = |value: &[u8], name: &str| {
            let found = moved
                .iter()
                .find(|it| it.headers[1].1.as_deref() == Some(value));
            let found = found.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(value)));
            let found = found.headers.iter().find(|(it, _)| it == name);
            found.map(|(_, value)| String::from_utf8(value.clone().unwrap()).unwrap())
        };
        assert_eq!(header(b"Traced", "traceparent").as_deref(), Some(TRACE));
        assert_eq!(header(b"Traced", "tracestate").as_deref(), Some("rojo=1"));
        assert_eq!(header(b"Own", "traceparent").as_deref(), Some("mine"));
        assert_eq!(header(b"Own", "tracestate"), None, "its own trace is whole");
        for untraced in [&b"Untraced"[..], b"After"] {
            assert_eq!(header(untraced, "traceparent"), None, "{untraced:?}");
        }
        let keys: Vec<_> = moved.iter().map(|record| record.key.clone()).collect();
        assert!(keys.contains(&Some(b"7".to_vec())), "{keys:?}");
        assert!(
            keys.contains(&Some(id.to_string().into_bytes())),
            "{keys:?}"
        );
    });
}

#[test]
fn every_type_of_payload_takes_what_it_can_hold_and_says_what_it_cannot() {
    support::run(async |world| {
        let types = ["jsonb", "json", "text", "bytea"];
        let mut outboxes = Vec::new();
        for payload in types {
            let outbox = native(&format!("of_{payload}"));
            outbox.create(world).await;
            world
                .execute(&format!(
                    "alter table of_{payload} drop payload, add payload {payload}"
                ))
                .await;
            outboxes.push(outbox);
        }
        let setup = world.relay(&outboxes.iter().collect::<Vec<_>>());
        setup.migrate().await;
        // the first has the plain name, any other its own, which the registry knows
        let mut connection = PgConnection::connect(&world.database_url).await.unwrap();
        for payload in types {
            let name = format!(
                "select name from outbox_relay.emitter where outbox = 'public.of_{payload}'"
            );
            let name = text(world, &name).await;
            let known = match payload {
                "jsonb" => "emit".to_owned(),
                _ => format!("emit_public_of_{payload}"),
            };
            assert_eq!(name, known);
            let given = r#"{"b":1.50,  "a": null}"#;
            for form in types {
                let call = format!(
                    "select outbox_relay.{name}('Order', '1', 'As {form}', '{given}'::{form})"
                );
                if (form == "bytea") == (payload == "bytea") {
                    sqlx::raw_sql(AssertSqlSafe(call))
                        .execute(&mut connection)
                        .await
                        .unwrap();
                    continue;
                }
                let (code, said) = refusal(&mut connection, &call).await;
                assert_eq!(code, "42804", "{form} as {payload}: {said}");
                assert!(said.contains("bytea"), "{said}");
            }
            // what an insert of the same would have stored
            let direct = format!(
                "select count(*) from of_{payload} where payload::text is distinct from (case event_type
                   when 'As bytea' then '{given}'::bytea::text when 'As jsonb' then '{given}'::jsonb::text
                   else '{given}'::{payload}::text end)"
            );
            assert_eq!(world.number(&direct).await, 0, "{payload}");
            let in_batch = match payload {
                "bytea" => r#""AAH/""#,
                _ => given,
            };
            let batch = format!(
                r#"select outbox_relay.{name}_batch('[{{"aggregate_type": "Order", "aggregate_id": 1,
                     "event_type": "In a batch", "payload": {in_batch}}}]')"#
            );
            world.execute(&batch).await;
            let stored = text(
                world,
                &format!("select payload::text from of_{payload} where event_type = 'In a batch'"),
            )
            .await;
            let expected = match payload {
                "jsonb" => r#"{"a": null, "b": 1.50}"#,
                "bytea" => r"\x0001ff",
                _ => given,
            };
            assert_eq!(stored, expected, "{payload}");
        }
        // text that is no JSON
        world
            .execute(
                r#"select outbox_relay.emit_public_of_text('Order', '1', 'Words', 'so it is');
                   select outbox_relay.emit_public_of_text_batch(
                     '[{"aggregate_type": "Order", "aggregate_id": 1, "event_type": "Words", "payload": "so it is"}]')"#,
            )
            .await;
        let words =
            "select count(*) from of_text where event_type = 'Words' and payload = 'so it is'";
        assert_eq!(world.number(words).await, 2);
    });
}

#[test]
fn a_writer_may_call_and_nothing_else_under_any_search_path() {
    support::run(async |world| {
        let (outbox, other) = (Outbox::classic(), native("other"));
        other.create(world).await;
        let (_, order) = outbox.prepare(world).await;
        // the one under test, then another one, each with a writer of its own
        let setup = world.relay(&[&outbox]);
        let (writer, url) = role(world, "Writer").await;
        let (_, stranger_url) = role(world, "stranger").await;
        let printed = ends(
            &setup,
            &["migrate", "--print", "--grants", "--writer", &writer],
            0,
        )
        .await;
        let (_, grants) = printed.split_once("-- 3. After it").expect("a third part");
        let grants = format!("-- {grants}");
        world.execute(&grants).await;
        world.execute(&grants).await;
        world.relay(&[&other]).migrate().await;
        // as anybody may who can create something in a schema of the path, or in his own temporary one
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let traps = "
            create function pg_temp.gen_random_uuid() returns uuid language plpgsql as $$ begin raise 'trapped'; end $$;
            create function pg_temp.jsonb_typeof(jsonb) returns text language plpgsql as $$ begin raise 'trapped'; end $$;
            create temp table outbox (like public.outbox including all);
            create domain pg_temp.jsonb as text check (false);
            create domain pg_temp.uuid as text check (false);
            set search_path = pg_temp, public, pg_catalog";
        world
            .execute(&format!(
                "grant select on outbox to \"{writer}\";
                 create function public.current_setting(text, boolean) returns text language plpgsql
                   as $$ begin raise 'trapped'; end $$;
                 create function public.no(text, text) returns boolean language plpgsql as $$ begin raise 'trapped'; end $$;
                 create operator public.<> (leftarg = text, rightarg = text, function = public.no)"
            ))
            .await;
        sqlx::raw_sql(traps).execute(&mut connection).await.unwrap();
        world
            .execute(&format!("revoke select on outbox from \"{writer}\""))
            .await;
        let id = Uuid::new_v4();
        let call = format!("select outbox_relay.emit('{order}', '{id}', 'Paid', '{{}}')");
        let batch = format!(
            r#"select outbox_relay.emit_batch('[{{"aggregate_type": "{order}", "aggregate_id": "{id}",
                 "event_type": "Paid", "payload": {{}}}}]')"#
        );
        for sql in [&call, &batch] {
            sqlx::raw_sql(AssertSqlSafe(sql.clone()))
                .execute(&mut connection)
                .await
                .unwrap();
        }
        assert_eq!(outbox.pending(world).await, 2);
        for sql in [
            "insert into public.outbox (aggregate_id, aggregate_type, event_type, payload)
             values (gen_random_uuid(), 'a', 'b', '{}')",
            "select * from public.outbox",
            "delete from public.outbox",
            "select outbox_relay.emit_public_other('a', 'b', 'c', '{}')",
            "select outbox_relay.emit_public_other_batch('[]')",
            "select outbox_relay.allow_emit('public.other', current_user::text)",
            "select outbox_relay.drop_emitter('public.outbox')",
            "select outbox_relay.make_emitter('public.other', 'public.outbox', '{}', 'x')",
            "select outbox_relay.make_emit_function('pg_sleep(float8)', 'select 1', null)",
            "select * from outbox_relay.emitter",
            "select * from outbox_relay.lane",
        ] {
            let (code, said) = refusal(
                &mut connection,
                &format!("set search_path to default; {sql}"),
            )
            .await;
            assert_eq!(code, "42501", "{sql}: {said}");
        }
        // and nobody else may
        let mut stranger = PgConnection::connect(&stranger_url).await.unwrap();
        world
            .execute("grant usage on schema outbox_relay to public")
            .await;
        for sql in [&call, &batch] {
            let (code, said) = refusal(&mut stranger, sql).await;
            assert_eq!(code, "42501", "{said}");
        }
        for connection in [connection, stranger] {
            connection.close().await.unwrap();
        }
        for name in ["Writer", "stranger"] {
            let role = format!("\"{}-{name}\"", world.database());
            world
                .execute(&format!("drop owned by {role}; drop role {role}"))
                .await;
        }
        world
            .execute("drop operator public.<> (text, text); drop function public.current_setting(text, boolean)")
            .await;
    });
}

#[test]
fn a_superusers_rights_are_not_lent_to_the_triggers_of_another_ones_table() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let (service, _) = role(world, "service").await;
        world
            .execute(&format!(
                "grant create on schema public to \"{service}\"; alter table outbox owner to \"{service}\";
                 create table seen (who text); grant insert on seen to public;
                 create function look() returns trigger language plpgsql as $$
                   begin insert into public.seen values (current_user); return new; end $$;
                 create trigger look before insert on outbox for each row execute function look()"
            ))
            .await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        world
            .execute("select outbox_relay.emit('Order', gen_random_uuid(), 'Paid', '{}')")
            .await;
        assert_eq!(text(world, "select who from seen").await, service);
        world
            .execute(&format!(
                "drop table outbox; drop owned by \"{service}\" cascade; drop role \"{service}\""
            ))
            .await;
    });
}

#[test]
fn what_can_be_no_event_is_refused_with_its_reason() {
    support::run(async |world| {
        let (classic, rich) = (Outbox::classic(), native("rich"));
        for outbox in [&classic, &rich] {
            outbox.create(world).await;
        }
        world.relay(&[&classic, &rich]).migrate().await;
        let mut connection = PgConnection::connect(&world.database_url).await.unwrap();
        let id = Uuid::new_v4();
        let on_classic = [
            (
                format!("null, '{id}', 'E', '{{}}'"),
                "22023",
                "aggregate_type",
            ),
            (
                format!("'', '{id}', 'E', '{{}}'"),
                "22023",
                "aggregate_type",
            ),
            (
                "'Order', null, 'E', '{}'".to_owned(),
                "22023",
                "aggregate_id",
            ),
            (
                format!("'Order', '{id}', null, '{{}}'"),
                "22023",
                "event_type",
            ),
            (
                format!("'Order', '{id}', '', '{{}}'"),
                "22023",
                "event_type",
            ),
            (format!("'Order', '{id}', 'E', null"), "23502", "payload"),
            (format!("'Order', '{id}', 'E', '{{'"), "22P02", "json"),
            ("'Order', 'no uuid', 'E', '{}'".to_owned(), "22P02", "uuid"),
            (
                format!("'Order', '{id}', 'E', '{{}}', headers => '{{}}'"),
                "0A000",
                "has no column for headers",
            ),
            (
                format!("'Order', '{id}', 'E', '{{}}', topic => 't'"),
                "0A000",
                "has no column for a topic",
            ),
        ];
        let on_rich = [
            ("'Order', 'a', 'E', '{}', '[1]'", "22023", "JSON object"),
            (
                "'Order', 'a', 'E', '{}', '\"text\"'",
                "22023",
                "JSON object",
            ),
            ("'Order', 'a', 'E', '{}', topic => ''", "22023", "topic"),
            ("'Order', 'a', 'E', '{}', topic => 'a b'", "22023", "topic"),
            ("'Order', 'a', 'E', '{}', topic => '..'", "22023", "topic"),
        ];
        let on_rich = on_rich.map(|(arguments, code, part)| (arguments.to_owned(), code, part));
        for (name, cases) in [("emit", &on_classic[..]), ("emit_public_rich", &on_rich)] {
            for (arguments, code, part) in cases {
                // the transaction is gone with it
                let sql =
                    format!("begin; create table half (); select outbox_relay.{name}({arguments})");
                let (got, said) = refusal(&mut connection, &sql).await;
                assert_eq!(
                    (got.as_str(), said.contains(part)),
                    (*code, true),
                    "{arguments}: {said}"
                );
                sqlx::raw_sql("commit")
                    .execute(&mut connection)
                    .await
                    .unwrap();
            }
        }
        let good =
            r#""aggregate_type": "Order", "aggregate_id": "a", "event_type": "E", "payload": {}"#;
        for (events, part) in [
            ("null".to_owned(), "must be a JSON array"),
            ("'{}'".to_owned(), "must be a JSON array"),
            ("'[1]'".to_owned(), "event 1 of the array is no JSON object"),
            (
                format!(r#"'[{{{good}}}, {{"aggregate_id": "a", "event_type": "E"}}]'"#),
                "event 2 of the array has no aggregate_type",
            ),
            (
                r#"'[{"aggregate_type": "Order", "event_type": "E"}]'"#.to_owned(),
                "has no aggregate_id",
            ),
            (
                r#"'[{"aggregate_type": "Order", "aggregate_id": "a", "event_type": null}]'"#
                    .to_owned(),
                "has no event_type",
            ),
            (
                format!(r#"'[{{{good}, "header": {{}}}}]'"#),
                "unknown here: header",
            ),
            (
                format!(r#"'[{{{good}, "headers": [1]}}]'"#),
                "has headers that are",
            ),
            (
                format!(r#"'[{{{good}, "topic": "a/b"}}]'"#),
                "has a topic that",
            ),
        ] {
            let sql = format!("select outbox_relay.emit_public_rich_batch({events})");
            let (code, said) = refusal(&mut connection, &sql).await;
            assert_eq!(
                (code.as_str(), said.contains(part)),
                ("22023", true),
                "{said}"
            );
        }
        let moved = format!(r#"select outbox_relay.emit_batch('[{{{good}, "topic": "t"}}]')"#);
        let (_, said) = refusal(&mut connection, &moved).await;
        assert!(said.contains("has a topic, for which"), "{said}");
        let headed =
            format!(r#"select outbox_relay.emit_batch('[{{{good}, "headers": {{"a": 1}}}}]')"#);
        let (_, said) = refusal(&mut connection, &headed).await;
        assert!(said.contains("has headers, for which"), "{said}");
        world
            .execute("select outbox_relay.emit_public_rich_batch('[]')")
            .await;
        for (outbox, table) in [(&classic, "outbox"), (&rich, "rich")] {
            assert_eq!(outbox.pending(world).await, 0, "{table}");
        }
        let half = "select count(*) from pg_class where relname = 'half'";
        assert_eq!(world.number(half).await, 0);
        connection.close().await.unwrap();
    });
}

#[test]
fn the_functions_go_with_the_table() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        let (setup, _) = outbox.prepare(world).await;
        let (writer, url) = role(world, "writer").await;
        let allow = format!("select outbox_relay.allow_emit('public.outbox', '{writer}')");
        world.execute(&allow).await;
        let again = ends(&setup, &["migrate", "--yes"], 0).await;
        assert!(!again.contains("making the functions"), "{again}");

        // one session, whose plans are kept
        let mut session = PgConnection::connect(&url).await.unwrap();
        let id = Uuid::new_v4();
        let mut events = 0;
        let mut emit = async |call: &str| {
            for _ in 0..7 {
                sqlx::query(AssertSqlSafe(call.to_owned()))
                    .execute(&mut session)
                    .await
                    .unwrap_or_else(|error| panic!("{error} in {call}"));
                events += 1;
            }
            assert_eq!(outbox.pending(world).await, events);
        };
        let call = format!("select outbox_relay.emit('Order', '{id}'::uuid, 'E', '{{}}')");
        emit(&call).await;
        // columns before and after, others gone, the payload of another type; nothing has to be made anew
        world
            .execute(
                "alter table outbox add tenant text default 'none', drop column created_at,
                   add created_at timestamptz not null default now(), alter payload type json",
            )
            .await;
        emit(&call).await;
        let told = async || {
            let (_, said) = command(&setup, &["check"]).await;
            let mut lines = said.lines();
            let line = lines.find(|line| line.contains(" emit "));
            line.unwrap_or_else(|| panic!("no line of emit in {said}"))
                .to_owned()
        };
        let made_anew = async |change: &str| {
            world.execute(change).await;
            assert!(told().await.contains("not made for the table as it is now"));
            let made = ends(&setup, &["migrate", "--yes"], 0).await;
            assert!(made.contains("making the functions"), "{made}");
            assert!(told().await.starts_with("ok"));
        };
        assert!(told().await.contains("not made for"), "of another type");
        ends(&setup, &["migrate", "--yes"], 0).await;
        // nothing fills in any more what the table did
        made_anew("alter table outbox alter id drop default, alter created_at drop default").await;
        emit(&call).await;
        // text now, so that any id will do
        made_anew(
            "alter table outbox alter aggregate_id type text, add headers jsonb, add topic text",
        )
        .await;
        emit("select outbox_relay.emit('Order', 'any', 'E', '{\"b\":1,  \"a\":2}')").await;
        emit("select outbox_relay.emit('Order', 5, 'E', '{}')").await;
        emit(&call).await;
        let kept = r#"select count(*) from outbox where payload::text = '{"b":1,  "a":2}'"#;
        assert_eq!(world.number(kept).await, 7, "as it was given");

        // the layout is another one: the same call takes headers now
        let mut other = native("outbox");
        other.on_published = OnPublished::Mark;
        let setup = world.relay(&[&other]);
        setup.migrate().await;
        emit("select outbox_relay.emit('Order', 'any', 'E', '{}', headers => '{\"a\": 1}')").await;
        session.close().await.unwrap();

        // a column that no event can be put in: told by `check`, and no reason for `migrate` to fail
        let said = ends(&setup, &["uninstall"], 1).await;
        assert!(
            said.contains("the functions outbox_relay.emit and"),
            "{said}"
        );
        ends(&setup, &["uninstall", "--yes"], 0).await;
        let left = "select count(*) from pg_proc where pronamespace = 'outbox_relay'::regnamespace
                       and proname in ('emit', 'emit_batch')";
        assert_eq!(world.number(left).await, 0);
        world
            .execute("alter table outbox rename aggregate_type to kind")
            .await;
        let (_, said) = command(&setup, &["migrate", "--yes"]).await;
        assert!(!said.contains("making the functions"), "{said}");
        assert_eq!(world.number(left).await, 0);
        world
            .execute("alter table outbox rename kind to aggregate_type")
            .await;
        setup.migrate().await;
        assert_eq!(
            world
                .number("select count(*) from outbox_relay.emitter")
                .await,
            1
        );
        world
            .execute(&format!(
                "drop owned by \"{writer}\"; drop role \"{writer}\""
            ))
            .await;
    });
}
