-- What a consumer keeps in its own database, beside what it makes of the events. Any language may use these
-- tables: docs/consuming.md has the statements.

-- Which events a consumer has acted on.
create table if not exists processed_events (
  consumer text not null,
  event_id uuid not null,
  processed_at timestamptz not null default now(),
  primary key (consumer, event_id)
);
create index if not exists processed_events_processed_at_idx on processed_events (processed_at);

-- How far a consumer is, for each aggregate: the highest seq it has acted on. A seq is compared within one outbox
-- only, so the topic is part of the key.
create table if not exists consumer_progress (
  consumer text not null,
  topic text not null,
  key text not null,
  seq bigint not null,
  primary key (consumer, topic, key)
);
