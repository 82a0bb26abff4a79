-- A service, as far as a relay can tell: it makes its own tables, and writes orders and their events
-- in the same transactions. Some of them are rolled back; their events must never be seen.
create table if not exists orders (
  id uuid primary key,
  status text not null default 'placed',
  version int not null default 0
);
-- seq keeps the order. A table that has it from the start needs nobody's leave for the rest: it could
-- only be added to one with rows under a lock, and that is a person's decision.
create table if not exists outbox (
  seq bigint generated always as identity,
  id uuid primary key default gen_random_uuid(),
  aggregate_id uuid not null,
  aggregate_type text not null,
  event_type text not null,
  payload jsonb not null,
  created_at timestamptz not null default now(),
  published_at timestamptz
);

do $$
declare
  events constant text[] := array['OrderPlaced', 'OrderPaid', 'OrderPacked', 'OrderShipped'];
  one uuid;
  at int;
begin
  loop
    -- two of three times an order that is under way moves on, else one is placed
    select id into one from orders where version < 4 order by random() limit 1 for update;
    if one is null or random() < 0.34 then
      one := gen_random_uuid();
      insert into orders (id) values (one);
    end if;
    update orders set version = version + 1, status = lower(replace(events[version + 1], 'Order', ''))
     where id = one returning version into at;
    insert into outbox (aggregate_id, aggregate_type, event_type, payload)
    values (one, 'Order', events[at], jsonb_build_object('order', one, 'version', at,
            'total', round((10 + 90 * random())::numeric, 2)));
    if random() < 0.1 then
      rollback;
    else
      commit;
    end if;
    -- the table of a demonstration need not grow for ever
    if random() < 0.01 then
      delete from orders where version = 4;
      commit;
    end if;
    perform pg_sleep(0.02 + 0.06 * random());
    commit;
  end loop;
end $$;
