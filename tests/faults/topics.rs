//! Topics that are missing, deleted, made again and given more partitions; rights that are taken away
//! and given back.

use std::collections::HashSet;
use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewPartitions};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::operating::{command, ends};
use crate::support::checker::{Fate, Written};
use crate::support::guarded::{Guarded, PASSWORD, USER};
use crate::support::outbox::{Layout, OnPublished, Outbox, parked};
use crate::support::servers::say;
use crate::support::writers::{Ledger, Load, one};
use crate::support::{self, World, eventually, topic_of};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_missing_topic_delays_its_own_events_until_it_is_there() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let [missing, well] = ["Missing", "Well"].map(|name| world.aggregate_type(name));
        world.kafka.create_topic(&topic_of(&well), 4, &[]).await;
        let relay = setup.run();
        let mut ledger = Ledger::default();
        let order = Uuid::new_v4().to_string();
        for n in 1..=20 {
            ledger.push(one(world, &outbox, &missing, &order, n).await);
            ledger.push(one(world, &outbox, &well, &order, n).await);
            eventually(SOON, "the other topic flows", async || {
                outbox.pending(world).await == n
            })
            .await;
        }
        relay.wait_line("kafka-topics.sh", SOON).await;
        assert_eq!(parked(world).await, 0, "no row is at fault");
        world.kafka.create_topic(&topic_of(&missing), 4, &[]).await;
        let made = Instant::now();
        outbox.wait_drained(world, SOON).await;
        say(&format!("flows {:.1?} after it was made", made.elapsed()));
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}

/// What was in a topic is gone with it: nobody can say anything of that. What is written once the
/// deletion is known arrives in the new topic, all of it and in order.
#[test]
fn a_topic_may_be_deleted_and_made_again() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let [unlucky, well] = ["Unlucky", "Well"].map(|name| world.aggregate_type(name));
        let topic = topic_of(&unlucky);
        world.kafka.create_topic(&topic, 4, &[]).await;
        world.kafka.create_topic(&topic_of(&well), 4, &[]).await;
        let mut relay = setup.run();
        let mut ledger = Ledger::default();
        let orders: Vec<String> = (0..10).map(|_| Uuid::new_v4().to_string()).collect();
        let mut gone = Vec::new();
        for order in &orders {
            gone.push(one(world, &outbox, &unlucky, order, 1).await);
            ledger.push(one(world, &outbox, &well, order, 1).await);
        }
        outbox.wait_drained(world, SOON).await;
        world.kafka.delete_topics(&[&topic]).await;
        let name = topic.clone();
        eventually(SOON, "it is deleted", async || {
            let name = name.clone();
            world.kafka.topics(move |it| it == name).await.is_empty()
        })
        .await;
        for n in 2..=4 {
            for order in &orders {
                ledger.push(one(world, &outbox, &unlucky, order, n).await);
                ledger.push(one(world, &outbox, &well, order, n).await);
            }
        }
        let waiting = i64::try_from(3 * orders.len()).unwrap();
        eventually(SOON, "the other topic flows", async || {
            outbox.pending(world).await == waiting
        })
        .await;
        relay.wait_line("does not exist", SOON).await;
        assert_eq!(parked(world).await, 0, "no row is at fault");
        world.kafka.create_topic(&topic, 4, &[]).await;
        let made = Instant::now();
        outbox.wait_drained(world, SOON).await;
        say(&format!(
            "flows {:.1?} after it was made again",
            made.elapsed()
        ));
        assert!(relay.is_running());
        relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
        let ids: HashSet<Uuid> = gone.iter().map(|event| event.id).collect();
        let records = world.kafka.read_all(&topic).await;
        let old = |id: &Uuid| records.iter().any(|it| names(it, *id));
        assert!(
            !ids.iter().any(old),
            "what was acknowledged is not sent again"
        );
    });
}

#[test]
fn the_right_to_write_may_be_revoked_and_given_back() {
    support::run(async |world| {
        let guarded = match Guarded::start().await {
            Ok(guarded) => guarded,
            Err(why) => return support::skip(&why),
        };
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world
            .relay(&[&outbox])
            .set("kafka", "brokers", &format!("\"{}\"", guarded.bootstrap()))
            .set(
                "kafka.properties",
                "\"security.protocol\"",
                "\"sasl_plaintext\"",
            )
            .set("kafka.properties", "\"sasl.mechanism\"", "\"PLAIN\"")
            .set(
                "kafka.properties",
                "\"sasl.username\"",
                &format!("\"{USER}\""),
            )
            .set(
                "kafka.properties",
                "\"sasl.password\"",
                &format!("\"{PASSWORD}\""),
            );
        setup.migrate().await;
        let types = ["Denied", "Well"].map(|name| world.aggregate_type(name));
        let [denied, well] = [&types[0], &types[1]];
        let topics = [denied, well].map(|it| topic_of(it));
        for topic in &topics {
            guarded.kafka().create_topic(topic, 4, &[]).await;
            guarded.grant(topic).await;
        }
        let mut relay = setup.run();
        let mut ledger = Ledger::default();
        let orders: Vec<String> = (0..10).map(|_| Uuid::new_v4().to_string()).collect();
        let mut n = 0;
        let mut write = async || {
            n += 1;
            for order in &orders {
                for aggregate_type in [denied, well] {
                    ledger.push(one(world, &outbox, aggregate_type, order, n).await);
                }
            }
        };
        write().await;
        outbox.wait_drained(world, SOON).await;
        // all that it was given is to write: it says once of each topic what it does without
        let told = "the relay may not read the settings of the topic";
        eventually(SOON, "it is told of both", async || {
            let lines = relay.lines();
            topics.iter().all(|topic| {
                let of = |line: &&String| line.contains(told) && line.contains(topic.as_str());
                lines.iter().filter(of).count() == 1
            })
        })
        .await;
        let line = relay.wait_line(told, SOON).await;
        assert!(
            line.contains("--operation DescribeConfigs") && line.contains("WARN"),
            "{line}"
        );

        guarded.revoke(&topics[0]).await;
        for round in 1..=3 {
            write().await;
            let waiting = i64::try_from(round * orders.len()).unwrap();
            eventually(SOON, "the other topic flows", async || {
                outbox.pending(world).await == waiting
            })
            .await;
        }
        relay.wait_line("may not be written", SOON).await;
        relay.wait_line("kafka-acls.sh", SOON).await;
        guarded.grant(&topics[0]).await;
        let granted = Instant::now();
        outbox.wait_drained(world, SOON).await;
        say(&format!(
            "flows {:.1?} after it was granted",
            granted.elapsed()
        ));

        // who may write nothing at all is not even given a producer's id
        for topic in &topics {
            guarded.revoke(topic).await;
        }
        write().await;
        sleep(Duration::from_secs(3)).await;
        let waiting = i64::try_from(2 * orders.len()).unwrap();
        assert_eq!(outbox.pending(world).await, waiting);
        assert_eq!(parked(world).await, 0, "no row is at fault");
        for topic in &topics {
            guarded.grant(topic).await;
        }
        let granted = Instant::now();
        outbox.wait_drained(world, SOON).await;
        say(&format!(
            "flows {:.1?} after all was granted",
            granted.elapsed()
        ));
        assert!(relay.is_running());
        assert_eq!(
            relay
                .lines()
                .iter()
                .filter(|line| line.contains(told))
                .count(),
            2,
            "once each"
        );
        relay.stop().await;
        assert_eq!(parked(world).await, 0);
        let report = world.check_in(&guarded.kafka(), &ledger).await;
        report.assert_clean(2 * orders.len());
    });
}

/// Whoever inserts a row chooses its topic: among those that the config lists, and no others that the
/// relay's credentials reach.
#[test]
fn rows_reach_no_topic_that_is_not_allowed() {
    support::run(async |world| {
        let mut outbox = Outbox::new("outbox", Layout::Native, OnPublished::Mark);
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let (usual, billing, secret) = (
            topic_of(&aggregate_type),
            world.topic("billing"),
            world.topic("secret"),
        );
        for topic in [&billing, &secret] {
            world.kafka.create_topic(topic, 1, &[]).await;
        }
        let row = async |key: &str, topic: Option<&str>| {
            sqlx::query(
                "insert into outbox (aggregate_id, aggregate_type, event_type, topic)
                 values ($1, $2, 'Paid', $3)",
            )
            .bind(key)
            .bind(&aggregate_type)
            .bind(topic)
            .execute(&world.pool)
            .await
            .unwrap();
        };
        row("a", None).await;
        row("b", Some(&billing)).await;
        row("c", Some(&secret)).await;
        row("c", None).await;
        let (_, said) = command(&setup, &["check"]).await;
        let line = said.lines().find(|line| line.contains("topics_allowed"));
        let line = line.unwrap_or_else(|| panic!("no warning in {said}"));
        let listed =
            format!("topics_allowed = [\"*-events\", \"{billing}\", \"{secret}\"] in [[outbox]]");
        assert!(line.starts_with("warn") && line.contains(&listed), "{line}");

        outbox.config = format!("topics_allowed = [\"*-events\", \"{billing}\"]");
        let setup = world.relay(&[&outbox]);
        let (code, said) = command(&setup, &["check"]).await;
        assert!(
            code == Some(1) && said.contains("not among topics_allowed"),
            "{said}"
        );
        assert!(!said.contains("has no list"), "{said}");
        ends(&setup, &["run", "--until-empty"], 75).await;
        let count = async |topic: &str| world.kafka.count(topic).await;
        assert_eq!((count(&usual).await, count(&billing).await), (1, 1));
        let reasons: Vec<(String, String, String)> = sqlx::query_as(
            "select state, coalesce(reason_class, ''), coalesce(reason, '')
               from outbox_relay.parked order by seq",
        )
        .fetch_all(&world.pool)
        .await
        .unwrap();
        let states: Vec<_> = reasons
            .iter()
            .map(|(state, class, _)| (&**state, &**class))
            .collect();
        assert_eq!(states, [("blocked", "topic_not_allowed"), ("behind", "")]);
        assert!(reasons[0].2.contains(&secret), "{reasons:?}");
        // a retry does not get it past the list, until that has it
        ends(&setup, &["parked", "retry", "--yes"], 0).await;
        ends(&setup, &["run", "--until-empty"], 75).await;
        assert_eq!((count(&secret).await, parked(world).await), (0, 2));
        outbox.config = format!("topics_allowed = [\"*-events\", \"{billing}\", \"{secret}\"]");
        let setup = world.relay(&[&outbox]);
        ends(&setup, &["parked", "retry", "--yes"], 0).await;
        ends(&setup, &["run", "--until-empty"], 0).await;
        assert_eq!((count(&secret).await, count(&usual).await), (1, 2));

        // one that no row could pass is a mistake, and said at once
        outbox.config = format!("topic = \"orders\"\ntopics_allowed = [\"{billing}\"]");
        let said = ends(&world.relay(&[&outbox]), &["run"], 78).await;
        assert!(said.contains("every row would be parked"), "{said}");
    });
}

fn names(record: &support::kafka::Record, id: Uuid) -> bool {
    let id = id.to_string().into_bytes();
    let is = |header: &support::kafka::Header| header.1.as_ref() == Some(&id);
    record.headers.iter().any(is)
}

/// The order promise presumes that a topic keeps its partition count. When it grows all the same, no
/// event is lost or sent twice, and those of a partition keep their order.
#[test]
fn a_topic_that_is_given_partitions_loses_nothing() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let mut load = Load::of(&world.aggregate_type("Order"));
        load.events = usize::MAX;
        load.rate = Some(200.0);
        let topic = topic_of(&load.aggregate_type);
        world.kafka.create_topic(&topic, 2, &[]).await;
        let writing = load.start(world, &outbox).await;
        let relay = setup.run();
        flows(world, &outbox).await;
        let admin = world.kafka.admin();
        let more = NewPartitions::new(&topic, 8);
        let grown = admin.create_partitions([&more], &AdminOptions::new()).await;
        for result in grown.expect("the admin client answers") {
            result.expect("partitions can be added");
        }
        flows(world, &outbox).await;
        relay.stop().await;
        // one that starts now uses them at once
        let relay = setup.run();
        flows(world, &outbox).await;
        let ledger = writing.stop().await;
        outbox.wait_drained(world, SOON).await;
        relay.stop().await;
        assert_eq!(parked(world).await, 0);
        let report = world.check(&ledger).await;
        assert!(
            report.lost.is_empty() && report.phantom.is_empty() && report.unequal.is_empty(),
            "{report}"
        );
        assert_eq!(report.duplicates, 0, "{report}");
        assert!(
            !report.misplaced.is_empty(),
            "some were there before: {report}"
        );
        let events = ledger.resolved(&world.pool).await;
        let records = world.kafka.read_all(&topic).await;
        let in_order = |partition: i32, key: &[u8]| {
            let records = records.iter().filter(|it| it.partition == partition);
            let own = records.filter(|it| it.key.as_deref() == Some(key));
            let n = own.map(|record| count_of(&events, record));
            n.collect::<Vec<_>>().is_sorted()
        };
        for record in &records {
            let key = record.key.as_deref().unwrap_or_default();
            assert!(in_order(record.partition, key));
        }
    });
}

fn count_of(events: &[Written], record: &support::kafka::Record) -> i64 {
    let event = events.iter().find(|event| names(record, event.id));
    event
        .filter(|event| event.fate == Fate::Committed)
        .unwrap()
        .n
}

async fn flows(world: &World, outbox: &Outbox) {
    let before = outbox.published(world).await;
    eventually(SOON, "events flow", async || {
        outbox.published(world).await > before + 100
    })
    .await;
}
