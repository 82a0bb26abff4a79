-- The shop that every example here is: orders, what is in stock, and the outbox beside them.
create table stock (
  sku text primary key,
  available int not null check (available >= 0)
);

create table orders (
  id uuid primary key,
  sku text not null references stock,
  quantity int not null
);

create table outbox (
  id uuid primary key default gen_random_uuid(),
  aggregate_id uuid not null,
  aggregate_type text not null,
  event_type text not null,
  payload jsonb not null,
  created_at timestamptz not null default now(),
  published_at timestamptz
);

insert into stock values ('mug', 5);
