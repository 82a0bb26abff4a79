-- The outbox of a service that writes events: the classic table. With seq from the start, `migrate` has nothing to
-- ask anybody's leave for.
create table outbox (
  seq bigint generated always as identity,
  id uuid primary key default gen_random_uuid(),
  aggregate_id uuid not null,
  aggregate_type text not null,
  event_type text not null,
  payload jsonb not null,
  created_at timestamptz not null default now(),
  published_at timestamptz
);
