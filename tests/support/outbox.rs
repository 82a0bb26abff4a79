//! Outbox tables as services make them.

use std::time::Duration;

use super::relay::Setup;
use super::{World, eventually};

/// Which columns the table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    Classic,
    Native,
    /// Debezium's columns; its config has the topic and the headers of the others.
    Debezium,
}

/// What the relay does with a published row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnPublished {
    Mark,
    Delete,
    Archive,
}

/// An outbox table and how it is served.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    /// In the schema `public`.
    pub(crate) table: String,
    pub(crate) layout: Layout,
    pub(crate) on_published: OnPublished,
    /// Further lines for its part of the config file.
    pub(crate) config: String,
}

impl Layout {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Native => "native",
            Self::Debezium => "debezium",
        }
    }
}

impl OnPublished {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mark => "mark",
            Self::Delete => "delete",
            Self::Archive => "archive",
        }
    }
}

impl Outbox {
    /// Says what the table will be like; [`Outbox::create`] makes it.
    pub(crate) fn new(table: &str, layout: Layout, on_published: OnPublished) -> Self {
        Self {
            table: table.to_owned(),
            layout,
            on_published,
            config: match layout {
                Layout::Classic | Layout::Native => String::new(),
                Layout::Debezium => "topic = \"${aggregate_type:lower}-events\"\n\
                     headers = { event_id = \"event_id\", event_type = \"event_type\" }"
                    .to_owned(),
            },
        }
    }

    /// The classic table, marked when published: what most services have.
    pub(crate) fn classic() -> Self {
        Self::new("outbox", Layout::Classic, OnPublished::Mark)
    }

    /// Makes the table as a service's own migration would, and the two tables that the writers
    /// keep beside it: orders, whose rows serialise the writers of an aggregate, and a journal
    /// that tells which transactions were committed when a reply was lost.
    pub(crate) async fn create(&self, world: &World) {
        let table = &self.table;
        let outbox = match self.layout {
            Layout::Classic => format!(
                "create table {table} (
                   id uuid primary key default gen_random_uuid(), aggregate_id uuid not null, aggregate_type text not null,
                   event_type text not null, payload jsonb not null, created_at timestamptz not null default now(), published_at timestamptz)"
            ),
            Layout::Native => format!(
                "create table {table} (
                   seq bigint generated always as identity, id uuid primary key default gen_random_uuid(),
                   aggregate_id text not null, aggregate_type text not null, event_type text not null,
                   payload jsonb, headers jsonb, topic text,
                   created_at timestamptz not null default now(), published_at timestamptz)"
            ),
            Layout::Debezium => format!(
                "create table {table} (
                   id uuid primary key default gen_random_uuid(), aggregatetype varchar(255) not null,
                   aggregateid varchar(255) not null, type varchar(255) not null, payload jsonb)"
            ),
        };
        self.create_as(world, &outbox).await;
    }

    /// The same, the table itself by the statements `outbox`.
    pub(crate) async fn create_as(&self, world: &World, outbox: &str) {
        let table = &self.table;
        world
            .execute(&format!(
                "{outbox};
                 create table {table}_orders (id text primary key, n bigint not null default 0);
                 create table {table}_journal (id uuid primary key)"
            ))
            .await;
    }

    /// Makes the table and all that a relay needs to serve it, and a topic of two partitions: the relay,
    /// not yet started, and the type of aggregates whose topic it is.
    pub(crate) async fn prepare<'a>(&self, world: &'a World) -> (Setup<'a>, String) {
        self.prepare_as(world, "Order").await
    }

    /// The same, for a type of aggregates with that `name`.
    pub(crate) async fn prepare_as<'a>(&self, world: &'a World, name: &str) -> (Setup<'a>, String) {
        self.create(world).await;
        let setup = world.relay(&[self]);
        setup.migrate().await;
        let aggregate_type = world.aggregate_with_topic(name, 2).await;
        (setup, aggregate_type)
    }

    /// Rows that are neither published nor parked.
    pub(crate) async fn pending(&self, world: &World) -> i64 {
        let table = &self.table;
        let pending = match self.layout {
            Layout::Classic | Layout::Native => "published_at is null",
            Layout::Debezium => "true",
        };
        let sql = format!("select count(*) from {table} where {pending}");
        world.number(&sql).await
    }

    /// Rows that are marked as published.
    pub(crate) async fn published(&self, world: &World) -> i64 {
        let table = &self.table;
        let sql = format!("select count(*) from {table} where published_at is not null");
        world.number(&sql).await
    }

    /// Rows that are in the table's history.
    pub(crate) async fn archived(&self, world: &World) -> i64 {
        let sql = format!("select count(*) from {}", self.history());
        world.number(&sql).await
    }

    /// Where its rows go with `archive`.
    pub(crate) fn history(&self) -> String {
        format!("outbox_relay.history_public_{}", self.table)
    }

    /// Waits until nothing is pending.
    pub(crate) async fn wait_drained(&self, world: &World, limit: Duration) {
        let what = format!("{} is drained", self.table);
        eventually(limit, &what, async || self.pending(world).await == 0).await;
    }
}

/// Rows that the relay has parked.
pub(crate) async fn parked(world: &World) -> i64 {
    world
        .number("select count(*) from outbox_relay.parked")
        .await
}
