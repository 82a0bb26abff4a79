-- The database of the inventory service.
create table stock (
  sku text primary key,
  available int not null,
  reserved int not null default 0
);
-- There are few mugs, which come back when a payment is refused; nobody has ever had a unicorn.
insert into stock (sku, available) values
  ('mug', 40), ('notebook', 1000000), ('lamp', 1000000), ('poster', 1000000), ('pen', 1000000), ('unicorn', 0);
-- what there was, for the checker
create table stock_at_first as select sku, available from stock;

-- Each movement, added to and never changed: reserved, released, sold, refused.
create table movements (
  id bigint generated always as identity primary key,
  order_id uuid not null,
  kind text not null,
  sku text not null,
  quantity int not null
);
create index on movements (order_id);
