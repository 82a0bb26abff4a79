//! `uninstall`: what `migrate` made goes, what is the service's stays.

use crate::migrate::shape;
use crate::operating::{SOON, audited, ends};
use crate::support;
use crate::support::outbox::Outbox;
use crate::support::writers::{Ledger, one};

#[test]
fn what_migrate_made_goes_and_the_table_is_as_it_was() {
    support::run(async |world| {
        let mut outbox = Outbox::classic();
        outbox.config = "notify = true".to_owned();
        outbox.create(world).await;
        let before = shape(world).await;
        let aggregate_type = world.aggregate_with_topic("Order", 1).await;
        let order = uuid::Uuid::new_v4().to_string();
        let mut ledger = Ledger::default();
        ledger.push(one(world, &outbox, &aggregate_type, &order, 1).await);
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        let migrated = shape(world).await;
        assert_ne!(migrated, before);

        let relay = setup.run();
        outbox.wait_drained(world, SOON).await;
        let said = ends(&setup, &["uninstall", "--yes"], 1).await;
        assert!(said.contains("stop them first"), "{said}");
        relay.stop().await;
        world
            .execute(
                "insert into outbox_relay.parked (outbox, state, seq, event_id, aggregate_type, event_type, hash)
                 values ('public.outbox', 'dead', 1, gen_random_uuid(), 'Order', 'OrderChanged', 0)",
            )
            .await;
        let said = ends(&setup, &["uninstall", "--yes"], 1).await;
        assert!(said.contains("1 rows are parked"), "{said}");
        let said = ends(&setup, &["uninstall", "--drop-parked"], 1).await;
        for part in [
            "outbox_outbox_relay_16",
            "outbox_relay_notify",
            "16 lanes",
            "seq stays",
        ] {
            assert!(said.contains(part), "{part} in: {said}");
        }
        assert_eq!(shape(world).await, migrated, "nothing was changed");

        ends(
            &setup,
            &["uninstall", "--drop-parked", "--drop-seq", "--yes"],
            0,
        )
        .await;
        assert_eq!(columns(&shape(world).await), columns(&before));
        assert_eq!(world.number("select count(*) from outbox").await, 1);
        assert_eq!(audited(world, "uninstall").await, (1, 1));
        let left = "select (select count(*) from outbox_relay.lane) + (select count(*) from outbox_relay.parked)
                         + (select count(*) from outbox_relay.outbox where kafka_cluster_id is not null)";
        assert_eq!(world.number(left).await, 0);

        // and again from the beginning; this time seq stays
        ledger.push(one(world, &outbox, &aggregate_type, &order, 2).await);
        setup.migrate().await;
        assert!(setup.until_empty(SOON).await.success());
        world
            .execute("create view reported as select parked_id from outbox_relay.parked")
            .await;
        let said = ends(&setup, &["uninstall", "--all", "--yes"], 1).await;
        assert!(said.contains("the view public.reported"), "{said}");
        world.execute("drop view reported").await;
        ends(&setup, &["uninstall", "--all", "--yes"], 0).await;
        let schema = "select count(*) from pg_namespace where nspname = 'outbox_relay'";
        assert_eq!(world.number(schema).await, 0);
        assert_eq!(world.number("select count(seq) from outbox").await, 1);
        let ours = "select (select count(*) from pg_indexes where tablename = 'outbox' and indexname like '%relay%')
                         + (select count(*) from pg_trigger where tgname like '%relay%')";
        assert_eq!(
            world.number(ours).await,
            0,
            "neither index nor trigger is left"
        );
        let said = ends(&setup, &["uninstall", "--yes"], 78).await;
        assert!(said.contains("outbox-relay migrate"), "{said}");
        // writers go on
        ledger.push(one(world, &outbox, &aggregate_type, &order, 3).await);
        setup.migrate().await;
        assert!(setup.until_empty(SOON).await.success());
        world.check(&ledger).await.assert_clean(0);
    });
}

/// The shape without the places of columns that were dropped.
fn columns(shape: &str) -> (Vec<&str>, &str) {
    let (columns, rest) = shape.split_once(';').unwrap_or((shape, ""));
    let columns = columns.split(',').map(str::trim);
    (
        columns.filter(|it| !it.contains("pg.dropped")).collect(),
        rest,
    )
}
