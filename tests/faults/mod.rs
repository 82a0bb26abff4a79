//! The fault matrix: each test breaks something under load, heals it, and holds what is in Kafka
//! then against what the writers wrote. docs/faults.md says which fault has which test.

mod backlog;
mod clocks;
mod connections;
mod flush;
mod mistakes;
mod pooler;
mod postgres;
mod postgres_scene;
mod processes;
mod standby;
mod tables;
mod upgrade;
