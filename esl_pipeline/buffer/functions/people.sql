-- For people: how things stand, what was found, what a push would change, and their word on what waits.

-- When a field of a mapping became what it is, and by whom: {at, by}.
create or replace function esl.last_set(p_mapping uuid, p_field text) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('at', c.at, 'by', c.by) from esl.mapping_changes c
    where c.mapping_id = p_mapping and c.new -> p_field is distinct from c.old -> p_field
    order by c.id desc limit 1
$$;

-- How the labels of these mappings stand, for esl_status. Of the queue: what waits for its window alone (window, until
-- window_opens) is not among what waits.
create or replace function esl.store_states(p jsonb) returns jsonb
language sql stable set search_path = '' as $$
    with mappings as materialized (
        select m.id, esl.window_opens(m.settings -> 'raise_window') as opens from esl.chosen_mappings(p) m
    ), shown as (
        select mapping_id, count(*) as on_labels, max(accepted_at) as last_accepted_at
        from esl.hipoink_products where mapping_id in (select id from mappings) group by 1
    ), held as (
        select mapping_id, count(*) as held_back
        from esl.labels where (state = 'held' or collides) and mapping_id in (select id from mappings) group by 1
    ), queues as (
        select q.mapping_id, jsonb_build_object(
                   'waiting', count(*) filter (where q.state in ('ready', 'leased') and not w.rise),
                   'window', count(*) filter (where w.rise),
                   'guarded', count(*) filter (where q.state = 'guarded' and q.rejected_at is null),
                   'rejected', count(*) filter (where q.rejected_at is not null),
                   'failed', count(*) filter (where q.state = 'failed'),
                   'dead', count(*) filter (where q.state = 'dead'),
                   'oldest', min(q.created_at) filter (where q.state in ('ready', 'leased') and not w.rise),
                   'last_error', max(q.last_error)) as queue
        from esl.sync_queue q join mappings m on m.id = q.mapping_id
        cross join lateral (select esl.waits_for_window(q, m.opens) as rise) w group by 1
    )
    select coalesce(jsonb_agg(to_jsonb(t) order by t.hipoink_store_code, t.source_store_id), '[]') from (
        select m.id as mapping_id, m.source_system, m.source_store_id, m.hipoink_store_code,
            esl.server_of(m.hipoink_store_code) as label_server, m.is_active, m.activated_at, m.switched_off,
            case when not m.is_active then esl.last_set(m.id, 'is_active') end as inactive_since, m.is_dry_run,
            case when m.is_dry_run then esl.last_set(m.id, 'is_dry_run') end as dry_run_since,
            esl.mapping_problem(m) as problem, coalesce(s.on_labels, 0) as on_labels,
            coalesce(h.held_back, 0) as held_back, o.opens as window_opens,
            coalesce(q.queue, jsonb_build_object('waiting', 0, 'window', 0, 'guarded', 0, 'rejected', 0, 'failed', 0,
                                                 'dead', 0, 'oldest', null, 'last_error', null)) as queue,
            (select jsonb_build_object('since', s.refused_at, 'until', s.until, 'reason', s.reason)
             from esl.store_health s
             where s.store_code = m.hipoink_store_code and s.until > now()) as paused,
            esl.pause_of(m.hipoink_store_code) as pause, m.leaving,
            s.last_accepted_at
        from mappings o join esl.store_mappings m on m.id = o.id
        left join shown s on s.mapping_id = m.id left join held h on h.mapping_id = m.id
        left join queues q on q.mapping_id = m.id) t
$$;

-- How the deliveries of these shops stand, for esl_status. Reads what is open and esl.shop_deliveries, nothing over.
create or replace function esl.shop_states(p jsonb) returns jsonb
language sql stable set search_path = '' as $$
    with wanted as (
        select * from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops')
    ), open_deliveries as (
        select source_system, source_store_id, count(*) as waiting, min(received_at) as oldest_waiting,
               max(received_at) as last_received_at
        from esl.webhook_inbox
        where state in ('ready', 'leased')
          and (p -> 'shops' is null or (source_system, source_store_id) in (select * from wanted))
        group by 1, 2
    ), ended as (
        select * from esl.shop_deliveries
        where p -> 'shops' is null or (source_system, source_store_id) in (select * from wanted)
    ), to_fetch as (
        select source_system, source_store_id, sum(missing_variants) as variants
        from esl.product_versions where missing_variants > 0 and not deleted group by 1, 2
    )
    select coalesce(jsonb_agg(to_jsonb(t) order by t.source_system, t.source_store_id), '[]') from (
        select source_system, source_store_id,
            coalesce(o.waiting, 0) + coalesce(e.done + e.superseded + e.unusable + e.dead, 0) as deliveries,
            coalesce(o.waiting, 0) as waiting,
            (select w.bytes from esl.waiting(source_system, source_store_id) w) as waiting_bytes,
            coalesce(e.not_kept, 0) as not_kept, e.last_not_kept_at, coalesce(e.expired, 0) as expired,
            coalesce(e.done, 0) as done, coalesce(e.superseded, 0) as superseded,
            coalesce(e.unusable, 0) as unusable, coalesce(e.replays, 0) as replays, coalesce(e.dead, 0) as dead,
            o.oldest_waiting, greatest(o.last_received_at, e.last_received_at) as last_received_at,
            coalesce(e.refused_in_a_row, 0) as refused_in_a_row, e.last_refusal,
            esl.is_mapped(k.source_system, k.source_store_id) as mapped,
            coalesce(f.variants, 0) as variants_to_fetch, coalesce(c.things, 0) as contested, c.shops as contested_by
        from (select source_system, source_store_id from ended
              union select source_system, source_store_id from open_deliveries) k
        left join ended e using (source_system, source_store_id)
        left join open_deliveries o using (source_system, source_store_id)
        left join to_fetch f using (source_system, source_store_id)
        left join lateral (
            select count(distinct c.thing) as things, array_agg(distinct s.shop order by s.shop) as shops
            from esl.contests c cross join unnest(c.shops) as s (shop)
            where c.owner is null and c.source_system = k.source_system and k.source_store_id = any (c.shops)
              and s.shop <> k.source_store_id) c on true) t
$$;

-- What several shops claim and nobody owns yet, of all or with one of these ({shops?}).
create or replace function esl.open_contests(p jsonb) returns setof esl.contests
language sql stable set search_path = '' as $$
    select k.* from esl.contests k
    where k.owner is null and (p -> 'shops' is null or exists (
        select from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops') w
        where w.source_system = k.source_system and w.source_store_id = any (k.shops)))
$$;

-- {shops?: [{source_system, source_store_id}]} -> {stores: [...], shops: [...], findings: [...], outages: [...],
--  servers: [{server, stores, ...}] (see esl.server_states),
--  contests: [{source_system, thing, shops, since}], contested, erasures: [{source_system, source_store_id,
--  requested_at, not_before}], refreshes: {...}, refused: see esl.refused}: counts for operators, of all
-- shops or of these.
create or replace function public.esl_status(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with wanted as (
        select * from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops')
    )
    select jsonb_build_object(
        'stores', esl.store_states(p),
        'shops', esl.shop_states(p),
        'refused', (select coalesce(jsonb_agg(to_jsonb(r) order by r.source_system, r.source_store_id), '[]')
            from esl.refused() r
            where p -> 'shops' is null or (r.source_system, r.source_store_id) in (select * from wanted)),
        'outages', (select coalesce(jsonb_agg(jsonb_build_object('server', server, 'since', down_since,
                        'probe_at', probe_at, 'reason', last_error) order by server), '[]')
                    from esl.label_servers where down_since is not null),
        'servers', esl.server_states(),
        'contests', (select coalesce(jsonb_agg(to_jsonb(t) order by t.since, t.thing), '[]') from (
            select k.source_system, k.thing, k.shops, k.since from esl.open_contests(p) k
            order by k.since, k.thing limit 20) t),
        'contested', (select count(*) from esl.open_contests(p)),
        'erasures', (select coalesce(jsonb_agg(jsonb_build_object('source_system', r.source_system,
                        'source_store_id', r.source_store_id, 'requested_at', r.requested_at,
                        'not_before', r.not_before) order by r.id), '[]') from esl.redactions r
                     where r.finished_at is null and (p -> 'shops' is null
                           or (r.source_system, r.source_store_id) in (select * from wanted))),
        'refreshes', esl.refresh_state(),
        'findings', (select coalesce(jsonb_agg(to_jsonb(t) order by t.level, t.n desc, t.check_name), '[]') from (
            select f.check_name, f.level, count(*) as n from esl.findings f
            where f.resolved_at is null
              and (p -> 'shops' is null or f.mapping_id in (select m.id from esl.chosen_mappings(p) m))
            group by 1, 2) t))
$$;

-- Warnings that nearly every variant of a mapping has (four of five, and five at least): they are the store's.
create or replace function esl.shared_findings(p jsonb)
returns table (mapping_id uuid, hipoink_store_code text, source_store_id text, check_name text, level text, reason text,
               action text, variants bigint, of_variants bigint)
language sql stable set search_path = '' as $$
    select c.mapping_id, m.hipoink_store_code, m.source_store_id, c.check_name, 'warning', c.reason, c.action,
           c.variants, n.of_variants
    from (select f.mapping_id, f.check_name, count(*) as variants, min(f.reason) as reason, min(f.action) as action
          from esl.findings f
          where f.resolved_at is null and f.level = 'warning'
            and (p ->> 'check' is null or f.check_name = p ->> 'check')
          group by 1, 2 having count(*) >= 5) c
    join esl.store_mappings m on m.id = c.mapping_id and (p ->> 'store' is null or m.hipoink_store_code = p ->> 'store')
    cross join lateral (select count(*) as of_variants from esl.labels l
                        where l.mapping_id = c.mapping_id and l.state <> 'withdrawn') n
    where c.variants * 5 >= n.of_variants * 4 and (p ->> 'level' is null or p ->> 'level' = 'warning')
$$;

-- {mapping_id?, store?, level?, check?, fold?, limit, after?: [level, check_name, variant_id, mapping_id]} ->
-- {findings: [...], shared: [...] with fold}: the open ones in that order, with the variant they are about. fold:
-- without the warnings that a whole store shares, of which shared has a row each.
create or replace function public.esl_findings(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_shared jsonb := case when (p ->> 'fold')::boolean then (
    select coalesce(jsonb_agg(to_jsonb(s) order by s.hipoink_store_code, s.check_name), '[]')
    from esl.shared_findings(p) s) end;
begin
    return (select jsonb_build_object('findings', coalesce(jsonb_agg(to_jsonb(t)), '[]')) from (
        select f.*, o.title, o.variant_title, o.sku, m.source_store_id, m.hipoink_store_code
        from esl.findings f join esl.store_mappings m on m.id = f.mapping_id
        left join esl.products o on o.source_system = m.source_system and o.source_store_id = m.source_store_id
                                and o.variant_id = f.variant_id
        where f.resolved_at is null and (p ->> 'mapping_id' is null or f.mapping_id = (p ->> 'mapping_id')::uuid)
          and (p ->> 'store' is null or m.hipoink_store_code = p ->> 'store')
          and (p ->> 'level' is null or f.level = p ->> 'level')
          and (p ->> 'check' is null or f.check_name = p ->> 'check')
          and (p -> 'after' is null or (f.level, f.check_name, f.variant_id, f.mapping_id)
               > (p #>> '{after,0}', p #>> '{after,1}', p #>> '{after,2}', (p #>> '{after,3}')::uuid))
          and not (f.level = 'warning' and coalesce(v_shared @> jsonb_build_array(jsonb_build_object(
                  'mapping_id', f.mapping_id, 'check_name', f.check_name)), false))
        order by f.level, f.check_name, f.variant_id, f.mapping_id limit (p ->> 'limit')::int) t)
        || case when v_shared is null then '{}' else jsonb_build_object('shared', v_shared) end;
end $$;

-- {store?, shop?, shops?, limit} -> {mappings: [{mapping_id, source_system, source_store_id, hipoink_store_code,
--   is_active, is_dry_run, max_held_share_pct, to_evaluate, published, held, duplicates, guarded, new, changed,
--   removed, grace: {places, bound, next_at}, changes: [{store_code, code, variant_id, title, variant_title, operation,
--   state, before, after}]}]}
-- How each mapping's labels stand, and what of them differs from the label server: what a push would change.
create or replace function public.esl_preview(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with chosen as (
        select * from esl.chosen_mappings(p)
    ), differences as (
        select q.mapping_id, q.store_code, q.code, q.variant_id, q.operation,
               case when q.rejected_at is not null then 'rejected' else q.state end as state, s.label as before,
               q.label as after, q.priority, q.created_at
        from esl.sync_queue q left join esl.hipoink_products s using (store_code, code)
        where q.mapping_id in (select id from chosen)
    )
    select jsonb_build_object('mappings',
        coalesce(jsonb_agg(to_jsonb(t) order by t.hipoink_store_code, t.mapping_id), '[]'))
    from (
        select m.id as mapping_id, m.source_system, m.source_store_id, m.hipoink_store_code, m.is_active, m.is_dry_run,
               esl.policy_number(m.settings, 'max_held_share_pct') as max_held_share_pct,
               (select count(*) from esl.products o where o.due and o.source_system = m.source_system
                   and o.source_store_id = m.source_store_id) as to_evaluate,
               l.*, d.*, esl.grace_state(m.id) as grace,
               (select coalesce(jsonb_agg(to_jsonb(c)), '[]') from (
                    select x.store_code, x.code, x.variant_id, o.title, o.variant_title, x.operation, x.state, x.before,
                           x.after
                    from differences x
                    left join esl.products o on o.variant_id = x.variant_id and o.source_system = m.source_system
                                            and o.source_store_id = m.source_store_id
                    where x.mapping_id = m.id
                    order by x.priority, x.created_at, x.code limit (p ->> 'limit')::int) c) as changes
        from chosen m
        cross join lateral (
            select count(*) filter (where b.state = 'publish' and not b.collides) as published,
                   count(*) filter (where b.state = 'held' or b.collides) as held,
                   count(*) filter (where b.collides) as duplicates
            from esl.labels b where b.mapping_id = m.id) l
        cross join lateral (
            select count(*) filter (where x.operation = 'upsert' and x.before is null) as new,
                   count(*) filter (where x.operation = 'upsert' and x.before is not null) as changed,
                   count(*) filter (where x.operation = 'delete') as removed,
                   count(*) filter (where x.state = 'guarded') as guarded
            from differences x where x.mapping_id = m.id) d) t
$$;
