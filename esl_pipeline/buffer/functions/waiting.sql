-- What waits, and why: labels of the queue and deliveries of the inbox; and how much room all of it takes.

-- Whether a queued label waits for its window and for nothing else (p_opens: see esl.window_opens).
create or replace function esl.waits_for_window(q esl.sync_queue, p_opens timestamptz) returns boolean
language sql immutable as $$  -- inlined
    select p_opens is not null and q.is_rise and not q.in_doubt and q.state = 'ready'
$$;

-- How a queued label stands, in a word: failed (refused), dead (given up), approval, rejected, window or waiting.
create or replace function esl.waiting_state(q esl.sync_queue, p_opens timestamptz) returns text
language sql immutable as $$  -- inlined
    select case when q.state in ('failed', 'dead') then q.state
                when q.state = 'guarded' then case when q.rejected_at is null then 'approval' else 'rejected' end
                when esl.waits_for_window(q, p_opens) then 'window' else 'waiting' end
$$;

-- What speaks against a push to a store now, whatever the label: {why, until}; null: nothing.
create or replace function esl.store_waits(p_store text, m esl.store_mappings) returns jsonb
language sql stable set search_path = '' as $$
    select case
        when esl.store_is_paused(p_store) then jsonb_build_object('why', 'paused') || esl.pause_of(p_store)
        when not m.is_active and m.leaving is null then jsonb_build_object('why', 'inactive')
        when m.is_dry_run then jsonb_build_object('why', 'dry_run')
        when m.problem is not null then jsonb_build_object('why', 'problem')
        when h.until > now() then jsonb_build_object('why', 'store_refuses', 'until', h.until)
        when s.down_since is not null then jsonb_build_object('why', 'server_down', 'until', s.probe_at) end
    from (select 1) one
    left join esl.store_health h on h.store_code = p_store
    left join esl.label_servers s on s.server = esl.server_of(p_store)
$$;

-- Why a queued label is not on the shelf yet, in a word, and until when where that is known; of several reasons the
-- one that ends last by itself. (Words for people: model/waiting.py.)
create or replace function esl.why_waiting(q esl.sync_queue, m esl.store_mappings, p_opens timestamptz,
                                           out why text, out until timestamptz)
language plpgsql stable set search_path = '' as $$
declare
    v_store jsonb;
    v_due   boolean := coalesce((select o.due from esl.products o
        where o.variant_id = q.variant_id and o.source_store_id = m.source_store_id
          and o.source_system = m.source_system), false);
begin
    if q.state in ('failed', 'dead', 'guarded', 'leased') then
        why := case when q.rejected_at is not null then 'rejected'
                    else (jsonb_build_object('failed', 'refused', 'dead', 'given_up', 'guarded', 'approval',
                                             'leased', 'under_way') ->> q.state) end;
        return;
    end if;
    v_store := esl.store_waits(q.store_code, m);
    if v_store is not null then
        why := v_store ->> 'why';
        until := (v_store ->> 'until')::timestamptz;
    elsif esl.waits_for_window(q, p_opens) then
        why := 'window';
        until := p_opens;
    elsif q.next_attempt_at > now() then
        why := 'retry';
        until := q.next_attempt_at;
    else
        why := case
            when v_due then 'to_judge'
            when q.variant_id <> '' and m.awaits_read_since is not null and q.drastic is not null then 'to_read'
            when q.drastic is not null and not q.approved then 'to_judge_all'
            when q.operation = 'delete' then 'after_others' else 'turn' end;
    end if;
end $$;

-- The queued labels that somebody asks for ({store?, state?, limit, after?: [since, code, store_code]}), those first
-- that have waited longest.
create or replace function esl.waiting_page(p jsonb)
returns table (q esl.sync_queue, m esl.store_mappings, opens timestamptz, state text)
language sql stable set search_path = '' as $$
    with mappings as materialized (
        select x as m, esl.window_opens(x.settings -> 'raise_window') as opens from esl.store_mappings x
    )
    select q, x.m, x.opens, k.state
    from esl.sync_queue q join mappings x on (x.m).id = q.mapping_id
    cross join lateral (select esl.waiting_state(q, x.opens) as state) k
    where (p ->> 'store' is null or q.store_code = p ->> 'store') and (p ->> 'state' is null or k.state = p ->> 'state')
      and (p -> 'after' is null or (q.created_at, q.code collate "C", q.store_code collate "C")
           > ((p #>> '{after,0}')::timestamptz, p #>> '{after,1}', p #>> '{after,2}'))
    order by q.created_at, q.code collate "C", q.store_code collate "C" limit (p ->> 'limit')::int
$$;

-- How many labels wait in each store and state, since when, and until when for a window.
create or replace function esl.waiting_counts(p jsonb) returns jsonb
language sql stable set search_path = '' as $$
    with mappings as materialized (
        select x.id, esl.window_opens(x.settings -> 'raise_window') as opens from esl.store_mappings x
    ), counts as (
        select q.store_code, k.state, count(*) as labels, min(q.created_at) as oldest,
               min(x.opens) filter (where k.state = 'window') as until
        from esl.sync_queue q join mappings x on x.id = q.mapping_id
        cross join lateral (select esl.waiting_state(q, x.opens) as state) k
        where (p ->> 'store' is null or q.store_code = p ->> 'store')
          and (p ->> 'state' is null or k.state = p ->> 'state')
        group by 1, 2
    )
    select coalesce(jsonb_agg(to_jsonb(c) order by c.store_code, c.state), '[]') from counts c
$$;

-- {store?, state?, limit, after?} -> {counts: [{store_code, state, labels, oldest, until}], labels: [{store_code, code,
--   state, why, until, source_store_id, variant_id, title, variant_title, operation, price_before, price_after, since,
--   attempts, refusals, next_attempt_at, last_error, answer: {at, outcome, http_status, error_code, message, answer}}]}
-- What is not on the shelf yet, and why. answer: the label server's last one for this label, if that was no yes.
create or replace function public.esl_waiting_labels(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
begin
    return jsonb_build_object('counts', esl.waiting_counts(p), 'labels', (
        select coalesce(jsonb_agg(to_jsonb(t) order by t.since, t.code collate "C", t.store_code collate "C"), '[]')
        from (
            select (w.q).store_code, (w.q).code, w.state, y.why, y.until, (w.m).source_store_id, (w.q).variant_id,
                   o.title, o.variant_title, (w.q).operation, esl.price_of(h.label)::text as price_before,
                   esl.price_of((w.q).label)::text as price_after, (w.q).created_at as since, (w.q).attempts,
                   (w.q).refusals, (w.q).next_attempt_at, (w.q).last_error,
                   case when a.outcome <> 'accepted' then to_jsonb(a) end as answer
            from esl.waiting_page(p) w
            cross join lateral esl.why_waiting(w.q, w.m, w.opens) y
            left join esl.hipoink_products h on h.code = (w.q).code and h.store_code = (w.q).store_code
            left join esl.products o on o.variant_id = (w.q).variant_id and o.source_system = (w.m).source_system
                                    and o.source_store_id = (w.m).source_store_id
            left join lateral (
                select l.at, l.outcome, l.http_status, l.error_code, l.message, l.answer from esl.sync_log l
                where l.code = (w.q).code and l.store_code = (w.q).store_code and l.kind = 'result'
                order by l.id desc limit 1) a on true) t));
end $$;

-- {shops?, state?, limit, after?: id} -> {deliveries: [{id, source_system, source_store_id, topic, webhook_id, state,
--   why, reason, thing, title, triggered_at, received_at, finished_at, attempts, bytes}]}, newest first.
-- What came and was not used (unusable, dead), or waits; states as people say them: unusable, dead or waiting.
create or replace function public.esl_waiting_deliveries(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare v_states text[] := case p ->> 'state' when 'waiting' then '{ready,leased}' when 'unusable' then '{unusable}'
                                              when 'dead' then '{dead}' else '{ready,leased,unusable,dead}' end;
begin
    return jsonb_build_object('deliveries', (select coalesce(jsonb_agg(to_jsonb(t) order by t.id desc), '[]') from (
        select i.id, i.source_system, i.source_store_id, i.topic, i.webhook_id,
               case when i.state in ('ready', 'leased') then 'waiting' else i.state end as state,
               case when i.state = 'leased' then 'under_way'
                    when i.state <> 'ready' then i.state
                    when not esl.is_mapped(i.source_system, i.source_store_id) then 'no_store'
                    when i.contested is not null then 'contested' else 'turn' end as why,
               i.reason, coalesce(i.thing, i.contested) as thing, n.title, i.triggered_at, i.received_at,
               i.finished_at, i.attempts, octet_length(i.body) as bytes
        from esl.webhook_inbox i
        left join lateral (select o.title from esl.products o
                           where i.thing like 'product:%' and o.product_id = substr(i.thing, 9)
                             and o.source_store_id = i.source_store_id and o.source_system = i.source_system
                           limit 1) n on true
        where (i.state in ('ready', 'leased') or i.state in ('unusable', 'dead')) and i.state = any (v_states)
          and (p -> 'shops' is null or (i.source_system, i.source_store_id) in (
               select * from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops')))
          and (p ->> 'after' is null or i.id < (p ->> 'after')::bigint)
        order by i.id desc limit (p ->> 'limit')::int) t));
end $$;

-- {} -> {database_bytes, tables: [{name, bytes, rows}]}: the room that the buffer takes, largest first; rows as the
-- planner guesses them (null: it has not looked yet).
create or replace function public.esl_sizes(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object(
        'database_bytes', pg_catalog.pg_database_size(pg_catalog.current_database()),
        'tables', coalesce(jsonb_agg(to_jsonb(t) order by t.bytes desc, t.name), '[]'))
    from (select c.relname::text as name, pg_catalog.pg_total_relation_size(c.oid) as bytes,
                 case when c.reltuples >= 0 then c.reltuples::bigint end as rows
          from pg_catalog.pg_class c where c.relnamespace = 'esl'::regnamespace and c.relkind = 'r') t
$$;
