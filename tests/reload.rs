//! SIGHUP, and the limit on the rate that it can change.

use crate::operating::{SOON, native};
use crate::see::{Seen, watched};
use crate::support;
use crate::support::writers::{Ledger, one};

#[test]
fn a_backlog_is_drained_no_faster_than_allowed_until_a_new_config_says_so() {
    const ROWS: i64 = 300;
    support::run(async |world| {
        let mut outbox = native("outbox");
        outbox.config = "rows_per_second_max = 1".to_owned();
        let (setup, aggregate_type) = outbox.prepare(world).await;
        let mut ledger = Ledger::default();
        for n in 1..=ROWS {
            ledger.push(one(world, &outbox, &aggregate_type, "a", n).await);
        }
        let seen = Seen::start(&watched(setup.workers(2))).await;
        let relay = &seen.relay;
        let line = relay.wait_line("no faster than", SOON).await;
        assert!(line.contains("\"time_left\":\""), "{line}");
        // one a second, for a minute at the most, and what each worker had in hand
        let pending = outbox.pending(world).await;
        assert!(pending >= ROWS - 80, "{pending} of {ROWS} are left");
        assert!(pending < ROWS, "it flows");

        world.expect_errors("the old one stays in force");
        relay.reload(|text| text.replace("rows_per_second_max = 1", "rows_per_second_max = -1"));
        let line = relay.wait_line("the old one stays in force", SOON).await;
        assert!(line.contains("rows_per_second_max"), "{line}");
        assert!(outbox.pending(world).await > 0);
        relay.reload(|text| {
            let text = text.replace(
                "rows_per_second_max = -1",
                "rows_per_second_max = 0\nfreshness_budget = \"7s\"",
            );
            let text = text.replace("workers = 2", "workers = 3");
            format!("{text}\n[log]\nfilter = \"info,outbox_relay=debug\"")
        });
        for part in ["outbox.rows_per_second_max of public.outbox", "log.filter"] {
            let wanted = format!("\"key\":\"{part}");
            relay.wait_line(&wanted, SOON).await;
        }
        relay.wait_line("\"key\":\"relay.workers\"", SOON).await;
        outbox.wait_drained(world, SOON).await;
        seen.until("the new budget is in force", |status| {
            status["outboxes"][0]["freshness"][0]["budget_s"] == 7.0
        })
        .await;
        let lines = relay.lines();
        let line = lines
            .iter()
            .find(|line| line.contains("relay.workers"))
            .unwrap();
        assert!(line.contains("needs a restart"), "{line}");
        seen.relay.stop().await;
        world.check(&ledger).await.assert_clean(0);
    });
}
