-- What can be known from the database, for psql alone. Additions only: no relay reads them.
--
-- They count what they can within a bound, as the relay's own samples do, so a look costs the same
-- whatever waits. A role needs select on the outbox tables themselves to see their backlog.

-- One row for each outbox: its lanes, and what waits in its table. The tables' names are only known at
-- run time, so a function looks at each by a statement made for it; `pending` is exact up to rows_max,
-- and at least that beyond. A table that is gone, or that the role may not read, has nulls.
create or replace function outbox_relay.backlog_of_each(rows_max int default 10000)
  returns table (
    outbox text,
    lanes int,
    pending bigint,
    pending_is_exact boolean,
    oldest_created_at timestamptz,
    oldest_pending_age interval)
  language plpgsql stable
  -- the lane index gives the rows that wait, however many were published
  set search_path = pg_catalog, pg_temp
  set enable_seqscan = off
  set jit = off
  set timezone = 'UTC'
as $outbox_relay$
declare
  known record;
begin
  for known in
    select o.name, c.oid as relid, (select count(*) from outbox_relay.lane l where l.outbox = o.name)::int as lanes
      from outbox_relay.outbox o
      left join (pg_class c join pg_namespace n on n.oid = c.relnamespace and c.relkind in ('r', 'p'))
        on n.nspname || '.' || c.relname = o.name
     order by o.name
  loop
    outbox := known.name;
    lanes := known.lanes;
    pending := null;
    pending_is_exact := null;
    oldest_created_at := null;
    oldest_pending_age := null;
    if known.relid is not null and known.lanes > 0 and has_table_privilege(known.relid, 'select') then
      execute format(
        'select count(*) from (select from %s where published_at is null limit %s) x',
        known.relid::regclass, rows_max + 1) into pending;
      pending_is_exact := pending <= rows_max;
      pending := least(pending, rows_max);
      -- the first of each lane; timestamps without a zone are taken for UTC
      execute format(
        'select min(x.created_at)::timestamptz
           from generate_series(0, %1$s - 1) as l (lane)
          cross join lateral
                (select t.created_at from %2$s t
                  where t.published_at is null and t.seq is not null
                    and (hashtext(coalesce(t.aggregate_id::text, '''')) & (%1$s - 1)) = l.lane
                  order by t.seq limit 1) x',
        known.lanes, known.relid::regclass) into oldest_created_at;
      oldest_pending_age := case when isfinite(oldest_created_at)
                                 then greatest(clock_timestamp() - oldest_created_at, interval '0') end;
    end if;
    return next;
  end loop;
end
$outbox_relay$;

comment on function outbox_relay.backlog_of_each(int) is
  'What waits in each outbox table: counted up to rows_max. See the view backlog.';

create or replace view outbox_relay.backlog as
  select outbox, lanes, pending, pending_is_exact, oldest_created_at, oldest_pending_age
    from outbox_relay.backlog_of_each();

comment on view outbox_relay.backlog is
  'What waits in each outbox table: pending is exact up to 10,000 rows, and at least that beyond.';

-- Parked rows by outbox, state and reason, as `outbox-relay parked list` has them.
create or replace view outbox_relay.parked_by_reason as
  select p.outbox,
         case when p.state = 'dead' and p.skipped_at is not null then 'skipped' else p.state end as state,
         p.reason_class as reason,
         count(*) as rows,
         count(distinct coalesce(p.aggregate_id, '')) as keys,
         min(p.parked_at) as oldest_parked_at,
         clock_timestamp() - min(p.parked_at) as oldest_parked_age
    from outbox_relay.parked p
   group by 1, 2, 3;

comment on view outbox_relay.parked_by_reason is
  'Parked rows by outbox, state and reason. Counts all of them: it reads the whole of parked.';

-- One row for each outbox, with what an operator looks at first.
create or replace view outbox_relay.status as
  select o.name as outbox,
         b.lanes,
         b.pending,
         b.pending_is_exact,
         b.oldest_pending_age,
         coalesce(p.blocked_keys, 0) as blocked_keys,
         coalesce(p.blocked, 0) as blocked,
         coalesce(p.behind, 0) as behind,
         coalesce(p.deciding, 0) as deciding,
         coalesce(p.dead, 0) as dead,
         coalesce(p.skipped, 0) as skipped,
         -- of the whole database: a connection does not say which outbox it serves
         (select count(*) from pg_catalog.pg_stat_activity a
           where a.datname = pg_catalog.current_database() and a.application_name = 'outbox-relay') as relay_connections,
         o.adopted_at,
         o.routing
    from outbox_relay.outbox o
    left join outbox_relay.backlog b on b.outbox = o.name
    left join (select r.outbox,
                      sum(r.keys) filter (where r.state = 'blocked') as blocked_keys,
                      sum(r.rows) filter (where r.state = 'blocked') as blocked,
                      sum(r.rows) filter (where r.state = 'behind') as behind,
                      sum(r.rows) filter (where r.state in ('retry', 'skip')) as deciding,
                      sum(r.rows) filter (where r.state = 'dead') as dead,
                      sum(r.rows) filter (where r.state = 'skipped') as skipped
                 from outbox_relay.parked_by_reason r group by 1) p on p.outbox = o.name;

comment on view outbox_relay.status is 'Each outbox at a glance. Ages and counts are of now.';
