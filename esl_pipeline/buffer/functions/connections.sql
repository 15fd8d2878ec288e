-- How shops are connected: who makes their webhook subscriptions, what arrives of them, and what is refused at the
-- door.

-- {source_system, source_store_id, subscriptions: "api" | "toml", anew?, by} -> the connection. The same again leaves
-- it as it is, and so its first webhook: awaited is it from a new connection on, one that had ended, another kind, or
-- when the caller says that it had to make or mend subscriptions (anew). 22023: no shop of the source, or no such kind.
create or replace function public.esl_connection_set(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare c esl.connections;
begin
    perform esl.check_shop(p ->> 'source_system', p ->> 'source_store_id');
    if p ->> 'subscriptions' in ('api', 'toml') is not true then
        raise exception 'subscriptions: % is neither api nor toml', coalesce(p ->> 'subscriptions', 'nothing')
            using errcode = '22023';
    end if;
    insert into esl.connections as o (source_system, source_store_id, subscriptions, connected_by)
    values (p ->> 'source_system', p ->> 'source_store_id', p ->> 'subscriptions',
            coalesce(p ->> 'by', 'role:' || session_user))
    on conflict (source_store_id, source_system) do update
    set subscriptions = excluded.subscriptions, connected_at = excluded.connected_at,
        connected_by = excluded.connected_by, db_user = excluded.db_user,
        first_webhook_at = null, ended_at = null, ended_by = null
    where o.ended_at is not null or o.subscriptions <> excluded.subscriptions or (p ->> 'anew')::boolean;
    select * into c from esl.connections o
    where o.source_system = p ->> 'source_system' and o.source_store_id = p ->> 'source_store_id';
    return to_jsonb(c) - 'db_user';
end $$;

-- {source_system, source_store_id, by} -> the connection, or null where there is none. One that has ended stays as it
-- is.
create or replace function public.esl_connection_end(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare c esl.connections;
begin
    perform esl.end_connection(p ->> 'source_system', p ->> 'source_store_id',
                               coalesce(p ->> 'by', 'role:' || session_user));
    select * into c from esl.connections o
    where o.source_system = p ->> 'source_system' and o.source_store_id = p ->> 'source_store_id';
    return case when found then to_jsonb(c) - 'db_user' end;
end $$;

create or replace function esl.end_connection(p_system text, p_shop text, p_by text) returns void
language sql volatile set search_path = '' as $$
    update esl.connections set ended_at = clock_timestamp(), ended_by = p_by
    where source_system = p_system and source_store_id = p_shop and ended_at is null
$$;

-- Of the deliveries that have just ended, the first of each connection that awaits one. In one order, so that no two
-- wait for each other in a circle.
create or replace function esl.note_first_webhooks(p_ended jsonb) returns void
language sql volatile set search_path = '' as $$
    update esl.connections c set first_webhook_at = f.first_at
    from (select o.source_system, o.source_store_id, e.first_at
          from esl.connections o cross join lateral (
              select min(d.received_at) as first_at
              from jsonb_populate_recordset(null::esl.ended_row, p_ended) d
              where d.source_system = o.source_system and d.source_store_id = o.source_store_id and d.n = 1
                and d.received_at >= o.connected_at) e
          where o.first_webhook_at is null and o.ended_at is null and e.first_at is not null
          order by 1, 2 for update of o) f
    where c.source_system = f.source_system and c.source_store_id = f.source_store_id
$$;

-- The newest delivery of a shop that waits; null: none.
create or replace function esl.newest_waiting(p_system text, p_shop text) returns esl.webhook_inbox
language sql stable set search_path = '' as $$
    select i from esl.webhook_inbox i
    where i.source_system = p_system and i.source_store_id = p_shop and i.state in ('ready', 'leased')
    order by i.id desc limit 1
$$;

-- When a shop's newest delivery with a good signature came.
create or replace function esl.last_webhook_at(p_system text, p_shop text) returns timestamptz
language sql stable set search_path = '' as $$
    select greatest((esl.newest_waiting(p_system, p_shop)).received_at,
                    (select d.last_received_at from esl.shop_deliveries d
                     where d.source_system = p_system and d.source_store_id = p_shop))
$$;

-- The signatures refused per shop that are still worth a word: of the last week, and those after which a good one came
-- of the last hour only. accepted_at: when the last good one came.
create or replace function esl.refused()
returns table (source_system text, source_store_id text, refused bigint, since timestamptz, last_at timestamptz,
               accepted_at timestamptz)
language sql stable set search_path = '' as $$
    select r.source_system, r.source_store_id, sum(r.refused)::bigint, min(r.since), max(r.last_at), max(a.at)
    from esl.refused_signatures r cross join lateral esl.last_webhook_at(r.source_system, r.source_store_id) a (at)
    where r.last_at > now() - interval '7 days'
      and (a.at is null or a.at < r.last_at or r.last_at > now() - interval '1 hour')
    group by 1, 2
$$;

-- {shops?: [{source_system, source_store_id}]} -> {connections: [{source_system, source_store_id, subscriptions,
-- formerly, connected_at, connected_by, ended_at, ended_by, first_webhook_at, last_webhook_at, last_api_version,
-- is_active, refused, refused_since, last_refused_at}]}: of all shops that are connected or mapped, or of these.
-- subscriptions: null where the connection has ended (formerly has them then) or never was made by us. is_active:
-- whether a mapping of the shop is.
create or replace function public.esl_connection_list(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('connections', coalesce(
        jsonb_agg(to_jsonb(t) order by t.source_system, t.source_store_id), '[]'))
    from (
        select k.source_system, k.source_store_id,
               case when c.ended_at is null then c.subscriptions end as subscriptions,
               case when c.ended_at is not null then c.subscriptions end as formerly,
               c.connected_at, c.connected_by, c.ended_at, c.ended_by,
               coalesce(c.first_webhook_at, (
                   select min(i.received_at) from esl.webhook_inbox i
                   where i.source_system = k.source_system and i.source_store_id = k.source_store_id
                     and i.state in ('ready', 'leased') and i.received_at >= c.connected_at)) as first_webhook_at,
               esl.last_webhook_at(k.source_system, k.source_store_id) as last_webhook_at,
               coalesce((esl.newest_waiting(k.source_system, k.source_store_id)).api_version, d.last_api_version)
                   as last_api_version,
               esl.has_active_mapping(k.source_system, k.source_store_id) as is_active,
               coalesce(r.refused, 0) as refused, r.since as refused_since, r.last_at as last_refused_at
        from (select source_system, source_store_id from esl.connections
              union select source_system, source_store_id from esl.store_mappings where removed_at is null) k
        left join esl.connections c using (source_system, source_store_id)
        left join esl.shop_deliveries d using (source_system, source_store_id)
        left join esl.refused() r using (source_system, source_store_id)
        where p -> 'shops' is null or (k.source_system, k.source_store_id) in (
            select * from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops'))) t
$$;

-- {receiver, refused: [{source_system, source_store_id, refused, since, last_at}]} -> {mapped: [{source_system,
-- source_store_id}]}: what a receiver's process has counted of wrong signatures, and the shops to count for. Told every
-- few seconds whatever came, so that nobody outside can cause a call. Only mapped shops are kept, and no time ahead of
-- ours. 22023: none that a receiver sends.
create or replace function public.esl_refusals_note(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    if length(p ->> 'receiver') between 1 and 64 is not true or jsonb_array_length(p -> 'refused') > 1000 then
        raise exception 'receiver must be a name, and refused tell of at most 1000 shops' using errcode = '22023';
    end if;
    perform esl.measure_refused(p);
    insert into esl.refused_signatures as o (source_system, source_store_id, receiver, refused, since, last_at)
    select r.source_system, r.source_store_id, p ->> 'receiver', max(r.refused), least(min(r.since), now()),
           least(max(r.last_at), now())
    from jsonb_populate_recordset(null::esl.refused_row, p -> 'refused') r
    where r.refused > 0 and r.since is not null and r.last_at is not null
      and esl.is_mapped(r.source_system, r.source_store_id)
    group by 1, 2 order by 1, 2
    on conflict (source_store_id, source_system, receiver) do update
    set refused = excluded.refused, since = excluded.since, last_at = excluded.last_at;
    delete from esl.refused_signatures where last_at < now() - interval '7 days';
    return jsonb_build_object('mapped', (
        select coalesce(jsonb_agg(to_jsonb(m) order by m.source_system, m.source_store_id), '[]')
        from (select distinct source_system, source_store_id from esl.store_mappings
              where removed_at is null) m));
end $$;
