-- Why a label shows what it shows, and what a webhook, a run or a push has done: for `trace` and the console. Reads the
-- audit, changes nothing. How it is told is in model/telling.py.

-- From which row of a place's audit on its story is read: the newest p_limit pushes up to a time (not older than
-- p_since), and the push that brought the price before the one that it held then, if it is among the last 500 pushes.
create or replace function esl.story_from(p_store text, p_code text, p_at timestamptz, p_since timestamptz, p_limit int)
returns table (first_push bigint, price_before bigint)
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare v_last esl.sync_log; v_price numeric;
begin
    select min(n.id) into first_push from (
        select l.id from esl.sync_log l
        where l.code = p_code and l.store_code = p_store and l.kind = 'intent' and l.at <= p_at
          and l.at >= coalesce(p_since, '-infinity')
        order by l.id desc limit p_limit) n;
    select i.* into v_last from esl.accepted_push(p_store, p_code, p_at) a
    join esl.sync_log i on i.id = a.id;
    v_price := case when v_last.operation = 'upsert' then esl.price_of(v_last.label) end;
    select n.id into price_before from (
        select l.* from esl.sync_log l
        where l.code = p_code and l.store_code = p_store and l.id < v_last.id and l.kind = 'intent'
        order by l.id desc limit 500) n
    where (n.operation = v_last.operation
           and (n.operation = 'delete' or esl.price_of(n.label) is not distinct from v_price)) is not true
      and exists (select from esl.sync_log r where r.code = p_code and r.store_code = p_store and r.id > n.id
                  and r.kind = 'result' and r.push_id = n.push_id and r.outcome = 'accepted' offset 0)
    order by n.id desc limit 1;
    price_before := coalesce(price_before, v_last.id);
    return next;
end $$;

-- The intent of the newest push of a place that was accepted by a time.
create or replace function esl.accepted_push(p_store text, p_code text, p_at timestamptz) returns table (id bigint)
language sql stable set search_path = '' as $$
    select i.id from (
        select l.id, l.push_id from esl.sync_log l
        where l.code = p_code and l.store_code = p_store and l.kind = 'result' and l.outcome = 'accepted'
          and l.at <= p_at
        order by l.id desc limit 1) r
    cross join lateral (
        select l.id from esl.sync_log l
        where l.code = p_code and l.store_code = p_store and l.id < r.id and l.kind = 'intent'
          and l.push_id = r.push_id
        order by l.id desc limit 1) i
$$;

-- The rows of a place's audit that its story up to a time is told from, oldest first: from the newest pushes on, what
-- brought its price and the one before, and what is known a little later of what was under way then.
create or replace function esl.story_log(p_store text, p_code text, p_at timestamptz, p_since timestamptz, p_limit int)
returns setof esl.sync_log
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare b record; v_ids bigint[]; v_pushes uuid[];
begin
    select f.* into b from esl.story_from(p_store, p_code, p_at, p_since, p_limit) f;
    select array_agg(u.id), array_agg(u.push_id) into v_ids, v_pushes from (
        (select l.id, l.push_id from esl.sync_log l
         where l.code = p_code and l.store_code = p_store and l.id >= b.first_push and l.at <= p_at
         order by l.id desc limit 3 * p_limit)
        union
        (select l.id, l.push_id from esl.sync_log l
         where l.code = p_code and l.store_code = p_store and l.id >= b.price_before and l.at <= p_at
         order by l.id limit 12)
        union
        (select l.id, l.push_id from esl.sync_log l
         where l.code = p_code and l.store_code = p_store and l.at <= p_at order by l.id desc limit 12)) u;
    return query
        select l.* from esl.sync_log l where l.id = any (v_ids)
        union all
        select l.* from (
            select n.* from esl.sync_log n
            where n.code = p_code and n.store_code = p_store and n.id > (select max(i) from unnest(v_ids) i)
            order by n.id limit 200) l
        where l.at > p_at and l.push_id = any (v_pushes)
        order by 1;
end $$;

-- What was found to differ at a place up to a time, and next after it, if before another push was accepted there: then
-- what hung at that time may have been that already.
create or replace function esl.story_drift(p_store text, p_code text, p_from timestamptz, p_at timestamptz)
returns setof esl.drift
language sql stable set search_path = '' as $$
    (select d.* from esl.drift d
     where d.code = p_code and d.store_code = p_store and d.at >= p_from and d.at <= p_at order by d.id desc limit 50)
    union all
    (select d.* from esl.drift d
     where d.code = p_code and d.store_code = p_store and d.at > p_at
       and d.at < coalesce((select l.at from esl.sync_log l
                            where l.code = p_code and l.store_code = p_store and l.at > p_at
                              and l.outcome = 'accepted' order by l.id limit 1), 'infinity')
     order by d.id limit 1)
$$;

-- When the labels of a store were told to be refreshed first after that; null: not yet.
create or replace function esl.triggered_after(p_store text, p_at timestamptz) returns timestamptz
language sql stable set search_path = '' as $$
    select x.begun_at from esl.refreshes x
    where x.store_code = p_store and x.outcome = 'accepted' and x.begun_at >= p_at order by x.begun_at limit 1
$$;

-- How far the price of a product is known to have come now (see functions/ladder.sql); null: it is in no ledger.
create or replace function esl.rung_of(p_store text, p_code text) returns int
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (select max(g.rung) from esl.rungs(array(select r from esl.shelf(p_store, p_code) r)) g
            where g.code = p_code);
end $$;

-- Whether the newest comparison has left a label as the server lists it: its repair did not hold three times.
create or replace function esl.is_given_up(p_store text, p_code text) returns boolean
language sql stable set search_path = '' as $$
    select exists (
        select from esl.comparisons c
        where c.store_code = p_store and c.complete and c.given_up > 0
          and (select count(*) from esl.drift d
               where d.code = p_code and d.store_code = p_store and d.at < c.at
                 and d.at > c.at - interval '14 days') >= 3)
$$;

-- The deliveries behind these rows.
create or replace function esl.deliveries_of(p_ids bigint[]) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(jsonb_build_object(
               'id', i.id, 'topic', i.topic, 'webhook_id', i.webhook_id, 'triggered_at', i.triggered_at,
               'received_at', i.received_at, 'finished_at', i.finished_at, 'state', i.state, 'reason', i.reason,
               'run_id', i.run_id, 'source_store_id', i.source_store_id) order by i.id desc), '[]')
    from esl.webhook_inbox i where i.id = any (p_ids)
$$;

-- What people have done that bears on these rows of a place: the newest changes of their mappings until then, approvals
-- in its store and looks at its label from then to then.
create or replace function esl.story_people(p_store text, p_code text, p_log esl.sync_log[], p_from timestamptz,
                                            p_at timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'changes', (select coalesce(jsonb_agg(to_jsonb(c) order by c.id), '[]') from (
            select c.id, c.at, c.by, c.mapping_id, c.old, c.new from esl.mapping_changes c
            where c.mapping_id in (select l.mapping_id from unnest(p_log) l) and c.at <= p_at
            order by c.id desc limit 20) c),
        'approvals', (select coalesce(jsonb_agg(jsonb_build_object('at', a.at, 'by', a.by) order by a.id), '[]')
            from esl.approvals a
            where a.store_code = p_store and a.at between p_from and p_at
              and 'approval' in (select l.cause from unnest(p_log) l)),
        'seen', (select coalesce(jsonb_agg(to_jsonb(s) order by s.at), '[]') from (
            select s.at, s.by, s.label_hash is not null as is_right from esl.seen_labels s
            where s.code = p_code and s.store_code = p_store and s.at between p_from and p_at
            order by s.at desc limit 20) s))
$$;

-- The story of a place (p: as for esl_story), as rows.
create or replace function esl.story_of(p_store text, p_code text, p jsonb) returns jsonb
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
    v_at    timestamptz := coalesce((p ->> 'at')::timestamptz, clock_timestamp());
    v_since timestamptz := (p ->> 'since')::timestamptz;
    v_log   esl.sync_log[] := array(select l from esl.story_log(p_store, p_code, v_at, v_since,
                                                                (p ->> 'limit')::int) l);
    v_from  timestamptz;
    v_whole boolean;
begin
    v_whole := not exists (select from esl.sync_log l where l.code = p_code and l.store_code = p_store
                           and l.at <= v_at and l.id < v_log[1].id);
    -- What was found, or changed, right before it was queued may be why.
    v_from := case when v_whole then '-infinity'
              else coalesce(v_log[1].queued_at, v_log[1].at) - interval '1 s' end;
    return jsonb_build_object(
        'store_code', p_store, 'code', p_code, 'label_server', esl.server_of(p_store), 'from', v_since,
        'is_whole', v_whole,
        'is_known', exists (select from esl.labels b where b.code = p_code and b.store_code = p_store)
                    or exists (select from esl.hipoink_products s where s.code = p_code and s.store_code = p_store),
        'title', (select o.title from esl.labels b join esl.store_mappings m on m.id = b.mapping_id
                  join esl.products o on o.variant_id = b.variant_id and o.source_store_id = m.source_store_id
                                     and o.source_system = m.source_system
                  where b.code = p_code and b.store_code = p_store order by b.state = 'publish' desc limit 1),
        'log', (select coalesce(jsonb_agg(to_jsonb(l) || jsonb_build_object(
                        'price', esl.price_of(l.label)::text, 'is_blank', esl.is_blanked(l.label_hash),
                        'triggered_at', case when l.outcome = 'accepted' then esl.triggered_after(p_store, l.at) end)
                    order by l.id), '[]') from unnest(v_log) l),
        'drift', (select coalesce(jsonb_agg(to_jsonb(d) || jsonb_build_object(
                        'price', esl.price_of(d.theirs)::text, 'price_ours', esl.price_of(d.ours)::text)
                    order by d.id), '[]') from esl.story_drift(p_store, p_code, v_from, v_at) d),
        'deliveries', esl.deliveries_of(array(select distinct e.id from unnest(v_log) l, unnest(l.event_ids) e (id))),
        'rung', case when p ->> 'at' is null then esl.rung_of(p_store, p_code) end,
        'queue', (select to_jsonb(q) || jsonb_build_object('price', esl.price_of(q.label)::text,
                                                           'is_blank', esl.is_blanked(q.label_hash))
                  from esl.sync_queue q where q.code = p_code and q.store_code = p_store),
        'is_given_up', p ->> 'at' is null and esl.is_given_up(p_store, p_code),
        'grace', (select to_jsonb(g) from esl.graces g where g.code = p_code and g.store_code = p_store))
        || esl.story_people(p_store, p_code, v_log, v_from, v_at);
end $$;

-- {places: [{store_code, code}], at?, since?, limit} -> {places: [{store_code, code, label_server, title, is_known,
--   is_whole, from, rung, log, drift, deliveries, changes, approvals, seen, queue, is_given_up,
--   grace}]}: what each place showed up to a time, and why, as rows (model/telling.py tells it). log, drift:
-- oldest first, is_whole: nothing is older.
create or replace function public.esl_story(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('places', coalesce(jsonb_agg(
        esl.story_of(k.place ->> 'store_code', k.place ->> 'code', p) order by k.n), '[]'))
    from jsonb_array_elements(p -> 'places') with ordinality as k (place, n)
$$;

-- Places that go by a name: as code, as SKU, variant id or physical label that leads to one (how), in a store or all.
create or replace function esl.places_named(p_name text, p_store text)
returns table (store_code text, code text, how text)
language sql stable set search_path = '' as $$
    with variants as (
        select o.variant_id, 'SKU' as how from esl.products o where o.sku = p_name
        union select p_name, 'variant'
    ), found as (
        select b.store_code, b.code, 'code' as how from esl.labels b where b.code = p_name
        union all select s.store_code, s.code, 'code' from esl.hipoink_products s where s.code = p_name
        union all select d.store_code, d.code, 'code' from esl.drift d where d.code = p_name
        union all select c.store_code, p_name, 'code' from esl.stores_of_code(p_name) c
        union all select b.store_code, b.code, v.how from variants v join esl.labels b on b.variant_id = v.variant_id
        union all select s.store_code, s.code, v.how
                  from variants v join esl.hipoink_products s on s.variant_id = v.variant_id
        union all select l.store_code, l.code, v.how from variants v join esl.sync_log l on l.variant_id = v.variant_id
                  where l.kind = 'intent'
        union all select d.store_code, d.product_code, 'label' from esl.devices d where d.esl_code = p_name
        union all select c.store_code, b.code, 'label' from esl.device_changes c
                  cross join lateral (values (c.old), (c.new)) b (code)
                  where c.esl_code = p_name and c.what = 'binding'
    )
    select f.store_code, f.code, min(f.how) from found f
    where f.code is not null and (p_store is null or f.store_code = p_store) group by 1, 2 order by 1, 2
$$;

-- The stores in which a code was pushed or waits, each found by one look into the audit.
create or replace function esl.stores_of_code(p_code text) returns table (store_code text)
language sql stable set search_path = '' as $$
    with recursive next as (
        (select l.store_code from esl.sync_log l where l.code = p_code order by l.store_code limit 1)
        union all
        select (select l.store_code from esl.sync_log l where l.code = p_code and l.store_code > n.store_code
                order by l.store_code limit 1) from next n where n.store_code is not null
    )
    select n.store_code from next n where n.store_code is not null
    union select q.store_code from esl.sync_queue q where q.code = p_code
$$;

-- What pushes came to, for people: these intents, each with its first result and the price that it brought.
create or replace function esl.pushed(p_intents esl.sync_log[]) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'store_code', i.store_code, 'code', i.code, 'operation', i.operation, 'price', esl.price_of(i.label)::text,
        'is_blank', esl.is_blanked(i.label_hash), 'cause', i.cause, 'attempt', i.attempt, 'push_id', i.push_id,
        'run_id', i.run_id, 'queued_at', i.queued_at, 'sent_at', i.at, 'ended_at', r.at, 'outcome', r.outcome,
        'message', r.message, 'event_ids', i.event_ids,
        'triggered_at', case when r.outcome = 'accepted' then esl.triggered_after(i.store_code, r.at) end)
        order by i.id desc), '[]')
    from unnest(p_intents) i
    left join lateral (select l.at, l.outcome, l.message from esl.sync_log l
                       where l.code = i.code and l.store_code = i.store_code and l.id > i.id and l.kind = 'result'
                         and l.push_id = i.push_id order by l.id limit 1) r on true
$$;

-- From a delivery forward: the variants that it told of, the pushes that carried its words, and what of that waits.
create or replace function esl.forward(i esl.webhook_inbox, p_limit int) returns jsonb
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_id text := substring(i.thing from '^[a-z_]+:(.*)$');
    v_variants text[] := array(
        select o.variant_id from esl.products o
        where o.source_system = i.source_system and o.source_store_id = i.source_store_id
          and (i.thing like 'product:%' and o.product_id = v_id
               or i.thing like 'inventory\_item:%' and o.inventory_item_id = v_id));
begin
    return jsonb_build_object(
        'variants', cardinality(v_variants),
        'pushes', esl.pushed(array(
            select l from esl.sync_log l
            where l.variant_id = any (v_variants) and l.kind = 'intent' and l.event_ids @> array[i.id]
            order by l.id desc limit p_limit)),
        'waiting', (select coalesce(jsonb_agg(jsonb_build_object(
                        'store_code', q.store_code, 'code', q.code, 'state', q.state, 'operation', q.operation,
                        'price', esl.price_of(q.label)::text, 'last_error', q.last_error)), '[]')
                    from esl.sync_queue q where q.variant_id = any (v_variants) and q.event_ids @> array[i.id]));
end $$;

-- {name, store?, limit} -> {places: [{store_code, code, how}], webhooks: [{id, topic, …, variants, pushes, waiting}],
--   pushes: [...], pushed, drift: [...]}: what a name means: places that go by it, deliveries of this webhook id with
-- what came of them, the newest pushes of this run, or of this push (pushed: how many there are by outcome), and what
-- this run found to differ.
create or replace function public.esl_trace_find(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_name text := p ->> 'name'; v_limit int := (p ->> 'limit')::int;
    v_push uuid := case when v_name ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then v_name::uuid end;
begin
    return jsonb_build_object(
        'places', (select coalesce(jsonb_agg(to_jsonb(n)), '[]') from (
            select * from esl.places_named(v_name, p ->> 'store') limit v_limit) n),
        'webhooks', (select coalesce(jsonb_agg(jsonb_build_object(
                'id', i.id, 'webhook_id', i.webhook_id, 'topic', i.topic, 'source_store_id', i.source_store_id,
                'triggered_at', i.triggered_at, 'received_at', i.received_at, 'finished_at', i.finished_at,
                'state', i.state, 'reason', i.reason, 'run_id', i.run_id, 'thing', i.thing)
                || esl.forward(i, v_limit) order by i.id desc), '[]')
            from esl.webhook_inbox i where i.webhook_id = v_name),
        'pushes', esl.pushed(array(
            (select l from esl.sync_log l where l.run_id = v_name and l.kind = 'intent'
             order by l.id desc limit v_limit)
            union all
            (select l from esl.sync_log l where l.push_id = v_push and l.kind = 'intent'
             order by l.id desc limit v_limit))),
        'pushed', (select count(*) from esl.sync_log l where l.run_id = v_name and l.kind = 'intent'),
        'drift', (select coalesce(jsonb_agg(to_jsonb(d) || jsonb_build_object(
                      'price', esl.price_of(d.theirs)::text, 'price_ours', esl.price_of(d.ours)::text)
                      order by d.id desc), '[]')
                  from (select * from esl.drift d where d.run_id = v_name order by d.id desc limit v_limit) d));
end $$;
