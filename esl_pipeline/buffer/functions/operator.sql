-- What operators do: push again, pause, replay, redrive, try, approve and reject. Each call does all of it or nothing,
-- and keeps who wanted it: {by, verified?, run_id?, action_id?} besides what it needs. (Stores are removed in
-- leave.sql.)

-- Nothing is done, and this is why, in words for whoever asked.
create or replace function esl.refuse_action(p_why text) returns void
language plpgsql set search_path = '' as $$
begin
    raise exception '%', p_why using errcode = 'ESL01';
end $$;

-- What is left of a wish without who wishes it: as it is kept, and known again.
create or replace function esl.asked(p jsonb) returns jsonb
language sql immutable set search_path = '' as $$
    select p - '{by,verified,run_id,action_id,store,label_servers}'::text[]
$$;

-- Refuses a text that is empty, for it would mean everything, or has no end.
create or replace function esl.need_words(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare t record;
begin
    for t in select k.key, k.value #>> '{}' as says from jsonb_each(p) k where jsonb_typeof(k.value) = 'string' loop
        if trim(t.says) = '' then
            perform esl.refuse_action(format('%s must not be empty', replace(t.key, '_', ' ')));
        elsif length(t.says) > 1000 then
            perform esl.refuse_action(format('%s is longer than 1000 characters', replace(t.key, '_', ' ')));
        end if;
    end loop;
end $$;

-- Of an earlier build.
drop function if exists esl.answered(jsonb);

-- What was answered to this wish before; null: it is new, and nobody else does it meanwhile. (action: as it is kept.)
create or replace function esl.answered(p jsonb, p_action text) returns jsonb
language plpgsql volatile set search_path = '' as $$
declare a esl.operator_actions; v_times text[] := '{since,until}';  -- "2h" is another time when it is said again
begin
    perform esl.need_words(p);
    if p ->> 'action_id' is null then
        return null;
    end if;
    perform pg_advisory_xact_lock(hashtextextended('esl.action ' || (p ->> 'action_id'), 0));
    select * into a from esl.operator_actions o where o.action_id = (p ->> 'action_id')::uuid;
    if found and (a.action, a.store_code, a.asked - v_times)
                 is distinct from (p_action, p ->> 'store', esl.asked(p) - v_times) then
        perform esl.refuse_action('this was sent before with another wish in it: nothing was done');
    end if;
    return a.answer;
end $$;

create or replace function esl.actor(p jsonb) returns text
language sql stable set search_path = '' as $$
    select coalesce(p ->> 'by', 'role:' || session_user)
$$;

-- Keeps what was done, and gives the answer back.
create or replace function esl.keep_action(p jsonb, p_action text, p_how_many bigint, p_answer jsonb) returns jsonb
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.operator_actions (action_id, by, verified, run_id, action, store_code, asked, answer, how_many)
    values (coalesce((p ->> 'action_id')::uuid, gen_random_uuid()), esl.actor(p),
            coalesce((p ->> 'verified')::boolean, false), p ->> 'run_id', p_action, p ->> 'store',
            esl.asked(p), p_answer, p_how_many);
    return p_answer;
end $$;

-- Refuses a store that no mapping names, or has named before.
create or replace function esl.need_store(p_store text) returns void
language plpgsql volatile set search_path = '' as $$
begin
    if not exists (select from esl.store_mappings m left join esl.left_stores l on l.mapping_id = m.id
                   where p_store in (m.hipoink_store_code, l.store_code) and m.removed_at is null) then
        perform esl.refuse_action(format('no shop is mapped to store %s: see `esl-pipeline stores list`', p_store));
    end if;
end $$;

-- The first of these, for a sentence.
create or replace function esl.some_of(p_names text[]) returns text
language sql immutable set search_path = '' as $$
    select array_to_string(p_names[:10], ', ') || case when cardinality(p_names) > 10
           then format(' and %s more', cardinality(p_names) - 10) else '' end
$$;

-- The places of a store that are meant: {store} and one of {codes, product, sku, vendor, tag, product_type, whole}.
-- Of a store whole also what hangs or waits there and is no variant's any more.
create or replace function esl.meant_places(p jsonb) returns setof text
language sql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
    select l.code
    from esl.store_mappings m
    join esl.labels l on l.mapping_id = m.id and l.store_code = m.hipoink_store_code and l.code is not null
    join esl.products o on o.variant_id = l.variant_id and o.source_store_id = m.source_store_id
                       and o.source_system = m.source_system
    where m.hipoink_store_code = p ->> 'store' and m.removed_at is null and not p ? 'codes'
      and (p ->> 'product' is null or p ->> 'product' in (o.product_id, o.handle))
      and (p ->> 'sku' is null or o.sku = p ->> 'sku')
      and (p ->> 'vendor' is null or lower(o.vendor) = lower(p ->> 'vendor'))
      and (p ->> 'product_type' is null or lower(o.product_type) = lower(p ->> 'product_type'))
      and (p ->> 'tag' is null or exists (
          select from unnest(string_to_array(lower(o.tags), ',')) as t (tag) where trim(t.tag) = lower(p ->> 'tag')))
    union
    select k.code
    from (select s.code from esl.hipoink_products s where s.store_code = p ->> 'store'
          union all select q.code from esl.sync_queue q where q.store_code = p ->> 'store'
          union all select l.code from esl.labels l
                    where p ? 'codes' and l.store_code = p ->> 'store'
                      and l.code in (select jsonb_array_elements_text(p -> 'codes'))) k
    where case when p ? 'codes' then p -> 'codes' ? k.code else coalesce((p ->> 'whole')::boolean, false) end
$$;

-- The codes that are meant; refused where a code is unknown, or nothing is meant.
create or replace function esl.need_places(p jsonb) returns text[]
language plpgsql volatile set search_path = '' as $$
declare
    v_ways    text[] := array(select k from jsonb_object_keys(p) as k (k) where k = any (
        '{codes,product,sku,vendor,tag,product_type,whole}'));
    v_found   text[] := array(select c from esl.meant_places(p) as c (c) order by c collate "C");
    v_unknown text[];
begin
    if cardinality(v_ways) <> 1 then
        perform esl.refuse_action('say which labels in one way: codes, product, SKU, vendor, tag, product type, or all '
                                  'of the store');
    elsif p ? 'codes' then
        v_unknown := array(select c.code from jsonb_array_elements_text(p -> 'codes') as c (code)
                           where c.code <> all (v_found) order by c.code collate "C");
        if v_unknown <> '{}' then
            perform esl.refuse_action(format('store %s has no label %s: nothing was done', p ->> 'store',
                                             esl.some_of(v_unknown)));
        end if;
    end if;
    if v_found = '{}' then
        perform esl.refuse_action(case when p ? 'whole' then format('store %s has no labels yet', p ->> 'store')
            else format('no label of store %s has the %s %s', p ->> 'store', replace(v_ways[1], '_', ' '),
                        p ->> v_ways[1]) end);
    end if;
    return v_found;
end $$;

-- What is wrong with pushing to a store, or null: none of its mappings is live.
create or replace function esl.why_not_live(p_store text) returns text
language sql stable set search_path = '' as $$
    select case when bool_and(m.is_dry_run) then 'is in dry run: end that first (`esl-pipeline stores set`)'
                when not bool_or(m.is_active) then 'is inactive: activate it first (`esl-pipeline stores set`)'
                when not bool_or(m.is_active and not m.is_dry_run) then 'is inactive, or in dry run' end
    from esl.store_mappings m where m.hipoink_store_code = p_store and m.removed_at is null
$$;

-- What hinders a queued label, for counts; null: nothing but its turn.
create or replace function esl.hindrance(q esl.sync_queue, m esl.store_mappings) returns text
language sql stable set search_path = '' as $$
    select case when q.state = 'leased' then 'under_way'
                when q.rejected_at is not null then 'rejected'
                when q.state = 'guarded' then 'waits_for_approval'
                when q.is_rise and not q.in_doubt and not esl.window_is_open(m.settings -> 'raise_window')
                then 'waits_for_window' end
$$;

-- Queues these places of a store as the ledger has them, in doubt: what is wanted there is sent once more, but after
-- what has changed. -> how many.
create or replace function esl.push_once_more(p_store text, p_codes text[]) returns bigint
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_codes text[];
begin
    with again as (
        insert into esl.sync_queue (store_code, code, mapping_id, variant_id, operation, label, label_hash, priority,
                                    in_doubt, cause)
        select s.store_code, s.code, s.mapping_id, s.variant_id, 'upsert', s.label, s.label_hash, 2, true, 'push again'
        from esl.hipoink_products s where s.store_code = p_store and s.code = any (p_codes) order by s.code
        on conflict do nothing
        returning code
    )
    select coalesce(array_agg(code), '{}') into v_codes from again;
    perform esl.requeue(array_fill(p_store, array[cardinality(v_codes)]), v_codes, 'push again');
    update esl.sync_queue set priority = 2 where store_code = p_store and code = any (v_codes) and priority < 2;
    return cardinality(v_codes);
end $$;

-- {store, codes | product | sku | vendor | tag | product_type | whole} -> {labels, pushed_again, already_due,
-- under_way, waits_for_window, waits_for_approval, rejected, held_back, paused}: labels of a store go out once more.
-- What is queued is due now, with a clean count; what is on its way goes again after that; what waits for its window or
-- for somebody's word goes on waiting. held_back: what hangs nowhere and is not wanted there either.
create or replace function public.esl_operator_push(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare
    v_answer jsonb := esl.answered(p, 'push'); v_store text := p ->> 'store'; v_codes text[]; v_again bigint;
    v_why text;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_store(v_store);
    perform esl.lock_stores(array[v_store]);
    v_codes := esl.need_places(p);
    v_why := esl.why_not_live(v_store);
    if v_why is not null then
        perform esl.refuse_action(format('store %s %s', v_store, v_why));
    end if;
    with queued as (
        select q.code, esl.hindrance(q, m) as hindrance
        from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
        where q.store_code = v_store and q.code = any (v_codes)
    ), due as (
        update esl.sync_queue q
        set redo = q.redo or q.state = 'leased',
            attempts = case when q.state = 'leased' then q.attempts else 0 end,
            state = case when q.state = 'leased' then q.state else 'ready' end, refusals = 0, refused_at = null,
            next_attempt_at = now(), max_batch = 1000,
            cause = case when q.state = 'leased' then q.cause else 'push again' end
        from queued k
        where q.store_code = v_store and q.code = k.code and coalesce(k.hindrance, 'under_way') = 'under_way'
    )
    select jsonb_build_object('labels', cardinality(v_codes),
               'already_due', count(*) filter (where hindrance is null),
               'under_way', count(*) filter (where hindrance = 'under_way'),
               'waits_for_window', count(*) filter (where hindrance = 'waits_for_window'),
               'waits_for_approval', count(*) filter (where hindrance = 'waits_for_approval'),
               'rejected', count(*) filter (where hindrance = 'rejected'),
               'held_back', cardinality(v_codes) - count(*), 'paused', esl.store_is_paused(v_store))
    into v_answer from queued;
    v_again := esl.push_once_more(v_store, v_codes);
    perform pg_notify('esl_inbox', '');  -- wakes a drain that waits
    return esl.keep_action(p, 'push', v_again + (v_answer ->> 'already_due')::int, v_answer || jsonb_build_object(
        'pushed_again', v_again, 'held_back', (v_answer ->> 'held_back')::int - v_again));
end $$;

-- Whether somebody has paused a store. (That refusals have is esl.store_health.)
create or replace function esl.store_is_paused(p_store text) returns boolean
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return exists (select from esl.store_pauses s
                   where s.store_code = p_store and s.ended_at is null and coalesce(s.until > clock_timestamp(), true));
end $$;

-- The pause of a store that holds now, for people: {since, until, reason, by}, or null.
create or replace function esl.pause_of(p_store text) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('since', s.since, 'until', s.until, 'reason', s.reason, 'by', s.by)
    from esl.store_pauses s
    where s.store_code = p_store and s.ended_at is null and coalesce(s.until > clock_timestamp(), true)
$$;

-- {store, reason, until?} -> {store_code, since, until, reason, by}: nothing is pushed to a store until then, or until
-- somebody resumes it: what is under way ends, and what comes waits. Another pause takes the place of the one before.
create or replace function public.esl_operator_pause(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_answer jsonb := esl.answered(p, 'pause'); v_until timestamptz := (p ->> 'until')::timestamptz;
    v_now timestamptz := clock_timestamp();
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_store(p ->> 'store');
    if v_until <= v_now then
        perform esl.refuse_action(format('a pause until %s would be over already', esl.utc(v_until)));
    end if;
    perform esl.lock_stores(array[p ->> 'store']);
    update esl.store_pauses set ended_at = least(until, v_now),
           ended_by = case when until <= v_now then 'its end' else esl.actor(p) end
    where store_code = p ->> 'store' and ended_at is null;
    insert into esl.store_pauses (store_code, since, until, reason, by, verified, run_id)
    values (p ->> 'store', v_now, v_until, trim(p ->> 'reason'), esl.actor(p),
            coalesce((p ->> 'verified')::boolean, false), p ->> 'run_id');
    return esl.keep_action(p, 'pause', 1, jsonb_build_object('store_code', p ->> 'store')
                                          || esl.pause_of(p ->> 'store'));
end $$;

-- {store} -> {store_code, since, until, reason, by, waiting}: ends the pause of a store. waiting: labels that go out.
create or replace function public.esl_operator_resume(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_answer jsonb := esl.answered(p, 'resume'); v_pause jsonb; v_waiting bigint;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_store(p ->> 'store');
    perform esl.lock_stores(array[p ->> 'store']);
    v_pause := esl.pause_of(p ->> 'store');
    if v_pause is null then
        perform esl.refuse_action(format('store %s is not paused', p ->> 'store'));
    end if;
    update esl.store_pauses set ended_at = clock_timestamp(), ended_by = esl.actor(p)
    where store_code = p ->> 'store' and ended_at is null;
    select count(*) into v_waiting from esl.sync_queue q where q.store_code = p ->> 'store' and q.state = 'ready';
    perform pg_notify('esl_inbox', '');
    return esl.keep_action(p, 'resume', 1, jsonb_build_object('store_code', p ->> 'store', 'waiting', v_waiting)
                                           || v_pause);
end $$;

-- {store?, limit} -> {pauses: [{store_code, since, until, reason, by, verified, run_id, ended_at, ended_by, holds}]},
-- newest first. One that has ended by itself has its end as ended_at.
create or replace function public.esl_operator_pauses(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('pauses', coalesce(jsonb_agg(to_jsonb(t) - 'id' order by t.id desc), '[]')) from (
        select s.id, s.store_code, s.since, s.until, s.reason, s.by, s.verified, s.run_id,
               coalesce(s.ended_at, case when s.until <= clock_timestamp() then s.until end) as ended_at,
               coalesce(s.ended_by, case when s.until <= clock_timestamp() then 'its end' end) as ended_by,
               s.ended_at is null and coalesce(s.until > clock_timestamp(), true) as holds
        from esl.store_pauses s where p ->> 'store' is null or s.store_code = p ->> 'store'
        order by s.id desc limit (p ->> 'limit')::int) t
$$;

-- The finished deliveries that are meant (p: as for esl_operator_replay), and those that wait anyway.
create or replace function esl.meant_deliveries(p jsonb) returns table (id bigint, state text, has_body boolean)
language sql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
    with named as (
        select i.id from esl.webhook_inbox i where p ? 'ids' and i.id in (
            select n.name::bigint from jsonb_array_elements_text(p -> 'ids') as n (name)
            where n.name ~ '^[0-9]{1,18}$')
        union
        select i.id from esl.webhook_inbox i
        where p ? 'ids' and i.webhook_id in (select jsonb_array_elements_text(p -> 'ids'))
    )
    select i.id, i.state, i.body is not null from esl.webhook_inbox i
    where (not p ? 'ids' or i.id in (select n.id from named n))
      and (p -> 'shop' is null or (i.source_system, i.source_store_id)
           = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
      and (p ->> 'since' is null or i.received_at >= (p ->> 'since')::timestamptz)
      and (p ->> 'until' is null or i.received_at < (p ->> 'until')::timestamptz)
      and (p ->> 'reason' is null or strpos(lower(i.reason), lower(p ->> 'reason')) > 0)
      and (p ->> 'state' is null or i.state = p ->> 'state')
    order by i.id limit (p ->> 'limit')::int + 1
$$;

-- Refuses what names no delivery.
create or replace function esl.need_deliveries(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare v_unknown text[];
begin
    if not p ?| '{ids,shop,since,until,reason,state}' then
        perform esl.refuse_action('say which deliveries: by id, shop, time, reason or state');
    elsif p ? 'shop' and not exists (
            select from esl.shop_deliveries d where d.source_system = p #>> '{shop,source_system}'
              and d.source_store_id = p #>> '{shop,source_store_id}') and not esl.is_mapped(
            p #>> '{shop,source_system}', p #>> '{shop,source_store_id}') then
        perform esl.refuse_action(format('nothing is known of a shop %s', p #>> '{shop,source_store_id}'));
    elsif not coalesce(p ->> 'state' in ('done', 'superseded', 'unusable', 'dead'), true) then
        perform esl.refuse_action('a delivery that has ended is done, superseded, unusable or dead');
    end if;
    v_unknown := array(
        select n.name from jsonb_array_elements_text(coalesce(p -> 'ids', '[]')) as n (name)
        where not exists (select from esl.webhook_inbox i where i.webhook_id = n.name)
          and not exists (select from esl.webhook_inbox i where n.name ~ '^[0-9]{1,18}$'
                          and i.id = (case when n.name ~ '^[0-9]{1,18}$' then n.name end)::bigint));
    if v_unknown <> '{}' then
        perform esl.refuse_action(format('there is no delivery %s: nothing was done', esl.some_of(v_unknown)));
    end if;
end $$;

-- {ids?, shop?, since?, until?, reason?, state?, limit, dry_run?} -> {deliveries, without_body, waiting, more}:
-- finished deliveries are read again, as if they had just come. What they tell is compared with what is known by now,
-- so an older one changes nothing.
create or replace function public.esl_operator_replay(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare v_answer jsonb := esl.answered(p, 'replay'); v_ids bigint[]; v_found bigint;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_deliveries(p);
    with meant as materialized (
        select d.*, row_number() over (order by d.id) as n from esl.meant_deliveries(p) d
    ), within as (
        select * from meant where n <= (p ->> 'limit')::int
    )
    select array(select w.id from within w where w.has_body and w.state not in ('ready', 'leased')),
           count(*), jsonb_build_object(
               'without_body', count(*) filter (where not has_body and state not in ('ready', 'leased')),
               'waiting', count(*) filter (where state in ('ready', 'leased')),
               'more', (select count(*) from meant) > count(*))
    into v_ids, v_found, v_answer from within;
    if v_found = 0 then
        perform esl.refuse_action('no delivery is so: nothing was done');
    end if;
    v_answer := v_answer || jsonb_build_object('deliveries', cardinality(v_ids));
    if coalesce((p ->> 'dry_run')::boolean, false) then
        return v_answer;
    end if;
    perform esl.read_again(v_ids);
    perform pg_notify('esl_inbox', '');
    return esl.keep_action(p, 'replay', cardinality(v_ids), v_answer);
end $$;

-- Refuses names of stores, labels and reasons that nothing has (p: as for esl_redrive).
create or replace function esl.need_redrivable(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    if p ->> 'store' is not null then
        perform esl.need_store(p ->> 'store');
    end if;
    if p ->> 'code' is not null and not exists (
            select from (select l.store_code from esl.labels l where l.code = p ->> 'code'
                         union all select q.store_code from esl.sync_queue q where q.code = p ->> 'code'
                         union all select s.store_code from esl.hipoink_products s where s.code = p ->> 'code') k
            where p ->> 'store' is null or k.store_code = p ->> 'store') then
        perform esl.refuse_action(format('nothing is known of a label %s%s', p ->> 'code',
                                         ' in store ' || (p ->> 'store')));
    end if;
end $$;

-- The labels that are meant: refused, failed and dead (p: as for esl_redrive).
create or replace function esl.redrivable(p jsonb) returns setof esl.sync_queue
language sql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
    select q.* from esl.sync_queue q
    where (q.state in ('failed', 'dead') or (q.state = 'ready' and q.refused_at is not null))
      and (p ->> 'store' is null or q.store_code = p ->> 'store') and (p ->> 'code' is null or q.code = p ->> 'code')
      and (p ->> 'reason' is null or strpos(lower(q.last_error), lower(p ->> 'reason')) > 0)
$$;

-- Whatever keeps label servers and stores from being tried is over (p: as for esl_redrive).
create or replace function esl.forget_waits(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    if not p ?| '{store,code,reason}' then
        update esl.label_servers set probe_at = now() where probe_at > now();
        update esl.refresh_marks set lease_until = now() where lease_until is not null;
    end if;
    if not p ?| '{code,reason}' then
        update esl.store_health
        set refusals = 0, refused_at = null, pauses = 0, until = null, reason = null, unanswered = false
        where p ->> 'store' is null or store_code = p ->> 'store';
    end if;
end $$;

-- {store?, code?, reason?} -> {labels, deliveries}: refused, failed and dead pushes, and dead deliveries (without store
-- and code), are due again with a clean count of attempts; without code and reason, stores that pause are tried at
-- once. reason: part of what was said last of them. A delivery whose body is no longer kept stays dead.
create or replace function public.esl_redrive(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_answer jsonb := esl.answered(p, 'redrive'); v_labels int; v_deliveries bigint[] := '{}';
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_redrivable(p);
    perform esl.lock_stores(array(
        select distinct q.store_code from esl.sync_queue q
        where q.state in ('ready', 'failed', 'dead') and (p ->> 'store' is null or q.store_code = p ->> 'store')));
    perform esl.forget_waits(p);
    update esl.sync_queue q
    set state = 'ready', attempts = 0, refusals = 0, refused_at = null, next_attempt_at = now(), max_batch = 1000,
        cause = 'redrive'
    from esl.redrivable(p) r where q.code = r.code and q.store_code = r.store_code;
    get diagnostics v_labels = row_count;
    if not p ?| '{store,code}' then
        v_deliveries := array(
            select i.id from esl.webhook_inbox i where i.state = 'dead' and i.body is not null
              and (p ->> 'reason' is null or strpos(lower(i.reason), lower(p ->> 'reason')) > 0));
        perform esl.read_again(v_deliveries);
    end if;
    if p ? 'reason' and v_labels + cardinality(v_deliveries) = 0 then
        perform esl.refuse_action(format('of nothing that was refused or given up the reason has %s in it',
                                         to_json(p ->> 'reason')));
    end if;
    perform pg_notify('esl_inbox', '');
    return esl.keep_action(p, 'redrive', v_labels + cardinality(v_deliveries),
                           jsonb_build_object('labels', v_labels, 'deliveries', cardinality(v_deliveries)));
end $$;

-- {label_server, label_servers?} -> {label_server, was_down, since, waiting}: the wait is over until a label server
-- that is down is tried again: one label goes out at once, and if that passes the others. label_servers: those that the
-- settings name. waiting: labels that wait for it.
create or replace function public.esl_operator_try(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_answer jsonb := esl.answered(p, 'try'); v_name text := p ->> 'label_server'; s esl.label_servers;
    v_waiting bigint;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    select * into s from esl.label_servers l where l.server = v_name for update;
    if not found and not coalesce(p -> 'label_servers' ? v_name, false)
       and not exists (select from esl.stores t where t.label_server = v_name) then
        perform esl.refuse_action(format('there is no label server %s: see `esl-pipeline status`', v_name));
    end if;
    -- What it could not take waits until then as well.
    update esl.sync_queue q set next_attempt_at = now()
    where s.down_since is not null and q.state = 'ready' and q.next_attempt_at > now()
      and q.next_attempt_at <= s.probe_at and esl.server_of(q.store_code) = v_name;
    update esl.label_servers set probe_at = now() where server = v_name and down_since is not null;
    select count(*) into v_waiting from esl.sync_queue q
    where q.state = 'ready' and esl.server_of(q.store_code) = v_name;
    perform pg_notify('esl_inbox', '');
    return esl.keep_action(p, 'try', 1, jsonb_build_object(
        'label_server', v_name, 'was_down', s.down_since is not null, 'since', s.down_since, 'waiting', v_waiting));
end $$;

-- Removals of a store that waited and then the guard held back are approved: they wait once more, so that a mistaken
-- approval can be taken back as well.
create or replace function esl.wait_again(p_store text) returns void
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_codes text[];
begin
    with again as (
        update esl.graces g set since = clock_timestamp(), approved = true from esl.sync_queue q
        where q.store_code = p_store and q.operation = 'delete' and q.approved and q.state = 'ready'
          and g.code = q.code and g.store_code = q.store_code and not g.approved
        returning g.code
    ) select array_agg(code) into v_codes from again;
    perform esl.requeue(array_fill(p_store, array[coalesce(cardinality(v_codes), 0)]), v_codes, 'approval');
end $$;

-- The price that a queued change leads to; null: no label, or a blank one.
create or replace function esl.price_after(q esl.sync_queue) returns text
language sql stable set search_path = '' as $$
    select case when not esl.is_blanked(q.label_hash) then esl.price_of(q.label)::text end
$$;

-- Refuses codes of a store that do not wait for somebody's word, or are other changes than were looked at ({store,
-- codes?, seen?: {code: [kind, after]}}; see esl_operator_changes).
create or replace function esl.need_changes(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare v_others text[] := array(
    select c.code from jsonb_array_elements_text(coalesce(p -> 'codes', '[]')) as c (code)
    where not exists (select from esl.sync_queue q where q.store_code = p ->> 'store' and q.code = c.code
                      and q.drastic is not null and q.state = 'guarded') order by 1);
begin
    if v_others <> '{}' then
        perform esl.refuse_action(format('of store %s no change of %s waits for approval: see `esl-pipeline changes '
                                         'list`; nothing was done', p ->> 'store', esl.some_of(v_others)));
    end if;
    v_others := array(
        select s.code from jsonb_each(p -> 'seen') as s (code, change)
        join esl.sync_queue q on q.store_code = p ->> 'store' and q.code = s.code
        where s.change <> jsonb_build_array(q.drastic, esl.price_after(q)) order by 1);
    if v_others <> '{}' then
        perform esl.refuse_action(format('of store %s %s changed since you looked: look again; nothing was done',
                                         p ->> 'store', esl.some_of(v_others)));
    end if;
end $$;

-- {store, codes?, seen?, by} -> {removals, prices}: the drastic changes of a store that wait may go on, these
-- (rejected ones as well), or all but the rejected ones. Kept in esl.approvals.
create or replace function public.esl_changes_approve(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_answer jsonb := esl.answered(p, 'approve'); v_removals int; v_prices int;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_store(p ->> 'store');
    perform esl.lock_stores(array[p ->> 'store']);
    perform esl.need_changes(p);
    with released as (
        update esl.sync_queue
        set state = 'ready', approved = true, next_attempt_at = now(), rejected_at = null,
            cause = 'approval'
        where store_code = p ->> 'store' and drastic is not null and state = 'guarded'
          and case when p ? 'codes' then p -> 'codes' ? code else rejected_at is null end
        returning drastic
    )
    select count(*) filter (where drastic = 'removal'), count(*) filter (where drastic = 'price')
    into v_removals, v_prices from released;
    if v_removals + v_prices > 0 then
        insert into esl.approvals (store_code, removals, prices, by, codes)
        values (p ->> 'store', v_removals, v_prices, esl.actor(p),
                case when p ? 'codes' then array(select jsonb_array_elements_text(p -> 'codes')) end);
        perform esl.wait_again(p ->> 'store');
        perform pg_notify('esl_inbox', '');
    end if;
    return esl.keep_action(p, 'approve', v_removals + v_prices,
                           jsonb_build_object('removals', v_removals, 'prices', v_prices));
end $$;

-- {store, codes, seen?, reason?} -> {removals, prices}: these drastic changes are not made: their labels stay as they
-- are until something else is wanted of them (see esl.requeue), or somebody approves them after all.
create or replace function public.esl_operator_reject(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_answer jsonb := esl.answered(p, 'reject'); v_removals int; v_prices int;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.need_store(p ->> 'store');
    perform esl.lock_stores(array[p ->> 'store']);
    perform esl.need_changes(p);
    with rejected as (
        update esl.sync_queue
        set rejected_at = clock_timestamp(), rejected_by = esl.actor(p), rejection = p ->> 'reason'
        where store_code = p ->> 'store' and drastic is not null and state = 'guarded' and p -> 'codes' ? code
        returning drastic
    )
    select count(*) filter (where drastic = 'removal'), count(*) filter (where drastic = 'price')
    into v_removals, v_prices from rejected;
    return esl.keep_action(p, 'reject', v_removals + v_prices,
                           jsonb_build_object('removals', v_removals, 'prices', v_prices));
end $$;

-- {store?, after?: [store, code], limit} -> {changes: [{store_code, code, variant_id, source_store_id, title,
-- variant_title, kind, operation, before, after, since, rejected_at, rejected_by, reason}]}: what waits for somebody's
-- word, or was rejected. before, after: prices; null: no label, or a blank one.
create or replace function public.esl_operator_changes(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
    select jsonb_build_object('changes', coalesce(jsonb_agg(to_jsonb(t) order by t.store_code, t.code collate "C"),
                                                  '[]'))
    from (
        select q.store_code, q.code, q.variant_id, m.source_store_id, o.title, o.variant_title, q.drastic as kind,
               q.operation, esl.price_of(s.label)::text as before,
               esl.price_after(q) as after,
               q.created_at as since, q.rejected_at,
               case when q.rejected_at is not null then q.rejected_by end as rejected_by,
               case when q.rejected_at is not null then q.rejection end as reason
        from esl.sync_queue q
        join esl.store_mappings m on m.id = q.mapping_id
        left join esl.hipoink_products s on s.code = q.code and s.store_code = q.store_code
        left join esl.products o on o.variant_id = q.variant_id and o.source_store_id = m.source_store_id
                                and o.source_system = m.source_system
        where q.drastic is not null and q.state = 'guarded'
          and (p ->> 'store' is null or q.store_code = p ->> 'store')
          and (p -> 'after' is null or (q.store_code, q.code collate "C") > (p #>> '{after,0}', p #>> '{after,1}'))
        order by q.store_code, q.code collate "C" limit (p ->> 'limit')::int) t
$$;

-- {store?, action?, limit} -> {actions: [{at, by, verified, db_user, run_id, action, store_code, asked, answer,
-- how_many}]}: what operators did, newest first.
create or replace function public.esl_operator_actions(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('actions', coalesce(jsonb_agg(to_jsonb(a) - 'id' order by a.id desc), '[]')) from (
        select * from esl.operator_actions o
        where (p ->> 'store' is null or o.store_code = p ->> 'store')
          and (p ->> 'action' is null or o.action = p ->> 'action')
        order by o.id desc limit (p ->> 'limit')::int) a
$$;
