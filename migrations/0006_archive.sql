-- Histories: where a relay with on_published = "archive" moves what Kafka has acknowledged. One table for
-- each outbox, partitioned by the time of publishing, so that a retention drops whole partitions.
-- Additions only: a relay that knows nothing of them goes on beside one that does.
--
-- A history is made by `migrate`, its partitions by the function below as time goes on. The function runs
-- with the rights of whoever migrated, so the relay's role needs none to create or drop anything.

create table if not exists outbox_relay.history (
  outbox text primary key references outbox_relay.outbox (name),
  -- of the partitioned table in this schema
  name text not null unique,
  created_at timestamptz not null default now()
);

comment on table outbox_relay.history is
  'Which outbox has which history. The rows are in the tables that it names.';

-- The partitions of every history, the default one without bounds.
create or replace view outbox_relay.history_partition as
  select x.outbox,
         x.history,
         x.name,
         x.oid::regclass as relation,
         x.bound = 'DEFAULT' as is_default,
         case when x.bound <> 'DEFAULT'
              then coalesce((regexp_match(x.bound, 'FROM \(''([^'']+)''\)'))[1], '-infinity')::timestamptz
         end as lower,
         case when x.bound <> 'DEFAULT'
              then coalesce((regexp_match(x.bound, 'TO \(''([^'']+)''\)'))[1], 'infinity')::timestamptz
         end as upper,
         pg_catalog.pg_total_relation_size(x.oid) as bytes,
         greatest(x.reltuples, 0)::bigint as rows_estimate
    from (select h.outbox, h.name as history, c.relname::text as name, c.oid, c.reltuples,
                 pg_catalog.pg_get_expr(c.relpartbound, c.oid) as bound
            from outbox_relay.history h
            join pg_catalog.pg_class p
              on p.relname = h.name and p.relnamespace = 'outbox_relay'::regnamespace
            join pg_catalog.pg_inherits i on i.inhparent = p.oid
            join pg_catalog.pg_class c on c.oid = i.inhrelid) x;

comment on view outbox_relay.history_partition is
  'The partitions of each history: published_at is from lower to upper; the default one takes what no other does.';

-- Who may publish may fill a history: the roles that may insert into parked, which only relays do.
create or replace function outbox_relay.grant_to_relays(what text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $outbox_relay$
declare
  grantee text;
begin
  for grantee in
    select distinct case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
      from pg_catalog.pg_class c cross join lateral aclexplode(c.relacl) a
     where c.oid = 'outbox_relay.parked'::regclass and a.privilege_type = 'INSERT'
       and a.grantee <> c.relowner
  loop
    execute format('grant %s to %s', what, grantee);
  end loop;
end
$outbox_relay$;

-- Makes the history of an outbox, or what is missing of it. Its columns are those of the service's table,
-- with the types they have there: a payload is copied as it is stored, not printed and read again. Text is
-- of any length, and whole numbers are the larger ones, so that a service may widen its own.
create or replace function outbox_relay.make_history(
  of_outbox text, relid regclass, history text, column_names text[]) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $outbox_relay$
declare
  listed text;
  -- whose rights tend_history has: it can attach partitions to its own tables only
  keeper text := (select quote_ident(pg_get_userbyid(p.proowner)) from pg_catalog.pg_proc p
                   where p.oid = 'outbox_relay.tend_history(text, double precision, double precision)'::regprocedure);
begin
  if to_regclass(format('outbox_relay.%I', history)) is null then
    select string_agg(
             format('%I %s', a.attname,
                    case format_type(a.atttypid, null)
                      when 'character varying' then 'text'
                      when 'integer' then 'bigint'
                      else format_type(a.atttypid, null)
                    end),
             ', ' order by array_position(column_names, a.attname::text))
      into listed
      from pg_catalog.pg_attribute a
     where a.attrelid = relid and a.attname = any (column_names) and not a.attisdropped;
    execute format(
      'create table outbox_relay.%I (%s, published_at timestamptz not null) partition by range (published_at)',
      history, listed);
    execute format('comment on table outbox_relay.%I is %L', history,
      'What was published of ' || of_outbox || ', moved here by on_published = "archive".');
    execute format('alter table outbox_relay.%I owner to %s', history, keeper);
  end if;
  -- a layout that has more columns than it had
  for listed in
    select format('alter table outbox_relay.%I add column %I %s', history, a.attname,
                  case format_type(a.atttypid, null) when 'character varying' then 'text'
                                                     else format_type(a.atttypid, null) end)
      from pg_catalog.pg_attribute a
     where a.attrelid = relid and a.attname = any (column_names) and not a.attisdropped
       and not exists (select from pg_catalog.pg_attribute b
                        where b.attrelid = to_regclass(format('outbox_relay.%I', history))
                          and b.attname = a.attname and not b.attisdropped)
  loop
    execute listed;
  end loop;
  insert into outbox_relay.history (outbox, name) values (of_outbox, history) on conflict (outbox) do nothing;
  -- settling must never fail for want of a partition
  if not exists (select from outbox_relay.history_partition p
                  where p.history = make_history.history and p.is_default) then
    execute format('create table outbox_relay.%I partition of outbox_relay.%I default',
      history || '_default', history);
    execute format('alter table outbox_relay.%I owner to %s', history || '_default', keeper);
  end if;
  perform outbox_relay.grant_to_relays(format('select, insert on outbox_relay.%I', history));
end
$outbox_relay$;

-- What a history needs now and then: partitions ahead of time, and, if kept_s says how many seconds rows
-- are kept, the oldest partition dropped, one for each call, since its lock is held until the commit.
--
-- made, dropped: partitions. deleted: old rows of the default partition. strays: whether that has any.
-- waits: what stood in the way; the next call tries again. indexable: a partition that takes no more rows
-- and has no index on id yet, for index_history.
--
-- Locks. `attach` takes none that an insert into another partition waits for. `drop` needs all of the
-- history for a moment, and inserts queue behind it while it waits: so it waits half a second at most.
-- Several relays: one at a time, and the others do nothing.
create or replace function outbox_relay.tend_history(
  of_outbox text, step_s double precision, kept_s double precision,
  out made int, out dropped int, out deleted bigint, out strays boolean, out waits text, out indexable text)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set timezone = 'UTC'
  set datestyle = 'ISO, MDY'
  set lock_timeout = '500ms'
  set enable_seqscan = on
as $outbox_relay$
declare
  now_at timestamptz := clock_timestamp();
  until_at timestamptz;
  lower_at timestamptz;
  upper_at timestamptz;
  parent text;
  stray_name text;
  part text;
  again boolean;
begin
  made := 0;
  dropped := 0;
  deleted := 0;
  strays := false;
  if not pg_try_advisory_xact_lock(hashtext('outbox_relay history'), hashtext(of_outbox)) then
    return;
  end if;
  select h.name into parent from outbox_relay.history h where h.outbox = of_outbox;
  if parent is null then
    raise exception 'the outbox % has no history: `outbox-relay migrate` makes it', of_outbox
      using errcode = 'undefined_table';
  end if;

  -- three days ahead, or two partitions: relays may be away over a weekend
  until_at := now_at + greatest(2 * step_s, 3 * 86400.0) * interval '1 second';
  select max(p.upper) into upper_at from outbox_relay.history_partition p where p.history = parent;
  upper_at := coalesce(upper_at, '-infinity');
  while upper_at < until_at and made < 200 loop
    lower_at := greatest(upper_at, to_timestamp(floor(extract(epoch from now_at) / step_s) * step_s));
    upper_at := to_timestamp((floor(extract(epoch from lower_at) / step_s) + 1) * step_s);
    again := true;
    while again loop
      again := false;
      part := parent || to_char(lower_at, case when extract(epoch from lower_at)::bigint % 86400 = 0
                                               then '"_p"YYYYMMDD' else '"_p"YYYYMMDD"_"HH24MI' end);
      -- somebody may have kept a history of the same name under another one
      while to_regclass(format('outbox_relay.%I', part)) is not null loop
        part := part || 'x';
      end loop;
      begin
        execute format('create table outbox_relay.%I (like outbox_relay.%I)', part, parent);
        execute format('alter table outbox_relay.%I attach partition outbox_relay.%I for values from (%L) to (%L)',
          parent, part, lower_at, upper_at);
        made := made + 1;
      exception
        when check_violation then
          -- rows of this time are in the default partition already: they stay, the next go here
          again := lower_at < now_at and date_trunc('minute', now_at) + interval '2 minutes' < upper_at;
          lower_at := date_trunc('minute', now_at) + interval '2 minutes';
        when lock_not_available then
          waits := format('the partition %s could not be attached yet: somebody has the history locked', part);
          upper_at := 'infinity';
      end;
    end loop;
  end loop;

  select p.name into stray_name
    from outbox_relay.history_partition p where p.history = parent and p.is_default;
  if stray_name is not null then
    if kept_s is not null then
      execute format(
        'delete from outbox_relay.%1$I t where t.ctid = any (array(
           select o.ctid from outbox_relay.%1$I o where o.published_at < $1 limit 5000))', stray_name)
        using now_at - kept_s * interval '1 second';
      get diagnostics deleted = row_count;
    end if;
    execute format('select exists (select from outbox_relay.%I)', stray_name) into strays;
  end if;

  -- a batch that was settled at the very end may have been begun before it
  select p.name into indexable
    from outbox_relay.history_partition p
   where p.history = parent and p.upper <= now_at - interval '15 minutes'
     and (kept_s is null or p.upper > now_at - kept_s * interval '1 second')
     and not exists (select from pg_catalog.pg_index i
                       join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
                      where i.indrelid = p.relation and a.attname = 'id')
   order by p.upper desc limit 1;

  part := null;
  -- last, because its lock is held until the commit
  if kept_s is not null and isfinite(now_at - kept_s * interval '1 second') then
    select p.name into part
      from outbox_relay.history_partition p
     where p.history = parent and p.upper <= now_at - kept_s * interval '1 second'
     order by p.upper limit 1;
    if part is not null then
      begin
        execute format('drop table outbox_relay.%I', part);
        dropped := 1;
      exception
        when lock_not_available then
          waits := format('the partition %s could not be dropped yet: somebody has the history locked, '
                          'most likely a long query', part);
        when dependent_objects_still_exist then
          waits := format('the partition %s cannot be dropped: something depends on it', part);
      end;
    end if;
  end if;
end
$outbox_relay$;

-- Makes the index on id of a partition that takes no more rows: in one pass, where an index on the open one
-- would cost every batch. Its lock stops writes to that partition only, of which there are none. Like any
-- long statement it keeps dead rows of the outbox from being removed while it runs: shorter partitions,
-- shorter statements.
create or replace function outbox_relay.index_history(of_outbox text, part text) returns boolean
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '500ms'
as $outbox_relay$
begin
  if not pg_try_advisory_xact_lock(hashtext('outbox_relay history index'), hashtext(of_outbox))
     or not exists (select from outbox_relay.history_partition p
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

-- Copies parked rows that were published after all to a history; how many. Their columns get the history's
-- types again: a parked value is what Postgres printed, so it comes out as it went in.
create or replace function outbox_relay.archive_parked(history text, ids bigint[]) returns bigint
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set timezone = 'UTC'
as $outbox_relay$
declare
  listed text;
  given text;
  rows bigint;
begin
  select string_agg(quote_ident(a.attname), ', ' order by a.attnum), string_agg(w.given, ', ' order by a.attnum)
    into listed, given
    from (select a.attname, a.attnum, format_type(a.atttypid, null) as type
            from pg_catalog.pg_attribute a
           where a.attrelid = format('outbox_relay.%I', history)::regclass and a.attnum > 0
             and not a.attisdropped) a
   cross join lateral
         (select case a.attname
                   when 'seq' then 'p.seq'
                   when 'id' then 'p.event_id'
                   when 'aggregate_type' then 'p.aggregate_type'
                   when 'aggregate_id' then 'p.aggregate_id::' || a.type
                   when 'event_type' then 'p.event_type'
                   when 'payload' then case a.type when 'bytea' then 'p.value'
                                       else 'convert_from(p.value, ''UTF8'')::' || a.type end
                   when 'headers' then 'p.row_headers::' || a.type
                   when 'topic' then 'p.row_topic'
                   when 'created_at' then 'p.created_at'
                   when 'published_at' then 'statement_timestamp()'
                 end as given) w
   where w.given is not null;
  execute format('insert into outbox_relay.%I (%s) select %s from outbox_relay.parked p where p.parked_id = any ($1)',
    history, listed, given) using ids;
  get diagnostics rows = row_count;
  return rows;
end
$outbox_relay$;

revoke all on function outbox_relay.grant_to_relays(text) from public;
revoke all on function outbox_relay.make_history(text, regclass, text, text[]) from public;
revoke all on function outbox_relay.tend_history(text, double precision, double precision) from public;
revoke all on function outbox_relay.index_history(text, text) from public;

select outbox_relay.grant_to_relays(
  'execute on function outbox_relay.tend_history(text, double precision, double precision)');
select outbox_relay.grant_to_relays('execute on function outbox_relay.index_history(text, text)');
