//! The kit for consumers (feature `consumer`), on a real Postgres and behind a real relay.

use std::time::Duration;

use outbox_relay::consumer::{Arrival, Consumer, Seen, Token, Waited, create_tables};
use sqlx::AssertSqlSafe;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::operating::{SOON, ends};
use crate::support::kafka::Record;
use crate::support::outbox::{Layout, OnPublished, Outbox};
use crate::support::{self, World, topic_of};

const INVOICING: Consumer = Consumer::new("invoicing");
const MAILING: Consumer = Consumer::new("mailing");

/// Makes the tables of the kit, twice: services start more than once.
async fn prepared(world: &World) {
    for _ in 0..2 {
        let mut connection = world.pool.acquire().await.unwrap();
        create_tables(&mut connection).await.unwrap();
    }
}

/// An arrival in one topic.
fn arrival(id: u128, key: &str, seq: i64) -> Arrival<'_> {
    Arrival {
        event_id: Uuid::from_u128(id),
        topic: "order-events",
        key,
        seq,
    }
}

/// Takes an arrival in a transaction of its own.
async fn take(world: &World, consumer: Consumer, arrival: &Arrival<'_>) -> Seen {
    let mut transaction = world.pool.begin().await.unwrap();
    let seen = consumer.take(&mut transaction, arrival).await.unwrap();
    transaction.commit().await.unwrap();
    seen
}

/// A token of the order `key`.
fn place(key: &str, seq: i64) -> Token {
    Token::Seq {
        topic: "order-events".to_owned(),
        key: key.to_owned(),
        seq,
    }
}

async fn passed(world: &World, consumer: Consumer, token: &Token) -> bool {
    let mut connection = world.pool.acquire().await.unwrap();
    consumer.passed(&mut connection, token).await.unwrap()
}

#[test]
fn each_consumer_takes_an_event_once_and_tells_what_is_late_from_a_repeat() {
    support::run(async |world| {
        prepared(world).await;
        let told = async |arrivals: &[Arrival<'_>]| {
            let mut told = Vec::new();
            for arrival in arrivals {
                told.push(take(world, INVOICING, arrival).await);
            }
            told
        };
        // numbers of one aggregate have gaps by nature; 7 comes after 9, and each comes again
        let first = [arrival(1, "a", 5), arrival(1, "a", 5), arrival(3, "a", 9)];
        assert_eq!(told(&first).await, [Seen::New, Seen::Repeat, Seen::New]);
        let then = [arrival(2, "a", 7), arrival(2, "a", 7), arrival(3, "a", 9)];
        assert_eq!(told(&then).await, [Seen::Late, Seen::Repeat, Seen::Repeat]);
        // what was late has not set it back
        assert_eq!(told(&[arrival(4, "a", 8)]).await, [Seen::Late]);
        assert!(passed(world, INVOICING, &place("a", 9)).await);

        // another aggregate, another topic and another consumer begin anew
        assert_eq!(take(world, INVOICING, &arrival(5, "b", 1)).await, Seen::New);
        let elsewhere = Arrival {
            topic: "payment-events",
            ..arrival(6, "a", 1)
        };
        assert_eq!(take(world, INVOICING, &elsewhere).await, Seen::New);
        assert_eq!(take(world, MAILING, &arrival(1, "a", 5)).await, Seen::New);
    });
}

#[test]
fn a_mark_lives_and_dies_with_the_transaction_of_the_effect() {
    support::run(async |world| {
        prepared(world).await;
        let (id, other) = (Uuid::from_u128(1), arrival(2, "a", 3));
        let mut transaction = world.pool.begin().await.unwrap();
        assert!(INVOICING.fresh(&mut transaction, id).await.unwrap());
        assert!(!INVOICING.fresh(&mut transaction, id).await.unwrap());
        assert_eq!(
            INVOICING.take(&mut transaction, &other).await.unwrap(),
            Seen::New
        );
        transaction.rollback().await.unwrap();
        assert!(!passed(world, INVOICING, &place("a", 3)).await);
        assert!(!passed(world, INVOICING, &Token::Event(id)).await);

        // a second instance with the same event waits for the first, whichever way that ends
        for commits in [false, true] {
            let mut first = world.pool.begin().await.unwrap();
            assert!(INVOICING.fresh(&mut first, id).await.unwrap());
            let pool = world.pool.clone();
            let mut second = JoinSet::new();
            second.spawn(async move {
                let mut second = pool.begin().await.unwrap();
                let fresh = INVOICING.fresh(&mut second, id).await.unwrap();
                second.rollback().await.unwrap();
                fresh
            });
            let early = timeout(Duration::from_millis(200), second.join_next()).await;
            assert!(early.is_err(), "the second does not wait");
            match commits {
                true => first.commit().await.unwrap(),
                false => first.rollback().await.unwrap(),
            }
            let fresh = second.join_next().await.unwrap().unwrap();
            assert_eq!(fresh, !commits);
        }
    });
}

#[test]
fn a_reader_waits_until_the_projection_has_passed_and_no_longer_than_its_budget() {
    const BUDGET: Duration = Duration::from_millis(300);
    support::run(async |world| {
        prepared(world).await;
        take(world, INVOICING, &arrival(1, "a", 5)).await;
        let waits = async |token: &Token, budget| {
            let began = Instant::now();
            let waited = INVOICING.wait_for(&world.pool, token, budget).await;
            (waited.unwrap(), began.elapsed())
        };
        // what has been passed is not waited for, whatever the budget
        for token in [
            place("a", 5),
            place("a", 4),
            Token::Event(Uuid::from_u128(1)),
        ] {
            assert_eq!(waits(&token, Duration::ZERO).await.0, Waited::Passed);
        }
        // another aggregate's, another topic's and another projection's progress are nobody's
        let others = [
            place("a", 6),
            place("b", 1),
            Token::Event(Uuid::from_u128(2)),
            Token::Seq {
                topic: "payment-events".to_owned(),
                key: "a".to_owned(),
                seq: 5,
            },
        ];
        for token in others {
            let (waited, took) = waits(&token, BUDGET).await;
            assert_eq!(waited, Waited::TimedOut, "{token:?}");
            assert!(took >= BUDGET, "{took:?}");
            assert!(took < BUDGET * 10, "{took:?}");
        }
        assert!(!passed(world, MAILING, &place("a", 5)).await);

        // a projection that gets there in time
        let token = place("a", 6);
        let (waited, ()) = tokio::join!(waits(&token, SOON), async {
            sleep(BUDGET).await;
            take(world, INVOICING, &arrival(2, "a", 6)).await;
        });
        assert_eq!(waited.0, Waited::Passed);
        assert!(waited.1 >= BUDGET, "before it was there: {waited:?}");
        assert!(waited.1 < SOON / 4, "{waited:?}");
    });
}

#[test]
fn old_marks_are_forgotten_of_one_consumer_and_some_at_a_time() {
    support::run(async |world| {
        prepared(world).await;
        for id in 1..=6 {
            take(world, INVOICING, &arrival(id, "a", 1)).await;
            take(world, MAILING, &arrival(id, "a", 1)).await;
        }
        world
            .execute(
                "update processed_events set processed_at = now() - interval '3 days'
                  where event_id <= '00000000-0000-0000-0000-000000000005'",
            )
            .await;
        let mut connection = world.pool.acquire().await.unwrap();
        let day = Duration::from_secs(24 * 3600);
        let mut gone = Vec::new();
        for age in [4 * day, 2 * day, 2 * day, 2 * day] {
            gone.push(INVOICING.forget(&mut connection, age, 3).await.unwrap());
        }
        assert_eq!(gone, [0, 3, 2, 0]);
        let left = "select count(*) from processed_events where consumer = ";
        assert_eq!(world.number(&format!("{left} 'invoicing'")).await, 1);
        assert_eq!(world.number(&format!("{left} 'mailing'")).await, 6);
    });
}

/// Inserts and commits an event; its token.
async fn emitted(world: &World, aggregate_type: &str, key: &str, topic: Option<&str>) -> i64 {
    sqlx::query_scalar(
        "insert into outbox (aggregate_type, aggregate_id, event_type, payload, topic)
         values ($1, $2, 'OrderPaid', '{}', $3)
         returning seq",
    )
    .bind(aggregate_type)
    .bind(key)
    .bind(topic)
    .fetch_one(&world.pool)
    .await
    .unwrap()
}

/// What the kit wants to know of a record.
fn of(record: &Record) -> (Uuid, &str, i64) {
    let text = |bytes: &Option<Vec<u8>>| String::from_utf8(bytes.clone().unwrap()).unwrap();
    let header = |name| {
        let found = record.headers.iter().find(|(header, _)| header == name);
        text(&found.unwrap().1)
    };
    (
        header("event_id").parse().unwrap(),
        std::str::from_utf8(record.key.as_ref().unwrap()).unwrap(),
        header("seq").parse().unwrap(),
    )
}

#[test]
fn a_row_that_others_were_let_pass_is_late_when_it_is_retried_and_replays_are_repeats() {
    support::run(async |world| {
        prepared(world).await;
        let mut outbox = Outbox::new("outbox", Layout::Native, OnPublished::Mark);
        outbox.config = "on_rejected = \"dead_letter\"\n\
             headers = { event_id = \"event_id\", event_type = \"event_type\", seq = \"seq\" }"
            .to_owned();
        let (setup, orders) = outbox.prepare(world).await;
        world.expect_errors("park");
        let topic = topic_of(&orders);
        let mut tokens = Vec::new();
        for nth in 1..=4 {
            let illegal = (nth == 2).then_some("no such/topic");
            tokens.push(emitted(world, &orders, "a", illegal).await);
            // the numbers between belong to somebody else
            emitted(world, &orders, "b", None).await;
        }
        setup.until_empty(SOON).await;

        let consume = async || {
            let mut told = Vec::new();
            for record in world.kafka.read_all(&topic).await {
                let (event_id, key, seq) = of(&record);
                let arrival = Arrival {
                    event_id,
                    topic: &topic,
                    key,
                    seq,
                };
                let seen = take(world, INVOICING, &arrival).await;
                if key == "a" {
                    told.push((seq, seen));
                }
            }
            told
        };
        let new = |nth: usize| (tokens[nth], Seen::New);
        assert_eq!(consume().await, [new(0), new(2), new(3)]);
        let token = |seq| Token::Seq {
            topic: topic.clone(),
            key: "a".to_owned(),
            seq,
        };
        let second: Uuid = sqlx::query_scalar(AssertSqlSafe(format!(
            "select event_id from outbox_relay.parked where seq = {}",
            tokens[1]
        )))
        .fetch_one(&world.pool)
        .await
        .unwrap();
        // as documented: the place has been passed, the event has not been
        assert!(passed(world, INVOICING, &token(tokens[1])).await);
        assert!(!passed(world, INVOICING, &Token::Event(second)).await);

        world
            .execute("update outbox_relay.parked set row_topic = null where topic is null")
            .await;
        ends(&setup, &["parked", "retry", "--state", "dead", "--yes"], 0).await;
        ends(&setup, &["replay", "--since", "1h", "--yes"], 0).await;
        assert!(setup.until_empty(SOON).await.success());
        let told = consume().await;
        let late: Vec<_> = told
            .iter()
            .filter(|(_, seen)| *seen == Seen::Late)
            .collect();
        assert_eq!(late, [&(tokens[1], Seen::Late)]);
        assert!(told.iter().all(|(_, seen)| *seen != Seen::New), "{told:?}");
        assert!(told.len() > 6, "some were replayed: {told:?}");
        assert!(passed(world, INVOICING, &Token::Event(second)).await);
    });
}
