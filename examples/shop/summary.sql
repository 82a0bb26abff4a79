-- The database of the projector: the read model, made of what the three services tell.
create table order_summary (
  order_id uuid primary key,
  customer text,
  sku text,
  quantity int,
  cents bigint,
  -- by the orders service
  status text,
  reason text,
  version bigint,
  -- by the two others
  stock text,
  payment text,
  -- how many events it is made of: one too many shows here
  events int not null default 0
);

create table customer_totals (
  customer text primary key,
  orders int not null,
  cents bigint not null
);

-- Versions that were passed over. There are none, unless somebody lost an event.
create table gaps (
  order_id uuid not null,
  expected bigint not null,
  arrived bigint not null
);

-- From the beginning of the transaction that wrote an event to its place in the read model, for the report: a
-- service would keep a histogram.
create table lags (
  ms double precision not null
);
