//! The relay of an outbox: rows a service commits in Postgres arrive in Kafka, in order, none lost.
//!
//! ```text
//!   Postgres                          the relay                               Kafka
//!  ┌──────────┐  next   ┌───────┐   ┌───────┐   ┌────────┐  publish  ┌──────────────┐
//!  │  outbox  │ ──────► │ Event │ ─►│ Route │ ─►│ Record │ ────────► │ order-events │
//!  │          │         └───────┘   └───────┘   └────────┘           └──────┬───────┘
//!  │  parked  │  settle ┌─────────┐        ┌─────────┐     one for each      │
//!  │          │ ◄────── │ Verdict │ ◄───── │ Outcome │ ◄─────────────────────┘
//!  └──────────┘         └─────────┘        └─────────┘
//! ```
//!
//! One worker does this over and over ([`relay::Lane`]), one batch at a time, with a connection and
//! producers of its own. A batch is one transaction: take some *lanes*, claim their oldest rows,
//! publish, wait for every acknowledgement, settle, commit.
//!
//! What is promised, and the file that keeps it:
//!
//! | promise | kept by |
//! |---|---|
//! | no loss: a row is marked only after Kafka acknowledged it at a real offset | [`settle`], `sink/outcome.rs` |
//! | no phantom: a row rolled back is never seen | Postgres: the claim reads committed rows |
//! | order of an aggregate, whatever dies | `source/polling.rs` (lanes), `sink/producer.rs`, [`settle`] |
//! | one key, one partition, the Java client's | `sink/settings.rs` |
//! | parked rows are never silent, nor lost | `source/parked.rs`, `relay/dead_letters.rs` |
//! | few duplicates, none on a graceful stop | [`relay`] (the drain), `source/polling.rs` |
//! | every copy byte-equal | [`record`], `source/decode.rs` |
//! | a row that cannot be published delays at most its aggregate | [`settle`], `source/sql.rs` (parked) |
//! | what is told agrees with what is so | `relay/known.rs`, `source/sampling.rs` |
//! | no event that its contract does not allow, where there are contracts | [`contract`] |
//! | bounded memory, connections, transactions | [`config::Relay`], `source/lanes.rs` |
//!
//! Files at the top are pure: no await, clock, socket or environment. Folders touch the world. Only
//! `source/` knows sqlx, only `sink/` knows rdkafka; the demo, which is a service and a consumer of
//! its own, knows both. `consumer/` is no part of the relay: a kit for those who read the topics and
//! keep what they make of them in Postgres.

pub mod config;

// ── the flow, in its order ──

pub mod source;

pub mod event;

pub mod route;

pub mod rewrite;

pub mod record;

pub mod headers;

pub mod connect;

pub mod expanded;

pub mod cloudevents;

pub mod contract;

pub mod partition;

pub mod sink;

pub mod outcome;

pub mod settle;

pub mod dead_letter;

pub mod backoff;

pub mod certificate;

pub mod finding;

pub mod rate;

// ── what runs it ──

pub mod relay;

pub mod check;

pub mod ops;

pub mod cli;

#[cfg(feature = "demo")]
pub mod demo;

// ── for the other end ──

#[cfg(feature = "consumer")]
pub mod consumer;
