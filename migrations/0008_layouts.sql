-- Tables whose columns have names of their own: which column is what, as `migrate` writes it down, for all
-- that looks at an outbox table without a config. Null: the names of the classic layout, or the native one.
-- Additions only: a relay that knows nothing of it serves its classic tables as before.

alter table outbox_relay.outbox add column if not exists columns jsonb;

comment on column outbox_relay.outbox.columns is
  'Which column of the table is what; null where they have the names of the classic or the native layout.';

-- As before, by the names that the table has. Where nothing marks a row as published, each one waits.
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
  waits text;
begin
  for known in
    select o.name, c.oid as relid, (select count(*) from outbox_relay.lane l where l.outbox = o.name)::int as lanes,
           case when o.columns is null then 'aggregate_id' else o.columns ->> 'aggregate_id' end as key,
           case when o.columns is null then 'created_at' else o.columns ->> 'created_at' end as created_at,
           case when o.columns is null then 'published_at' else o.columns ->> 'published_at' end as published_at
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
      waits := case when known.published_at is null then 'true' else format('t.%I is null', known.published_at) end;
      execute format(
        'select count(*) from (select from %s t where %s limit %s) x',
        known.relid::regclass, waits, rows_max + 1) into pending;
      pending_is_exact := pending <= rows_max;
      pending := least(pending, rows_max);
      if known.created_at is not null then
        -- the first of each lane; timestamps without a zone are taken for UTC
        execute format(
          'select min(x.created_at)::timestamptz
             from generate_series(0, %1$s - 1) as l (lane)
            cross join lateral
                  (select t.%4$I as created_at from %2$s t
                    where %3$s and t.seq is not null
                      and (hashtext(coalesce(t.%5$I::text, '''')) & (%1$s - 1)) = l.lane
                    order by t.seq limit 1) x',
          known.lanes, known.relid::regclass, waits, known.created_at, known.key) into oldest_created_at;
        oldest_pending_age := case when isfinite(oldest_created_at)
                                   then greatest(clock_timestamp() - oldest_created_at, interval '0') end;
      end if;
    end if;
    return next;
  end loop;
end
$outbox_relay$;

-- As before, by the names that the table has. What was placed as headers, or the topic is made of, comes back
-- from where the parked row keeps it: [own headers, {header: value}] and [own topic, value, …].
create or replace function outbox_relay.archive_parked(history text, ids bigint[]) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set timezone = 'UTC'
as $outbox_relay$
declare
  listed text;
  given text;
  rows bigint;
  columns jsonb := (select o.columns from outbox_relay.parked p join outbox_relay.outbox o on o.name = p.outbox
                     where p.parked_id = any (ids) limit 1);
begin
  columns := coalesce(columns, jsonb_build_object(
    'id', 'id', 'aggregate_type', 'aggregate_type', 'aggregate_id', 'aggregate_id', 'event_type', 'event_type',
    'payload', 'payload', 'headers', 'headers', 'topic', 'topic', 'created_at', 'created_at'));
  select string_agg(quote_ident(a.attname), ', ' order by a.attnum), string_agg(w.given, ', ' order by a.attnum)
    into listed, given
    from (select a.attname::text, a.attnum, format_type(a.atttypid, null) as type
            from pg_catalog.pg_attribute a
           where a.attrelid = format('outbox_relay.%I', history)::regclass and a.attnum > 0
             and not a.attisdropped) a
   cross join lateral
         (select case a.attname
                   when 'published_at' then 'statement_timestamp()'
                   when 'seq' then 'p.seq'
                   when columns ->> 'id' then 'p.event_id'
                   when columns ->> 'aggregate_type' then 'p.aggregate_type'
                   when columns ->> 'aggregate_id' then 'p.aggregate_id::' || a.type
                   when columns ->> 'event_type' then 'p.event_type'
                   when columns ->> 'payload' then case a.type when 'bytea' then 'p.value'
                                                   else 'convert_from(p.value, ''UTF8'')::' || a.type end
                   when columns ->> 'headers' then
                     format('(case when p.row_headers like ''[%%'' then nullif((p.row_headers::json -> 0)::text, ''null'')
                                   else p.row_headers end)::%s', a.type)
                   when columns ->> 'topic' then
                     'case when p.row_topic like ''[%'' then p.row_topic::json ->> 0 else p.row_topic end'
                   when columns ->> 'created_at' then 'p.created_at'
                   else coalesce(
                     (select format('(case when p.row_headers like ''[%%'' then p.row_headers::json -> 1 ->> %L end)::%s',
                                    x.placed ->> 'header', a.type)
                        from jsonb_array_elements(columns -> 'placed') as x (placed)
                       where x.placed ->> 'column' = a.attname limit 1),
                     (select format('(case when p.row_topic like ''[%%'' then p.row_topic::json ->> %s end)::%s',
                                    x.place, a.type)
                        from jsonb_array_elements_text(columns -> 'routing') with ordinality as x (name, place)
                       where x.name = a.attname limit 1))
                 end as given) w
   where w.given is not null;
  execute format('insert into outbox_relay.%I (%s) select %s from outbox_relay.parked p where p.parked_id = any ($1)',
    history, listed, given) using ids;
  get diagnostics rows = row_count;
  return rows;
end
$outbox_relay$;

-- As before, of a history that has an id by this name: others are looked through.
create or replace function outbox_relay.index_history(of_outbox text, part text) returns boolean
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '500ms'
as $outbox_relay$
begin
  if not pg_try_advisory_xact_lock(hashtext('outbox_relay history index'), hashtext(of_outbox))
     or not exists (select from outbox_relay.history_partition p
                      join pg_catalog.pg_attribute a
                        on a.attrelid = p.relation and a.attname = 'id' and not a.attisdropped
                     where p.outbox = of_outbox and p.name = part
                       and p.upper <= clock_timestamp() - interval '15 minutes') then
    return false;
  end if;
  execute format('create index on outbox_relay.%I (id)', part);
  return true;
exception when lock_not_available then
  return false;
end
$outbox_relay$;
