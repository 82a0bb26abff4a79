//! What is told during an outage of Kafka, an outage of Postgres, and beside a blocked key.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{SLACK_S, SOON, Seen, number, watched, whole};
use crate::page::shown;
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::writers::{Ledger, one};
use crate::support::{self, Own, World, eventually, topic_of};

/// Writes so many events, of so many orders.
async fn write(
    world: &World,
    outbox: &Outbox,
    aggregate_type: &str,
    orders: &[String],
    ledger: &mut Ledger,
    rounds: std::ops::RangeInclusive<i64>,
) {
    for n in rounds {
        for order in orders {
            ledger.push(one(world, outbox, aggregate_type, order, n).await);
        }
    }
}

fn orders(count: usize) -> Vec<String> {
    (0..count).map(|_| Uuid::new_v4().to_string()).collect()
}

/// How old the oldest pending row is, in milliseconds, as the database says.
const OLDEST_MS: &str =
    "select (extract(epoch from clock_timestamp() - min(created_at)) * 1000)::bigint
     from outbox where published_at is null";

/// Holds the age of the oldest row, by `/status`, against the database before and after.
async fn assert_age_is_true(world: &World, seen: &Seen) {
    let before = world.number(OLDEST_MS).await;
    let told = number(&seen.outbox().await["oldest_pending_age_s"]);
    let after = world.number(OLDEST_MS).await;
    let seconds = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap()).as_secs_f64();
    let (least, most) = (seconds(before) - 0.1, seconds(after) + SLACK_S);
    assert!(
        least <= told && told <= most,
        "{told}, not {least} to {most}"
    );
}

#[test]
fn what_is_told_while_kafka_is_down_is_true() {
    support::run_with(Own::KAFKA, async |world| {
        let mut outbox = Outbox::classic();
        outbox.config = "freshness_budget = \"1s\"".to_owned();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        let setup = watched(setup).set("relay", "publish_timeout", "\"5s\"");
        let seen = Seen::start(&setup).await;
        let (orders, mut ledger) = (orders(10), Ledger::default());
        write(world, &outbox, &aggregate_type, &orders, &mut ledger, 1..=4).await;
        outbox.wait_drained(world, SOON).await;
        seen.until("all is told as published", |status| {
            let outbox = &status["outboxes"][0];
            status["kafka"]["reachable"] == true
                && outbox["published"] == 40
                && outbox["backlog"]["events"] == 0
        })
        .await;
        let metrics = seen.metrics().await;
        let labels = [format!("topic=\"{topic}\"")];
        let labels = [labels[0].as_str()];
        assert_eq!(metrics.one("events_published_total", &labels), 40.0);
        assert_eq!(metrics.one("event_lag_seconds_count", &labels), 40.0);
        assert_eq!(metrics.one("kafka_up", &[]), 1.0);
        // a new broker may be slow to answer, and then records are repeated
        assert!(world.kafka.count(&topic).await >= 40);
        world.assert_settled_is_readable(&outbox, &topic).await;
        assert_eq!(seen.health().await, (true, true));

        world.own_kafka().stop().await;
        write(world, &outbox, &aggregate_type, &orders, &mut ledger, 5..=7).await;
        seen.until("Kafka is told as away", |status| {
            let outbox = &status["outboxes"][0];
            status["kafka"]["reachable"] == false && outbox["backlog"]["events"] == 30
        })
        .await;
        assert_eq!(outbox.pending(world).await, 30);
        assert_age_is_true(world, &seen).await;
        let metrics = seen.metrics().await;
        assert_eq!(metrics.one("kafka_up", &[]), 0.0);
        assert_eq!(metrics.one("database_up", &[]), 1.0);
        assert_eq!(metrics.one("backlog_events", &[]), 30.0);
        assert_eq!(metrics.one("state", &["state=\"serving\""]), 1.0);
        assert_eq!(metrics.sum("rows_parked_total", &[]), 0.0);
        if let Some(page) = shown(world, &seen).await {
            assert_eq!(
                (page.value("backlog"), page.value("state")),
                ("30", "serving")
            );
            assert!(page.shows("Kafka has been away") && page.shows("nothing is lost"));
        }
        // nor does a relay that is started in the middle of it know less
        let late = Seen::start(&setup).await;
        late.until("what waits is told without Kafka", |status| {
            let outbox = &status["outboxes"][0];
            status["kafka"]["reachable"] == false
                && outbox["state"] == "serving"
                && outbox["backlog"]["events"] == 30
        })
        .await;
        assert_age_is_true(world, &late).await;
        late.relay.stop().await;
        // a sidecar that is not ready would take its service down with Kafka
        assert_eq!(seen.health().await, (true, true));
        seen.until("the budget is told as broken", |status| {
            status["outboxes"][0]["freshness"][0]["kept"] == false
        })
        .await;

        world.own_kafka().start().await;
        outbox.wait_drained(world, SOON).await;
        seen.until("all is told as well again", |status| {
            let outbox = &status["outboxes"][0];
            status["kafka"]["reachable"] == true
                && outbox["published"] == 70
                && outbox["backlog"]["events"] == 0
                && outbox["oldest_pending_age_s"] == 0.0
                && outbox["freshness"][0]["kept"] == true
        })
        .await;
        let metrics = seen.metrics().await;
        assert_eq!(metrics.one("events_published_total", &labels), 70.0);
        // those that waited for it were older than a second
        let late = metrics.one("events_late_total", &labels);
        assert!((30.0..=70.0).contains(&late), "{late}");
        assert!(metrics.sum("publish_attempts_total", &[]) >= 70.0);
        seen.relay.stop().await;
        let report = world.check(&ledger).await;
        report.assert_clean(report.committed);
    });
}

#[test]
fn what_is_told_of_kafka_is_true_where_postgres_was_never_there() {
    support::run_with(Own::KAFKA, async |world| {
        world.expect_errors("trying again");
        world.own_kafka().stop().await;
        let setup = watched(world.relay(&[&Outbox::classic()]));
        let setup = setup.set("database", "url", "\"postgres://127.0.0.1:9/none\"");
        let seen = Seen::start(&setup).await;
        seen.until("Kafka is told as away", |status| {
            status["kafka"]["reachable"] == false
        })
        .await;
        assert_eq!(seen.metrics().await.one("kafka_up", &[]), 0.0);
        world.own_kafka().start().await;
        seen.until("Kafka is told as back", |status| {
            status["kafka"]["reachable"] == true
        })
        .await;
        assert_eq!(seen.metrics().await.one("kafka_up", &[]), 1.0);
        seen.relay.stop().await;
    });
}

#[test]
fn what_is_told_while_postgres_is_down_is_true() {
    support::run_with(Own::POSTGRES, async |world| {
        world.expect_errors("trying again");
        let outbox = Outbox::classic();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let setup = watched(setup).set("database", "statement_timeout", "\"2s\"");
        let seen = Seen::start(&setup).await;
        let strict = watched(world.relay(&[&outbox])).set("http", "strict_readiness", "true");
        let strict = Seen::start(&strict).await;
        // rows that wait: nobody has made their topic
        let waiting = world.aggregate_type("Waiting");
        let (orders, mut ledger) = (orders(3), Ledger::default());
        write(world, &outbox, &waiting, &orders, &mut ledger, 1..=2).await;
        write(world, &outbox, &aggregate_type, &orders, &mut ledger, 1..=2).await;
        let topic = topic_of(&waiting);
        for seen in [&seen, &strict] {
            seen.until("what waits is told", |status| {
                status["outboxes"][0]["backlog"]["events"] == 6
            })
            .await;
        }
        // whichever of the two met the topic
        eventually(SOON, "the topic is told as paused", async || {
            let labels = [&*format!("topic=\"{topic}\""), "reason=\"unknown\""];
            let (one, other) = (seen.metrics().await, strict.metrics().await);
            one.sum("topic_paused", &labels) + other.sum("topic_paused", &labels) >= 1.0
        })
        .await;
        assert_age_is_true(world, &seen).await;
        eventually(SOON, "both are ready", async || {
            seen.health().await == (true, true) && strict.health().await == (true, true)
        })
        .await;

        let gone = Instant::now();
        world.own_postgres().stop().await;
        for seen in [&seen, &strict] {
            seen.until("the database is told as away", |status| {
                let outbox = &status["outboxes"][0];
                outbox["database"]["reachable"] == false && outbox["state"] == "trouble"
            })
            .await;
        }
        let told = async || number(&seen.outbox().await["oldest_pending_age_s"]);
        let (began, before) = (Instant::now(), told().await);
        sleep(Duration::from_secs(2)).await;
        let (after, lasted) = (told().await, began.elapsed().as_secs_f64());
        // it rises as time goes by: the scrape computes it
        assert!(
            after - before >= 1.9 && after - before <= lasted + 0.1,
            "{before} {after}"
        );
        let metrics = seen.metrics().await;
        assert_eq!(metrics.one("database_up", &[]), 0.0);
        assert_eq!(metrics.one("kafka_up", &[]), 1.0);
        assert!(metrics.one("oldest_pending_age_seconds", &[]) >= after);
        assert!(
            metrics.one("database_away_seconds", &[]) <= gone.elapsed().as_secs_f64() + SLACK_S
        );
        assert_eq!(
            metrics.one("backlog_events", &[]),
            6.0,
            "the last that was known"
        );
        if let Some(page) = shown(world, &seen).await {
            assert_eq!(
                (page.value("backlog"), page.value("state")),
                ("6", "trouble")
            );
            let age: f64 = page.value("oldest_pending_age_s").parse().unwrap();
            assert!(age >= after, "it rises there too: {age}");
            assert!(page.shows("Kafka takes records"));
        }
        assert_eq!(
            seen.health().await,
            (true, true),
            "it waits, and it makes progress"
        );
        assert_eq!(strict.health().await, (true, false), "it was asked to tell");

        world.own_postgres().start().await;
        for seen in [&seen, &strict] {
            seen.until("the database is told as back", |status| {
                status["outboxes"][0]["database"]["reachable"] == true
            })
            .await;
        }
        world.kafka.create_topic(&topic, 1, &[]).await;
        outbox.wait_drained(world, SOON).await;
        for seen in [&seen, &strict] {
            seen.until("all is told as well again", |status| {
                let outbox = &status["outboxes"][0];
                outbox["state"] == "serving" && outbox["oldest_pending_age_s"] == 0.0
            })
            .await;
            assert_eq!(seen.health().await, (true, true));
        }
        let published = async |seen: &Seen| seen.metrics().await.sum("events_published_total", &[]);
        assert_eq!(published(&seen).await + published(&strict).await, 12.0);
        seen.relay.stop().await;
        strict.relay.stop().await;
        let report = world.check(&ledger).await;
        report.assert_clean(report.committed);
    });
}

/// A row that no topic takes, of a native outbox.
async fn bad(world: &World, aggregate_type: &str, order: &str) {
    let insert = "insert into outbox (aggregate_id, aggregate_type, event_type, payload, topic)
                  values ($1, $2, 'OrderCreated', '{}', 'no such/topic')";
    let inserted = sqlx::query(insert).bind(order).bind(aggregate_type);
    inserted.execute(&world.pool).await.unwrap();
}

#[test]
fn what_two_relays_tell_of_a_blocked_key_is_true_and_not_doubled() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Mark);
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let topic = topic_of(&aggregate_type);
        let setup = watched(setup);
        let relays = [Seen::start(&setup).await, Seen::start(&setup).await];
        let mut ledger = Ledger::default();
        let wrong = orders(2);
        for order in &wrong {
            bad(world, &aggregate_type, order).await;
        }
        eventually(SOON, "they are parked", async || {
            world
                .number("select count(*) from outbox_relay.parked where state = 'blocked'")
                .await
                == 2
        })
        .await;
        // what comes behind a refused row waits behind it
        let orders = orders(5);
        write(world, &outbox, &aggregate_type, &wrong, &mut ledger, 1..=3).await;
        write(world, &outbox, &aggregate_type, &orders, &mut ledger, 1..=8).await;
        // and what nobody has made a topic for waits in the table
        let waiting = world.aggregate_type("Waiting");
        write(
            world,
            &outbox,
            &waiting,
            &orders[..1],
            &mut Ledger::default(),
            1..=7,
        )
        .await;
        eventually(SOON, "the rest is published", async || {
            outbox.pending(world).await == 7 && outbox.published(world).await == 40
        })
        .await;
        for seen in &relays {
            seen.until("the parked rows are told", |status| {
                let outbox = &status["outboxes"][0];
                let parked = &outbox["parked_rows"]["rows"];
                outbox["backlog"]["events"] == 7 && parked[0]["rows"] == 6 && parked[1]["rows"] == 2
            })
            .await;
            let status = seen.outbox().await;
            let rows = &status["parked_rows"]["rows"];
            let told: Vec<_> = (rows.as_array().unwrap().iter())
                .map(|row| {
                    (
                        row["state"].as_str(),
                        row["reason"].as_str(),
                        whole(&row["rows"]),
                    )
                })
                .collect();
            assert_eq!(
                told,
                [
                    (Some("behind"), None, 6),
                    (Some("blocked"), Some("illegal_topic"), 2)
                ]
            );
            assert_eq!(status["parked_rows"]["blocked_keys"], 2);
            let metrics = seen.metrics().await;
            // the same from each
            assert_eq!(metrics.one("backlog_events", &[]), 7.0);
            assert_eq!(metrics.one("blocked_keys", &[]), 2.0);
            let blocked = ["state=\"blocked\"", "reason=\"illegal_topic\""];
            assert_eq!(metrics.one("parked_rows", &blocked), 2.0);
            assert_eq!(metrics.one("parked_rows", &["state=\"behind\""]), 6.0);
            assert_age_is_true(world, seen).await;
            if let Some(page) = shown(world, seen).await {
                assert_eq!(
                    (page.value("backlog"), page.value("blocked_keys")),
                    ("7", "2")
                );
                assert!(page.shows("illegal_topic"));
            }
            assert_eq!(seen.health().await, (true, true));
            // no key and no id in what is told to machines
            for secret in wrong.iter().chain(&orders) {
                assert!(!metrics.0.contains(secret.as_str()));
            }
        }
        // and the views say so too
        let view =
            "select pending::text || ' ' || pending_is_exact || ' ' || blocked_keys || ' ' ||
                           blocked || ' ' || behind || ' ' || dead || ' ' || lanes ||
                           ' ' || (oldest_pending_age between interval '0' and interval '1 hour')
                      from outbox_relay.status where outbox = 'public.outbox'";
        let view: String = sqlx::query_scalar(view)
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert_eq!(view, "7 true 2 2 6 0 16 true");
        // what each did adds up
        let sums = async || {
            let mut sums = [0.0; 4];
            for seen in &relays {
                let metrics = seen.metrics().await;
                let labels = [&*format!("topic=\"{topic}\"")];
                sums[0] += metrics.sum("events_published_total", &labels);
                sums[1] += metrics.sum("rows_parked_total", &["reason=\"illegal_topic\""]);
                sums[2] += metrics.sum("rows_behind_total", &[]);
                sums[3] += metrics.sum("publish_errors_total", &["class=\"illegal_topic\""]);
            }
            sums
        };
        // they count after the commit
        eventually(SOON, "the sums are right", async || {
            sums().await == [40.0, 2.0, 6.0, 2.0]
        })
        .await;

        let skip = ["parked", "skip", "--state", "blocked", "--yes"];
        let skipped = world.relay(&[&outbox]).spawn(&skip).wait_exit(SOON).await;
        assert!(skipped.success());
        for seen in &relays {
            seen.until("nothing is blocked any more", |status| {
                let parked = &status["outboxes"][0]["parked_rows"];
                let dead = &parked["rows"][0];
                parked["blocked_keys"] == 0 && dead["state"] == "skipped" && dead["rows"] == 2
            })
            .await;
        }
        eventually(SOON, "what was behind them is published", async || {
            world
                .number("select count(*) from outbox_relay.parked where state <> 'dead'")
                .await
                == 0
        })
        .await;
        for seen in relays {
            seen.relay.stop().await;
        }
        world.check(&ledger).await.assert_clean(0);
    });
}

#[test]
fn a_table_that_is_renamed_away_is_told_with_what_to_do_about_it() {
    support::run(async |world| {
        let outbox = Outbox::new("outbox", Layout::Native, OnPublished::Delete);
        let (setup, aggregate_type) = outbox.prepare(world).await;
        world.expect_errors("the outbox cannot be read or settled");
        let seen = Seen::start(&watched(setup)).await;
        let (orders, mut ledger) = (orders(3), Ledger::default());
        write(world, &outbox, &aggregate_type, &orders, &mut ledger, 1..=2).await;
        outbox.wait_drained(world, SOON).await;
        let says = |text: &serde_json::Value, words: &str| {
            text.as_str().is_some_and(|text| text.contains(words))
        };

        world
            .execute("alter table outbox rename to elsewhere")
            .await;
        // both: what to do, and what Postgres answered
        seen.until("what is missing is told", |status| {
            let outbox = &status["outboxes"][0];
            let failed = status["errors"].as_array().unwrap().iter().any(|error| {
                error["lasts"] == true && says(&error["text"], "cannot be read or settled")
            });
            says(&outbox["state_text"], "does not exist yet")
                && says(&outbox["database"]["why"], "does not exist")
                && failed
        })
        .await;
        world
            .execute("alter table elsewhere rename to outbox")
            .await;
        write(world, &outbox, &aggregate_type, &orders, &mut ledger, 3..=4).await;
        outbox.wait_drained(world, SOON).await;
        seen.until("all is told as well again", |status| {
            let outbox = &status["outboxes"][0];
            outbox["state"] == "serving" && outbox["database"]["reachable"] == true
        })
        .await;
        seen.relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}
