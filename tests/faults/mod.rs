//! The fault matrix: each test breaks something under load, heals it, and holds what is in Kafka
//! then against what the writers wrote. docs/faults.md says which fault has which test.

mod backlog;
mod brokers;
pub(crate) mod clocks;
mod connections;
mod flush;
mod hostile;
mod kafka_scene;
mod links_kafka;
mod logs_kafka;
mod mistakes;
mod partitions;
mod pooler;
mod postgres;
mod postgres_scene;
mod processes;
mod standby;
mod tables;
mod topics;
mod upgrade;
