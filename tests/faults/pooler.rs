//! PgBouncer in transaction mode, of a version that knows nothing of prepared statements.

use std::time::Duration;

use super::postgres_scene::{LONG, ROWS_MAX, WORKERS};
use crate::operating::{SOON, audited, ends, native};
use crate::support::outbox::{Outbox, parked};
use crate::support::pgbouncer::PgBouncer;
use crate::support::relay::Setup;
use crate::support::writers::{Load, one};
use crate::support::{self, World, eventually, topic_of};

/// Fewer than the workers of two relays.
const SERVER_CONNECTIONS: u16 = 3;

fn through<'a>(world: &'a World, outbox: &Outbox, bouncer: &PgBouncer) -> Setup<'a> {
    let url = format!("\"{}\"", bouncer.url(&world.database_url));
    world
        .relay(&[outbox])
        .set("database", "url", &url)
        .workers(WORKERS)
        .set("relay", "claim_rows_max", &ROWS_MAX.to_string())
}

/// A pooler that must be there, as the servers must. It logs in as the relay's role.
async fn bouncer(world: &World) -> PgBouncer {
    of(&world.runner_url()).await
}

/// The same, as whom `url` names.
async fn of(url: &str) -> PgBouncer {
    let bouncer = PgBouncer::before(url, SERVER_CONNECTIONS).await;
    bouncer.unwrap_or_else(|why| panic!("{why}"))
}

#[test]
fn relays_behind_a_transaction_pooler_share_its_connections_and_keep_every_promise() {
    support::run(async |world| {
        let bouncer = bouncer(world).await;
        let mut outbox = Outbox::classic();
        // whoever listened through such a pooler would be heard by somebody else's transaction
        outbox.config = "notify = true".to_owned();
        outbox.create(world).await;
        let setup =
            || through(world, &outbox, &bouncer).set("database", "prepared_statements", "false");
        world.relay(&[&outbox]).migrate().await;
        let relays = [setup().run(), setup().run()];
        let mut load = Load::of(&world.aggregate_type("Order"));
        load.rate = Some(600.0);
        let topic = topic_of(&load.aggregate_type);
        world.kafka.create_topic(&topic, 4, &[]).await;
        let ledger = load.start(world, &outbox).await.finish().await;
        outbox.wait_drained(world, LONG).await;
        let connections = "select count(*) from pg_stat_activity
             where datname = current_database() and application_name = 'outbox-relay'";
        assert!(world.number(connections).await <= i64::from(SERVER_CONNECTIONS));
        for relay in relays {
            relay.wait_line("notify is passed over", LONG).await;
            for line in relay.lines() {
                assert!(!line.contains("\"level\":\"ERROR\""), "{line}");
            }
            relay.stop().await;
        }
        assert_eq!(parked(world).await, 0);
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn the_commands_of_an_operator_work_through_such_a_pooler() {
    support::run(async |world| {
        // operators have rights that the relay has not
        let bouncer = of(&world.database_url).await;
        let outbox = native("outbox");
        let (_, aggregate_type) = outbox.prepare(world).await;
        let setup =
            || through(world, &outbox, &bouncer).set("database", "prepared_statements", "false");
        // it keeps the server processes busy, and leaves its statements in them
        let relay = setup().run();
        let mut load = Load::of(&aggregate_type);
        load.rate = Some(300.0);
        load.events = 1_200;
        let topic = topic_of(&aggregate_type);
        let load = load.start(world, &outbox).await;
        let setup = setup();
        let mut statuses: Vec<_> = (0..4).map(|_| setup.spawn(&["status"])).collect();
        for status in &mut statuses {
            let code = status.wait_exit(SOON).await.code();
            let said = status.lines().join("\n");
            assert!(code == Some(0) && said.contains("waiting "), "{said}");
        }

        let pause = ["pause", "--topic", &topic, "--reason", "a look", "--yes"];
        ends(&setup, &pause, 0).await;
        let said = ends(&setup, &["pause", "--list"], 0).await;
        assert!(said.contains(&topic) && said.contains("a look"), "{said}");
        assert_eq!(audited(world, "pause").await, (1, 1));
        let ledger = load.finish().await;
        let held = one(world, &outbox, &aggregate_type, "held", 1).await;
        let inspect = ["inspect", &held.id.to_string(), "--json"];
        let said = ends(&setup, &inspect, 0).await;
        for part in ["\"state\":\"pending\"", "\"paused\":\"topic\""] {
            assert!(said.contains(part), "{part} in: {said}");
        }
        ends(&setup, &["resume", "--yes"], 0).await;
        assert_eq!(audited(world, "resume").await, (1, 1));
        outbox.wait_drained(world, LONG).await;
        let said = ends(&setup, &inspect, 0).await;
        for part in ["\"state\":\"published\"", "\"found\":true"] {
            assert!(said.contains(part), "{part} in: {said}");
        }
        relay.stop().await;
        let mut ledger = ledger;
        ledger.push(held);
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_relay_that_prepares_statements_behind_such_a_pooler_says_what_to_set() {
    support::run(async |world| {
        world.expect_errors("prepared_statements = false");
        let bouncer = bouncer(world).await;
        let outbox = Outbox::classic();
        outbox.create(world).await;
        world.relay(&[&outbox]).migrate().await;
        let topic = topic_of(&world.aggregate_type("Order"));
        world.kafka.create_topic(&topic, 4, &[]).await;
        let relays = [
            through(world, &outbox, &bouncer).run(),
            through(world, &outbox, &bouncer).run(),
        ];
        let advice = "prepared_statements = false";
        eventually(LONG, "one of them says what to set", async || {
            let said = |relay: &support::relay::Relay| {
                relay.lines().iter().any(|line| line.contains(advice))
            };
            relays.iter().any(said)
        })
        .await;
        let load = Load {
            events: 50,
            ..Load::of(&world.aggregate_type("Order"))
        };
        let ledger = load.start(world, &outbox).await.finish().await;
        // it is slow, and still neither loses nor invents
        let set = through(world, &outbox, &bouncer).set("database", "prepared_statements", "false");
        for relay in relays {
            relay.sigkill();
        }
        let status = set.until_empty(Duration::from_secs(60)).await;
        assert!(status.success(), "{status}");
        world
            .check(&ledger)
            .await
            .assert_clean(2 * WORKERS * ROWS_MAX);
    });
}
