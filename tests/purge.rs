//! `purge`: rows that were published long ago go.

use crate::operating::{audited, ends, native};
use crate::support::{self, World};

async fn insert(world: &World, rows: u32, published_at: &str) {
    world
        .execute(&format!(
            "insert into outbox (aggregate_id, aggregate_type, event_type, payload, published_at)
             select 'a', 'Order', 'OrderChanged', '{{}}', {published_at} from generate_series(1, {rows})"
        ))
        .await;
}

#[test]
fn old_marked_rows_go_in_batches_and_no_other() {
    // more than a batch
    const OLD: u32 = 12_000;
    support::run(async |world| {
        let outbox = native("outbox");
        outbox.create(world).await;
        let setup = world.relay(&[&outbox]);
        setup.migrate().await;
        insert(world, OLD, "now() - interval '2 hours'").await;
        insert(world, 3, "now()").await;
        insert(world, 2, "null").await;
        ends(&setup, &["purge", "--yes"], 64).await;
        ends(&setup, &["purge", "--older-than", "long", "--yes"], 64).await;
        let said = ends(&setup, &["purge", "--older-than", "1h"], 1).await;
        assert!(said.contains("12000 rows"), "{said}");
        let count = "select count(*) from outbox";
        assert_eq!(world.number(count).await, i64::from(OLD) + 5);
        let said = ends(&setup, &["purge", "--older-than", "1h", "--yes"], 0).await;
        assert!(said.contains("12000 rows were deleted"), "{said}");
        assert_eq!(world.number(count).await, 5);
        assert_eq!(outbox.pending(world).await, 2);
        assert_eq!(audited(world, "purge").await, (1, i64::from(OLD)));
        let said = ends(&setup, &["purge", "--older-than", "1h", "--yes"], 0).await;
        assert!(said.contains(": 0 rows"), "{said}");
    });
}
