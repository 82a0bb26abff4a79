//! `check` tells what breaks an outbox without a word: events of one aggregate that are written at once, and
//! events that are written long before their commit.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

use crate::check::{Checked, check};
use crate::support::debian::Stage;
use crate::support::outbox::Outbox;
use crate::support::{self, World};

struct Service<'a> {
    world: &'a World,
    order: Uuid,
}

impl Service<'_> {
    async fn connect(&self, name: &str) -> PgConnection {
        let mut connection = PgConnection::connect(&self.world.database_url)
            .await
            .unwrap();
        run(
            &mut connection,
            &format!("set application_name = '{name}'; begin"),
        )
        .await;
        connection
    }

    async fn emit(&self, connection: &mut PgConnection) {
        let insert = format!(
            "insert into outbox (aggregate_id, aggregate_type, event_type, payload)
             values ('{}', 'Order', 'OrderChanged', '{{}}')",
            self.order
        );
        run(connection, &insert).await;
    }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection);
    done.await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn is_ok(checked: &Checked, item: &str) -> bool {
    (checked.lines.iter()).any(|line| line["item"] == item && line["level"] == "ok")
}

#[test]
fn writers_whose_numbers_contradict_their_order_are_told() {
    support::run(async |world| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        setup.grant().await;
        let mut service = Service {
            world,
            order: Uuid::new_v4(),
        };
        // one after the other, and each the first to write: nothing to tell
        for _ in 0..3 {
            let mut writer = service.connect("shop").await;
            service.emit(&mut writer).await;
            run(&mut writer, "commit").await;
        }
        let checked = check(&setup, &[]).await;
        assert!(is_ok(&checked, "order"), "{}", checked.all);
        assert!(
            checked.all.contains("2 pairs of pending events"),
            "{}",
            checked.all
        );

        service.order = Uuid::new_v4();
        let (mut early, mut late) = (service.connect("a").await, service.connect("b").await);
        run(
            &mut early,
            "insert into outbox_journal values (gen_random_uuid())",
        )
        .await;
        service.emit(&mut late).await;
        run(&mut late, "commit").await;
        service.emit(&mut early).await;
        run(&mut early, "commit").await;
        let checked = check(&setup, &[]).await;
        let (level, fix) = checked.found("order", "number 5 and the one before it");
        assert_eq!(
            (level, fix),
            ("warn", "alter system set track_commit_timestamp = on;"),
            "{}",
            checked.all
        );
        assert!(
            !checked.all.contains(&service.order.to_string()),
            "no key is told"
        );
    });
}

#[test]
fn with_times_of_commits_only_what_ran_at_once_is_told() {
    let stage = Stage::primary(&["track_commit_timestamp=on"]);
    support::run_on(stage, async |world, _| {
        let outbox = Outbox::classic();
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        setup.grant().await;
        let mut service = Service {
            world,
            order: Uuid::new_v4(),
        };
        // begun first, and waited
        let (mut early, mut late) = (service.connect("a").await, service.connect("b").await);
        run(
            &mut early,
            "insert into outbox_journal values (gen_random_uuid())",
        )
        .await;
        service.emit(&mut late).await;
        run(&mut late, "commit").await;
        service.emit(&mut early).await;
        run(&mut early, "commit").await;
        let checked = check(&setup, &[]).await;
        assert!(
            is_ok(&checked, "order") && is_ok(&checked, "late"),
            "{}",
            checked.all
        );

        // at once: the later number is committed first; and for long
        service.order = Uuid::new_v4();
        let (mut slow, mut quick) = (
            service.connect("slow").await,
            service.connect("quick").await,
        );
        service.emit(&mut slow).await;
        service.emit(&mut quick).await;
        run(&mut quick, "commit").await;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
            .fetch_one(&mut slow)
            .await
            .unwrap();
        sleep(Duration::from_millis(6_000)).await;
        // the relay's own role is not told until it may be
        let url = format!("\"{}\"", world.runner_url());
        let limited = world.relay(&[&outbox]).set("database", "url", &url);
        let checked = check(&limited, &[]).await;
        let (level, fix) = checked.found("late", "not told for how long");
        assert_eq!(level, "skip");
        world.execute(fix).await;
        let checked = check(&limited, &[]).await;
        let (level, fix) = checked.found("late", &format!("(slow), process {pid}"));
        assert_eq!(level, "warn");
        assert!(
            fix.contains(&format!("pg_terminate_backend({pid})")),
            "{fix}"
        );
        assert!(!checked.has("late", "(quick)"), "{}", checked.all);

        run(&mut slow, "commit").await;
        let checked = check(&limited, &[]).await;
        let (level, fix) = checked.found("order", "1 of 2 pairs");
        assert_eq!(level, "warn");
        assert!(fix.contains("lock the aggregate's row"), "{fix}");
        assert!(
            checked.has("order", "number 4 and the one"),
            "{}",
            checked.all
        );
        assert!(
            checked.has("late", "1 of the last 4 pending events"),
            "{}",
            checked.all
        );
        assert!(!checked.has("late", "is open for"), "{}", checked.all);
    });
}
