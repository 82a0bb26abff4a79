-- What operators need to deal with parked rows. Additions only: a relay that knows nothing of them
-- goes on beside one that does.

-- when somebody gave the row up, by choice: the gap stays visible. Such a row is `dead`, so that no
-- relay, however old, lets its aggregate wait for it or publishes it
alter table outbox_relay.parked add column if not exists skipped_at timestamptz;

-- when the dead-letter topic took the row, where there is one
alter table outbox_relay.parked add column if not exists dead_lettered_at timestamptz;

-- the row that its aggregate waits for; few, whatever waits behind them
create index if not exists parked_blocked on outbox_relay.parked
  (outbox, (coalesce(aggregate_id, '')), seq, parked_id) where state = 'blocked';

-- what a dead-letter topic has yet to take
create index if not exists parked_letters on outbox_relay.parked
  (outbox, parked_id) where dead_lettered_at is null and state in ('blocked', 'dead');

-- what a retention can apply to, by age
create index if not exists parked_dead on outbox_relay.parked
  (outbox, (coalesce(skipped_at, parked_at))) where state = 'dead';

-- What operators did to parked rows: one row for each command and outbox, written in the transaction
-- that did it.
create table if not exists outbox_relay.audit (
  audit_id bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  outbox text not null references outbox_relay.outbox (name),
  command text not null,
  -- who: the role as Postgres knows it; user and host as the program that connected says
  role text not null default session_user,
  os_user text,
  host text,
  note text,
  -- what was asked for
  filter jsonb not null,
  -- what was done
  rows bigint not null,
  parked_ids bigint[] not null
);
