-- Writing an event by a call: `select outbox_relay.emit('Order', '42', 'OrderPaid', '{"total": 12.50}')`. A
-- plain insert stays what it was. Additions only: no relay reads any of this.
--
-- Each outbox has functions of its own, made by `migrate`, so that the right to call them is a right on that
-- outbox alone, and nothing is put together at run time: a statement with the table's own types is planned
-- once a session. They run with the rights of whoever may write to the table, under a search path that
-- nobody can put anything in front of.

create table if not exists outbox_relay.emitter (
  outbox text primary key references outbox_relay.outbox (name),
  -- of the functions: the first outbox of a database has emit and emit_batch
  name text not null unique,
  -- what of the table they were made for
  made_for jsonb not null,
  created_at timestamptz not null default now()
);

comment on table outbox_relay.emitter is
  'Which outbox is written to by which function: outbox_relay.NAME, and outbox_relay.NAME_batch.';

-- What the functions of a table depend on: the columns, their types and defaults. `columns` has the table's
-- name for each of ours. Null: the table cannot have such functions, because a column is missing, or is of
-- a type that no event can be put in.
create or replace function outbox_relay.emitter_of(relid regclass, columns jsonb) returns jsonb
  language sql stable
  set search_path = pg_catalog, pg_temp
as $outbox_relay$
  with found as (
    select c.role, c.name,
           case when t.typtype = 'd' then format_type(t.typbasetype, null) else format_type(a.atttypid, null) end as type,
           pg_get_expr(d.adbin, d.adrelid) as written
      from jsonb_each_text(columns) as c (role, name)
      join pg_attribute a on a.attrelid = relid and a.attname = c.name and a.attnum > 0 and not a.attisdropped
      join pg_type t on t.oid = a.atttypid
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  )
  select jsonb_object_agg(f.role, jsonb_build_array(f.name, f.type, f.written))
           || jsonb_build_object('relation', relid::oid::bigint, 'version', 1)
    from found f
  having count(*) = (select count(*) from jsonb_object_keys(columns))
     and count(distinct f.name) = count(*)
     and bool_and(case f.role
           when 'id' then f.type = 'uuid'
           when 'aggregate_id' then f.type in ('text', 'character varying', 'uuid', 'bigint', 'integer')
           when 'aggregate_type' then f.type in ('text', 'character varying')
           when 'event_type' then f.type in ('text', 'character varying')
           when 'topic' then f.type in ('text', 'character varying')
           when 'payload' then f.type in ('jsonb', 'json', 'text', 'character varying', 'bytea')
           when 'headers' then f.type in ('jsonb', 'json')
           else true end)
$outbox_relay$;

-- Makes the functions of an outbox, or makes them anew for what its table has become: `emit`, in one form for
-- each type that an argument may have, and `emit_batch`. Who may call them goes on. They are called `emit` for
-- the first outbox of the database, `otherwise` for any other; the name is returned. Null: there can be none.
create or replace function outbox_relay.make_emitter(
  of_outbox text, relid regclass, columns jsonb, otherwise text) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $outbox_relay$
declare
  wanted constant jsonb := outbox_relay.emitter_of(relid, columns);
  key_type constant text := wanted #>> '{aggregate_id,1}';
  payload_type constant text := wanted #>> '{payload,1}';
  -- whether rows have headers, or a topic, of their own
  has_headers constant boolean := columns ? 'headers';
  has_topic constant boolean := columns ? 'topic';
  -- what the table does not write by itself
  new_id constant text := coalesce(wanted #>> '{id,2}', 'gen_random_uuid()');
  writes_time constant boolean := columns ? 'created_at' and wanted #>> '{created_at,2}' is null;
  emit text := (select e.name from outbox_relay.emitter e where e.outbox = of_outbox);
  -- a superuser's rights are not lent to triggers and defaults of somebody else's table
  keeper constant text := (select quote_ident(o.rolname) from pg_class c join pg_roles o on o.oid = c.relowner
                            where c.oid = relid and not o.rolsuper
                              and (select rolsuper from pg_roles where rolname = current_user));
  begins constant text := format('insert into %s as o (%s) ', relid, (
    select string_agg(quote_ident(columns ->> role), ', ' order by n)
      from unnest(array['id', 'aggregate_type', 'aggregate_id', 'event_type', 'payload'] ||
                  case when has_headers then array['headers'] end ||
                  case when has_topic then array['topic'] end ||
                  case when writes_time then array['created_at'] end) with ordinality as r (role, n)));
  ends constant text := case when writes_time then ', clock_timestamp()' else '' end;
  -- the trace of the writing transaction; what is no traceparent is ignored, as its standard wants it
  trace constant text := case when has_headers then $sql$
  if current_setting('outbox_relay.traceparent', true) ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-|$)' then
    trace := jsonb_build_object('traceparent', current_setting('outbox_relay.traceparent'));
    if current_setting('outbox_relay.tracestate', true) <> '' then
      trace := trace || jsonb_build_object('tracestate', current_setting('outbox_relay.tracestate'));
    end if;
  end if;$sql$ else '' end;
  traced constant text := $sql$
    case when trace is null then %1$s when %1$s is null then trace when %1$s ? 'traceparent' then %1$s
         else trace || %1$s end$sql$;
  callers text[];
  caller text;
  callable regprocedure;
  made regprocedure[] := '{}';
  one record;
  body text;
begin
  if wanted is null then
    return null;
  end if;
  if emit is null then
    emit := case when exists (select from outbox_relay.emitter e where e.name = 'emit') then otherwise else 'emit' end;
  end if;
  callers := array(
    select distinct case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
      from pg_proc p cross join lateral aclexplode(p.proacl) a
     where p.pronamespace = 'outbox_relay'::regnamespace and p.proname in (emit, emit || '_batch')
       and a.privilege_type = 'EXECUTE' and a.grantee <> p.proowner);

  for one in
    select false as batch, key, form,
           format('aggregate_type text, aggregate_id %s, event_type text, payload %s, '
                  'headers jsonb default null, topic text default null, id uuid default null', key, form) as arguments,
           format('outbox_relay.%I(text, %s, text, %s, jsonb, text, uuid)', emit, key, form) as signature
      from unnest(array['text', 'jsonb', 'json', 'bytea']) as form,
           unnest(case when key_type = 'uuid' then array['text', 'uuid']
                       when key_type in ('bigint', 'integer') then array['text', 'bigint']
                       else array['text', 'uuid', 'bigint'] end) as key
    union all
    select true, null, form, format('events %s', form), format('outbox_relay.%I(%s)', emit || '_batch', form)
      from unnest(array['text', 'jsonb', 'json']) as form
  loop
    if one.batch then
      -- an array in json keeps the text of what is in it, which jsonb does not
      body := format($sql$
#variable_conflict use_column
declare
  given constant json := $1::json;
  wrong record;
  trace jsonb;
begin
  if given is null or json_typeof(given) <> 'array' then
    raise exception using errcode = '22023', message = %1$L || ': events must be a JSON array of objects';
  end if;
  select e.n, x.why into wrong
    from jsonb_array_elements(given::jsonb) with ordinality as e (event, n)
    cross join lateral (select case
      when jsonb_typeof(e.event) <> 'object' then 'is no JSON object'
      when coalesce(e.event ->> 'aggregate_type', '') = '' then 'has no aggregate_type'
      when e.event ->> 'aggregate_id' is null then 'has no aggregate_id'
      when coalesce(e.event ->> 'event_type', '') = '' then 'has no event_type'
      when jsonb_typeof(coalesce(e.event -> 'headers', 'null')) not in ('object', 'null')
        then 'has headers that are no JSON object'
      when e.event ->> 'topic' !~ '^[A-Za-z0-9._-]{1,249}$' or e.event ->> 'topic' in ('.', '..')
        then 'has a topic that Kafka takes for no topic''s name'
      when not %2$L::boolean and e.event ->> 'headers' is not null
        then 'has headers, for which this outbox has no column (layout = "native" has)'
      when not %11$L::boolean and e.event ->> 'topic' is not null
        then 'has a topic, for which this outbox has no column (layout = "native" has)'
      else (select 'has a member that is unknown here: ' || k from jsonb_object_keys(e.event) k
             where k not in ('aggregate_type', 'aggregate_id', 'event_type', 'payload', 'headers', 'topic', 'id')
             limit 1)
      end as why) x
   where x.why is not null
   order by e.n limit 1;
  if found then
    raise exception using errcode = '22023',
      message = format('%%s: event %%s of the array %%s', %1$L, wrong.n, wrong.why);
  end if;%3$s
  return query
  %4$s
  select coalesce(e.id, %5$s), e.aggregate_type, e.aggregate_id::%6$s, e.event_type,
    %7$s%8$s%9$s
    from rows from (json_to_recordset(given) as (
           id uuid, aggregate_type text, aggregate_id text, event_type text, payload json, headers jsonb, topic text))
         with ordinality as e (id, aggregate_type, aggregate_id, event_type, payload, headers, topic, n)
   order by e.n
  returning o.%10$I;
end$sql$,
        format('outbox_relay.%s_batch', emit), has_headers, trace, begins, new_id, key_type,
        case payload_type
          when 'jsonb' then 'e.payload::jsonb'
          when 'json' then 'e.payload'
          when 'bytea' then $sql$decode(e.payload #>> '{}', 'base64')$sql$
          else $sql$case json_typeof(e.payload) when 'string' then e.payload #>> '{}' else e.payload::text end$sql$ end,
        case when has_headers then ',' || format(traced, 'e.headers') else '' end ||
        case when has_topic then ', e.topic' else '' end,
        ends, columns ->> 'id', has_topic);
    elsif (one.form = 'bytea') <> (payload_type = 'bytea') then
      -- better than that there is no such function
      body := format($sql$
begin
  raise exception using errcode = '42804', message = %L;
end$sql$,
        format(case when payload_type = 'bytea'
                    then 'outbox_relay.%s: the payload of %s is %s: give it as bytea, as in convert_to(…, ''UTF8'')'
                    else 'outbox_relay.%s: the payload of %s is %s, which bytea is not' end,
               emit, of_outbox, payload_type));
    else
      body := format($sql$
declare
  emitted uuid;
  trace jsonb;
begin
  if ($1 <> '' and $2 is not null and $3 <> '') is not true then
    raise exception using errcode = '22023', message = %1$L ||
      case when coalesce($1, '') = '' then ': aggregate_type' when $2 is null then ': aggregate_id'
           else ': event_type' end || ' is null or empty';
  end if;%2$s%3$s
  %4$s
  values (coalesce($7, %5$s), $1, $2::%6$s, $3, $4::%7$s%8$s%9$s)
  returning o.%10$I into emitted;
  return emitted;
end$sql$,
        format('outbox_relay.%s', emit),
        case when has_headers then format($sql$
  if jsonb_typeof($5) <> 'object' then
    raise exception using errcode = '22023', message = %1$L || ': headers must be a JSON object';
  end if;$sql$, format('outbox_relay.%s', emit)) else format($sql$
  if $5 is not null then
    raise exception using errcode = '0A000', message = %L,
      hint = 'Leave them out, or add such a column and tell the relay of it (layout = "native"), then migrate.';
  end if;$sql$, format('outbox_relay.%s: %s has no column for headers', emit, of_outbox)) end ||
        case when has_topic then format($sql$
  if $6 !~ '^[A-Za-z0-9._-]{1,249}$' or $6 in ('.', '..') then
    raise exception using errcode = '22023', message = %1$L || ': Kafka takes this topic for no topic''s name';
  end if;$sql$, format('outbox_relay.%s', emit)) else format($sql$
  if $6 is not null then
    raise exception using errcode = '0A000', message = %L,
      hint = 'Leave it out, or add such a column and tell the relay of it (layout = "native"), then migrate.';
  end if;$sql$, format('outbox_relay.%s: %s has no column for a topic', emit, of_outbox)) end,
        trace, begins, new_id, key_type, payload_type,
        case when has_headers then ',' || format(traced, '$5') else '' end ||
        case when has_topic then ', $6' else '' end,
        ends, columns ->> 'id');
    end if;
    made := made || outbox_relay.make_emit_function(one.signature, format($sql$
create or replace function outbox_relay.%I(%s)
  returns %s language plpgsql security definer set search_path = pg_catalog, pg_temp as %L$sql$,
      case when one.batch then emit || '_batch' else emit end, one.arguments,
      case when one.batch then 'setof uuid' else 'uuid' end, body), keeper);
  end loop;

  -- forms that the table's types have no more use for
  for one in
    select p.oid::regprocedure as stale from pg_proc p
     where p.pronamespace = 'outbox_relay'::regnamespace and p.proname in (emit, emit || '_batch')
       and p.oid <> all (made)
  loop
    execute format('drop function %s', one.stale);
  end loop;
  insert into outbox_relay.emitter as e (outbox, name, made_for) values (of_outbox, emit, wanted)
    on conflict (outbox) do update set made_for = excluded.made_for;
  foreach caller in array callers
  loop
    foreach callable in array made
    loop
      execute format('grant execute on function %s to %s', callable, caller);
    end loop;
  end loop;
  return emit;
end
$outbox_relay$;

-- Makes one function by `statement`. A new one is for nobody to call until somebody is let.
create or replace function outbox_relay.make_emit_function(signature text, statement text, keeper text)
  returns regprocedure
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $outbox_relay$
declare
  is_new constant boolean := to_regprocedure(signature) is null;
begin
  execute statement;
  if is_new then
    execute format('revoke all on function %s from public', signature);
  end if;
  if keeper is not null then
    execute format('alter function %s owner to %s', signature, keeper);
  end if;
  return signature::regprocedure;
end
$outbox_relay$;

-- Lets a role write to an outbox by its functions: it needs no right on the table.
create or replace function outbox_relay.allow_emit(of_outbox text, writer text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $outbox_relay$
declare
  callable regprocedure;
begin
  if not exists (select from outbox_relay.emitter e where e.outbox = of_outbox) then
    raise exception using errcode = '22023',
      message = format('no function writes to an outbox %s: `outbox-relay migrate` makes them, and says why not',
                       of_outbox);
  end if;
  execute format('grant usage on schema outbox_relay to %I', writer);
  for callable in
    select p.oid
      from outbox_relay.emitter e
      join pg_proc p on p.pronamespace = 'outbox_relay'::regnamespace and p.proname in (e.name, e.name || '_batch')
     where e.outbox = of_outbox
  loop
    execute format('grant execute on function %s to %I', callable, writer);
  end loop;
end
$outbox_relay$;

-- Takes the functions of an outbox away. Whoever calls them fails from then on.
create or replace function outbox_relay.drop_emitter(of_outbox text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $outbox_relay$
declare
  callable regprocedure;
begin
  for callable in
    select p.oid
      from outbox_relay.emitter e
      join pg_proc p on p.pronamespace = 'outbox_relay'::regnamespace and p.proname in (e.name, e.name || '_batch')
     where e.outbox = of_outbox
  loop
    execute format('drop function %s', callable);
  end loop;
  delete from outbox_relay.emitter e where e.outbox = of_outbox;
end
$outbox_relay$;

revoke all on function outbox_relay.make_emitter(text, regclass, jsonb, text) from public;
revoke all on function outbox_relay.make_emit_function(text, text, text) from public;
revoke all on function outbox_relay.allow_emit(text, text) from public;
revoke all on function outbox_relay.drop_emitter(text) from public;
