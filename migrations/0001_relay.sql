-- The relay's own schema. Whatever belongs to one outbox table (its lane rows, index and `seq`) is
-- rendered from the table's layout; these are the tables all outboxes share. Every statement may
-- run twice, so that a team can apply `migrate --print` by its own tool.

create schema if not exists outbox_relay;

comment on schema outbox_relay is 'Owned by outbox-relay.';

-- One row for each outbox table that is served.
create table if not exists outbox_relay.outbox (
  -- schema.table as the catalogue names it
  name text primary key,
  -- how rows are routed; every relay of the table must agree, or two could publish one aggregate
  -- to two topics
  routing text,
  -- when a relay first served it; before that, a row being marked means somebody else's worker
  adopted_at timestamptz,
  created_at timestamptz not null default now()
);

-- The lanes of an outbox: whoever has a lane's row locked is the only one to publish its aggregates.
-- The number of rows is the number of lanes in force, and it matches the table's index.
create table if not exists outbox_relay.lane (
  outbox text not null references outbox_relay.outbox (name),
  lane int not null check (lane >= 0),
  primary key (outbox, lane)
);

-- Rows that could not be published, and the rows that wait behind them.
create table if not exists outbox_relay.parked (
  parked_id bigint generated always as identity primary key,
  outbox text not null references outbox_relay.outbox (name),
  -- blocked: refused; its aggregate waits until somebody says retry or skip
  -- dead:    refused; its aggregate went on
  -- behind:  waits for the row in front of it
  -- retry:   to be published again, before anything newer of its aggregate
  -- skip:    to be given up, so that its aggregate goes on
  state text not null check (state in ('blocked', 'dead', 'behind', 'retry', 'skip')),
  reason_class text,
  reason text,
  attempts int not null default 0,
  parked_at timestamptz not null default now(),
  -- the row as it was
  seq bigint not null,
  event_id uuid not null,
  aggregate_type text not null,
  aggregate_id text,
  event_type text not null,
  row_headers text,
  row_topic text,
  created_at timestamptz,
  -- the record as it would have been sent; null topic: it never got that far
  topic text,
  headers text,
  value bytea,
  -- of the aggregate id; picks the lane
  hash int not null
);

-- what holds an aggregate back, and its rows in order
create index if not exists parked_holding on outbox_relay.parked
  (outbox, (coalesce(aggregate_id, '')), seq, parked_id) where state <> 'dead';

-- what somebody decided and the relay has yet to do
create index if not exists parked_decided on outbox_relay.parked
  (outbox, seq) where state in ('retry', 'skip');
