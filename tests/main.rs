//! The promises, tested on a real Postgres and a real Kafka (`support::servers` says whose).
//! `OUTBOX_TEST_REQUIRE=1` fails what would be skipped where there are none.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod archive;
mod bounds;
mod check;
mod config_cli;
mod cost;
mod crash;
mod debezium;
mod delivery;
mod deploy;
mod faults;
mod fuzzed;
mod harness;
mod image;
mod input;
mod inspect;
mod layouts;
mod migrate;
mod operating;
mod ordering;
mod outage;
mod page;
mod parked;
mod parked_cost;
mod placement;
mod plans;
mod purge;
mod refusal;
mod reload;
mod replay;
mod roles;
mod secrets;
mod see;
mod settled;
mod start;
mod supply;
mod support;
mod tail;
mod tidy;
mod tls;
mod top;
mod traces;
mod uninstall;
mod upkeep;
