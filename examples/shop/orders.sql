-- The database of the orders service.
create table catalogue (
  sku text primary key,
  cents bigint not null
);
insert into catalogue values
  ('mug', 950), ('notebook', 1400), ('lamp', 4900), ('poster', 2100), ('pen', 350), ('unicorn', 9900);

-- No check and no unique key beside the primary one keeps a second effect of one event away: that is the marks'
-- doing, here and in the other services, and the checker could not see whether they do it otherwise.
create table orders (
  id uuid primary key,
  customer text not null,
  sku text not null,
  quantity int not null,
  cents bigint not null,
  status text not null default 'placed',
  reason text,
  version bigint not null default 1,
  -- of the event that tells of it: what a customer is handed to wait for
  placed_seq bigint
);
