//! SIGHUP, and the limit on the rate that it can change.

use serde_json::Value;

use crate::operating::{SOON, ends, native};
use crate::see::{Seen, watched};
use crate::support::writers::{Ledger, one};
use crate::support::{self, eventually};

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
        let setup = watched(setup.workers(2));
        let seen = Seen::start(&setup).await;
        let relay = &seen.relay;
        let line = relay.wait_line("no faster than", SOON).await;
        assert!(line.contains("\"time_left\":\""), "{line}");
        // one a second, for a minute at the most, and what each worker had in hand
        let pending = outbox.pending(world).await;
        assert!(pending >= ROWS - 80, "{pending} of {ROWS} are left");
        assert!(pending < ROWS, "it flows");

        // what is left at that rate, everywhere
        let limited = |status: &Value| status["outboxes"][0]["limited_for_s"].as_f64();
        let status = seen
            .until("the limit is told", |status| limited(status).is_some())
            .await;
        let of_it = &status["outboxes"][0];
        assert_eq!(of_it["rows_per_second_max"], 1);
        let (waiting, left) = (of_it["backlog"]["events"].as_f64(), limited(&status));
        assert!(
            left.is_none() || left == waiting,
            "one row a second: {of_it}"
        );
        eventually(SOON, "`status` says so", async || {
            let said = ends(&setup, &["status", "--relay", seen.address()], 0).await;
            said.contains("limited   to 1 rows/s by this relay: ")
        })
        .await;
        if let Some(page) = crate::page::shown(world, &seen).await {
            assert!(page.shows("held to 1/s: "), "on the page");
        }

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
        seen.until("the new budget is in force, and no limit", |status| {
            let outbox = &status["outboxes"][0];
            outbox["freshness"][0]["budget_s"] == 7.0
                && outbox["rows_per_second_max"].is_null()
                && outbox["limited_for_s"].is_null()
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
