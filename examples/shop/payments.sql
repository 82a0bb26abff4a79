-- The database of the payments service.
create table wallets (
  customer text primary key,
  cents bigint not null
);
-- Bob will run out of money, and Zoe never had any.
insert into wallets values
  ('alice', 1000000000), ('bob', 100000), ('carol', 1000000000), ('dave', 1000000000), ('zoe', 0);
-- what there was, for the checker
create table wallets_at_first as select customer, cents from wallets;

-- Each decision, added to and never changed: taken or refused.
create table payments (
  id bigint generated always as identity primary key,
  order_id uuid not null,
  customer text not null,
  cents bigint not null,
  status text not null
);
