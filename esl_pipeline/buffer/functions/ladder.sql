-- The ladder of evidence: how far the price of each product is known to have come on its way to the shelf. Nothing is
-- reported as shown without evidence of its rung:
--   1 wanted      what is wanted there is not accepted yet, or that is in doubt
--   2 accepted    the label server has said so
--   3 stored      the newest complete list of its products had it so
--   4 triggered   it was told after that to refresh the store's labels, or is known to do so by itself
--   5 reachable   and a label is bound to the product that it calls online, with a battery above the limit, as was read
--                 lately
--   6 refreshed   and the label's row has moved after that, where a probe has shown that rows move when labels do, and
--                 the label is known to have a place for the price: no row says by which template it is drawn, and one
--                 without a price shows an old one for ever
--   7 seen        somebody has looked since, and seen it
-- The third is known once a night and each of the others for itself, so a rung says nothing of the third below it. Of a
-- product with several labels the fifth means one of them, the sixth and seventh all. What is not said here, because no
-- call tells it: that a label was bound anew elsewhere to what it was bound to, which moves its row as well.

-- What holds for all labels of a store.
create or replace function esl.shelf_facts(p_store text) returns esl.facts_row
language sql stable set search_path = '' as $$
    select coalesce(v.rows_move, false), coalesce(v.auto_triggers, false),
           (select r.begun_at from esl.refreshes r where r.store_code = p_store and r.outcome = 'accepted'
            order by r.begun_at desc limit 1),
           c.at, coalesce(c.given_up > 0, false), d.read_at,
           coalesce(d.read_at > clock_timestamp() - make_interval(mins => l.minutes), false), l.low_mv
    from (select min(esl.policy_number(m.settings, 'max_pass_age_minutes')) as minutes,
                 max(esl.policy_number(m.settings, 'low_battery_mv')) as low_mv
          from (select m.settings from esl.store_mappings m where m.hipoink_store_code = p_store and m.is_active
                union all select '{}' where not exists (
                    select from esl.store_mappings m where m.hipoink_store_code = p_store and m.is_active)) m) l
    cross join (select (esl.complete_pass(p_store)).started_at as read_at) d
    left join esl.comparisons c on c.store_code = p_store and c.complete
    left join esl.label_servers v on v.server = esl.server_of(p_store)
$$;

-- What the policies of all who feed a store, or have left labels there, expect of its labels.
create or replace function esl.shelf_policies(p_store text)
returns table (mapping_id uuid, low_mv int, late_seconds int, templates_show_price boolean, zone text, sleeps_from int,
               sleeps_to int)
language sql stable set search_path = '' as $$
    select m.id, esl.policy_number(m.settings, 'low_battery_mv'),
           60 * esl.policy_number(m.settings, 'refresh_minutes'),
           esl.policy_text(m.settings, 'templates_show_price') = 'true', s.zone, s.sleeps_from, s.sleeps_to
    from esl.store_mappings m cross join lateral esl.sleep_of(m) s
    where m.hipoink_store_code = p_store
       or m.id in (select l.mapping_id from esl.left_stores l where l.store_code = p_store)
$$;

-- Codes whose repair the newest comparison of a store has given up (see esl_drift_repair): what it lists is not ours.
create or replace function esl.given_up(p_store text, p_compared_at timestamptz) returns table (code text)
language sql stable set search_path = '' as $$
    select d.code from esl.drift d
    where d.store_code = p_store and d.at > p_compared_at - interval '14 days'
    group by d.code having count(*) >= 3
$$;

-- The products of a store, or one, as far as is known without its physical labels. What hangs as nobody's is none.
create or replace function esl.ladder(p_store text, p_code text, k esl.facts_row) returns setof esl.ladder_row
language plpgsql stable rows 20000 set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return query
    with ledger as materialized (
        select * from esl.hipoink_products o
        where o.store_code = p_store and (p_code is null or o.code = p_code) and o.variant_id <> ''
    ), queue as materialized (
        select o.code, o.mapping_id, o.variant_id, o.operation from esl.sync_queue o
        where o.store_code = p_store and (p_code is null or o.code = p_code) and o.variant_id <> ''
    ), sightings as materialized (
        select distinct on (o.code) o.code, o.at, o.label_hash from esl.seen_labels o
        where o.store_code = p_store and (p_code is null or o.code = p_code) order by o.code, o.at desc, o.id desc
    ), wrong as materialized (
        select g.code from esl.given_up(p_store, k.compared_at) g where k.has_given_up
    )
    select coalesce(s.code, q.code), coalesce(q.mapping_id, s.mapping_id), coalesce(q.variant_id, s.variant_id),
           s.label_hash, s.accepted_at,
           case when q.code is not null then 1 when t.is_triggered then 4
                when s.accepted_at < k.compared_at and w.code is null then 3 else 2 end,
           t.is_triggered, n.at, n.label_hash is not null,
           coalesce(n.label_hash = s.label_hash and n.at >= s.accepted_at, false)
    from ledger s full join queue q on q.code = s.code
    left join sightings n on n.code = s.code
    left join wrong w on w.code = s.code
    cross join lateral (
        select k.auto_triggers or coalesce(k.triggered_at >= s.accepted_at, false) as is_triggered) t
    where s.code is not null or q.operation = 'upsert';
end $$;

-- Since when labels of a product show something old that were right at p_at (null: it is not known when), at the latest
-- since it was accepted as it is now; and whether that costs less than what they should show.
create or replace function esl.missed(p_mapping uuid, p_variant text, p_at timestamptz, p_accepted_at timestamptz)
returns table (since timestamptz, is_rise boolean)
language sql stable as $$  -- inlined
    select least(p_accepted_at, (
               select min(h.since) from esl.price_history h
               where h.variant_id = p_variant and h.mapping_id = p_mapping and h.since > p_at)),
           coalesce((select h.price from esl.price_history h
                     where h.variant_id = p_variant and h.mapping_id = p_mapping order by h.since desc limit 1)
                    > (select h.price from esl.price_history h
                       where h.variant_id = p_variant and h.mapping_id = p_mapping
                         and h.since <= coalesce(p_at, p_accepted_at - interval '1 microsecond')
                       order by h.since desc limit 1), false)
$$;

-- How long labels were awake between two times.
create or replace function esl.awake_seconds(p_since timestamptz, p_now timestamptz, p_zone text, p_from int, p_to int)
returns float8 language plpgsql stable set search_path = '' as $$
begin
    return greatest(0, extract(epoch from p_now - p_since) - case when p_from is null then 0 else
        esl.slept(p_now at time zone p_zone, p_from, p_to) - esl.slept(p_since at time zone p_zone, p_from, p_to) end);
end $$;

-- What stands in the way of a label and its price, or of a product without a label, whatever is accepted next; the
-- first that does. p_rung: how far its price has come, p_first: without its labels (null: it is no product of a shop);
-- p_sighted_wrong: somebody has looked since and seen something else.
create or replace function esl.hindrance(p_esl text, p_product text, p_rung int, p_first int, p_accepted_at timestamptz,
                                         p_is_triggered boolean, p_is_read boolean, p_online boolean,
                                         p_is_low boolean, p_has_not_moved boolean, p_sighted_wrong boolean)
returns text language sql immutable as $$  -- inlined
    select case when p_esl is null then 'no label'
                when p_product is null then 'bound to nothing'
                when esl.is_reserved(p_product) then 'for measuring'
                when p_first is null then 'no product of a shop'
                when p_accepted_at is null then 'not accepted yet'
                when p_rung >= 6 then case when p_first = 1 then 'not accepted yet' end
                when p_sighted_wrong then 'seen otherwise'
                when not p_is_triggered then 'not triggered'
                when not p_is_read then 'not read lately'
                when p_online is not true then 'offline'
                when p_is_low then 'battery low'
                when p_has_not_moved then 'not refreshed'
                when p_first = 1 then 'not accepted yet' end
$$;

-- Since when a label shows something old, for how many seconds while it was awake, and whether that is less than its
-- price. j: a label as esl.shelf has judged it, whose row moves when it does (p_rows_move) or need not; p_triggered_at:
-- when its store was triggered last.
create or replace function esl.staleness(j esl.judged_row, p_rows_move boolean, p_triggered_at timestamptz,
                                         p_now timestamptz)
returns table (since timestamptz, seconds float8, is_rise boolean)
language sql stable as $$  -- inlined
    select n.since, esl.awake_seconds(n.since, p_now, j.zone, j.sleeps_from, j.sleeps_to), n.is_rise
    from (
        select case when j.hindrance = 'seen otherwise' then null
                    when p_rows_move then coalesce(j.moved_at, j.first_seen_at)
                    when j.hindrance = 'not triggered' then coalesce(p_triggered_at, '-infinity')
                    when not j.online then (
                        select max(c.at) from (
                            select o.at from esl.device_changes o
                            where o.esl_code = j.esl_code and o.store_code = j.store_code and o.what = 'online'
                              and o.new = 'false' offset 0) c) end as at
        offset 0) g
    cross join lateral (
        select greatest(j.bound_at, m.since) as since, m.is_rise
        from esl.missed(j.mapping_id, j.variant_id, g.at, j.accepted_at) m offset 0) n
$$;

-- Of each physical label of a store (or of one product), and each product without one, how far its price has come.
create or replace function esl.judged(p_store text, p_code text, k esl.facts_row) returns setof esl.judged_row
language plpgsql stable rows 20000 set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return query
    select p_store, d.esl_code, coalesce(d.product_code, l.code), l.mapping_id, l.variant_id, d.model, d.ap_code,
           d.battery_mv, d.online, e.is_low, esl.is_blanked(l.label_hash), l.accepted_at,
           case when l.rung = 1 then 1 else r.rung end,
           esl.hindrance(d.esl_code, d.product_code, r.rung, l.rung, l.accepted_at, l.is_triggered, k.is_read, d.online,
                         e.is_low, e.has_not_moved, not e.is_right and l.sighted_at >= l.accepted_at),
           e.has_moved, d.first_seen_at, d.bound_at, d.moved_at, o.late_seconds, o.zone, o.sleeps_from, o.sleeps_to
    from (select x.*, b.bound_by_hand_at from esl.devices x
          left join esl.bound_by_hand(p_store) b on b.esl_code = x.esl_code
          where x.store_code = p_store and x.gone_at is null and (p_code is null or x.product_code = p_code)) d
    full join esl.ladder(p_store, p_code, k) l on l.code = d.product_code
    left join esl.shelf_policies(p_store) o on o.mapping_id = l.mapping_id
    cross join lateral (  -- offset 0: each is worked out once
        select coalesce(d.battery_mv < coalesce(o.low_mv, k.low_mv), false) as is_low,
               coalesce(k.rows_move and d.moved_after >= greatest(l.accepted_at, d.bound_by_hand_at)
                        and d.moved_at > d.bound_at, false) as has_moved,
               k.rows_move and coalesce(d.moved_at, d.first_seen_at) < l.accepted_at and k.read_at > l.accepted_at
                   as has_not_moved,
               case when l.sighted_at >= coalesce(d.bound_at, l.sighted_at) then l.is_right end as is_right
        offset 0) e
    cross join lateral (
        select case when l.code is null then null
                    when l.is_seen and e.is_right and (d.esl_code is not null or k.read_at is null) then 7
                    when e.has_moved and coalesce(e.is_right, o.templates_show_price) then 6
                    when l.is_triggered and k.is_read and d.online and not e.is_low then 5 else l.rung end as rung
        offset 0) r;
end $$;

-- The same, with how long each has shown something old.
create or replace function esl.shelf(p_store text, p_code text default null) returns setof esl.shelf_row
language plpgsql stable rows 20000 set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare k esl.facts_row := esl.shelf_facts(p_store); v_now timestamptz := clock_timestamp();
begin
    return query
    select j.esl_code, j.product_code, j.mapping_id, j.variant_id, j.model, j.ap_code, j.battery_mv, j.online, j.is_low,
           j.is_blanked, j.accepted_at, j.rung, j.hindrance, j.has_moved, w.since, w.seconds,
           coalesce(w.seconds > j.late_seconds, false), coalesce(w.is_rise, false)
    from esl.judged(p_store, p_code, k) j
    left join lateral (
        select s.* from esl.staleness(j, k.rows_move, k.triggered_at, v_now) s
        where j.esl_code is not null and j.accepted_at is not null and j.hindrance <> 'not accepted yet'
        offset 0) w on true;
end $$;

-- The products of a store, each with the rung of the ladder that holds for it (see above), of rows of esl.shelf.
create or replace function esl.rungs(p_rows esl.shelf_row[])
returns table (code text, mapping_id uuid, rung int, is_labelled boolean)
language sql immutable set search_path = '' as $$
    select r.product_code, r.mapping_id,
           case when min(r.rung) >= 6 then min(r.rung) else least(max(r.rung), 5) end, count(r.esl_code) > 0
    from unnest(p_rows) r where r.rung is not null group by 1, 2
$$;

-- The kinds of labels and products that people ask for, each with how many there are and the first few.
--   late           labels that should show something else for longer than expected, first prices that are higher
--   offline, low   labels that the server does not reach; with a low battery
--   unbound        labels that are bound to nothing; strangers: to a product of no shop, nor of a probe; removed: to
--                  one that a shop had there and removed; blanked: to one that is blanked
--   without_label  products
--   unproven       labels whose row has moved, and of which nobody has said that they show prices at all
create or replace function esl.kinds(r esl.shelf_row, p_is_own boolean, p_was_ours boolean)
returns table (kind text, place float8)
language sql immutable as $$  -- inlined
    select t.kind, t.place from (values
        ('late', p_is_own and r.is_late, -coalesce(r.stale_seconds, 0) - case when r.is_rise then 1e12 else 0 end),
        ('offline', p_is_own and r.esl_code is not null and r.online is not true, 0),
        ('low', p_is_own and r.esl_code is not null and r.is_low, r.battery_mv),
        ('unbound', r.product_code is null, 0),
        ('strangers', r.product_code is not null and r.rung is null and not p_was_ours
                      and not esl.is_reserved(r.product_code), 0),
        ('removed', r.product_code is not null and r.rung is null and p_was_ours, 0),
        ('blanked', p_is_own and r.esl_code is not null and r.is_blanked, 0),
        ('without_label', p_is_own and r.esl_code is null and not r.is_blanked, 0),
        ('unproven', p_is_own and r.has_moved and r.rung < 6, 0)
    ) as t (kind, is_so, place) where t.is_so
$$;

-- Per kind {count, first: the first p_limit of it}; see esl.kinds. p_own: the mappings that ask.
create or replace function esl.shelf_kinds(p_store text, p_rows esl.shelf_row[], p_own uuid[], p_limit int)
returns jsonb language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (
        with found as materialized (  -- few columns, because it is sorted
            select t.kind, t.place, coalesce(r.esl_code, '') as esl, coalesce(r.product_code, '') as product
            from unnest(p_rows) r
            left join lateral (
                select true as is_so from esl.sync_log l
                where r.rung is null and l.code = r.product_code and l.store_code = p_store limit 1) o on true
            cross join lateral esl.kinds(r, coalesce(r.mapping_id = any (p_own), false), coalesce(o.is_so, false)) t
        ), counted as (
            select f.kind, count(*) as n from found f group by f.kind
        ), first as materialized (
            select c.kind, f.* from counted c cross join lateral (
                select f.place, f.esl, f.product from found f where f.kind = c.kind
                order by f.place, f.esl, f.product limit p_limit) f
        ), told as (
            select f.kind, jsonb_agg(jsonb_build_object(
                       'esl_code', r.esl_code, 'product_code', r.product_code, 'rung', r.rung,
                       'hindrance', r.hindrance, 'ap_code', r.ap_code, 'battery_mv', r.battery_mv,
                       'stale_seconds', round(r.stale_seconds::numeric), 'is_rise', r.is_rise,
                       'price', esl.price_of(s.label)::text) order by f.place, f.esl, f.product) as first
            from first f
            join unnest(p_rows) r on coalesce(r.esl_code, '') = f.esl and coalesce(r.product_code, '') = f.product
            left join lateral esl.in_ledger(p_store, f.product) s on true
            group by f.kind
        )
        select coalesce(jsonb_object_agg(c.kind, jsonb_build_object('count', c.n, 'first', coalesce(t.first, '[]'))),
                        '{}')
        from counted c left join told t on t.kind = c.kind);
end $$;

-- How many labels there are, own ones by their rung and what is wrong with them, and of products how many on each rung.
create or replace function esl.shelf_counts(p_rows esl.shelf_row[], p_own uuid[]) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'products', p.n, 'with_label', p.labelled, 'rungs', p.rungs, 'label_rungs', l.rungs,
        'labels', l.n, 'online', l.online, 'offline', l.n - l.online, 'low', l.low, 'bound', a.bound, 'hanging', a.n,
        'stale', l.stale, 'stale_seconds', l.seconds, 'stale_rises', l.rises, 'stale_rise_seconds', l.rise_seconds,
        'late', l.late, 'late_rises', l.late_rises)
    from (select count(*) as n, count(*) filter (where g.is_labelled) as labelled, jsonb_build_object(
                     '1', count(*) filter (where g.rung = 1), '2', count(*) filter (where g.rung = 2),
                     '3', count(*) filter (where g.rung = 3), '4', count(*) filter (where g.rung = 4),
                     '5', count(*) filter (where g.rung = 5), '6', count(*) filter (where g.rung = 6),
                     '7', count(*) filter (where g.rung = 7)) as rungs
          from esl.rungs(p_rows) g where g.mapping_id = any (p_own)) p,
         (select count(*) as n, count(*) filter (where r.online) as online, count(*) filter (where r.is_low) as low,
                 count(r.since) as stale, coalesce(max(r.stale_seconds), 0) as seconds,
                 count(*) filter (where r.is_rise) as rises,
                 coalesce(max(r.stale_seconds) filter (where r.is_rise), 0) as rise_seconds,
                 count(*) filter (where r.is_late) as late,
                 count(*) filter (where r.is_late and r.is_rise) as late_rises,
                 jsonb_build_object(
                     '1', count(*) filter (where r.rung = 1), '2', count(*) filter (where r.rung = 2),
                     '3', count(*) filter (where r.rung = 3), '4', count(*) filter (where r.rung = 4),
                     '5', count(*) filter (where r.rung = 5), '6', count(*) filter (where r.rung = 6),
                     '7', count(*) filter (where r.rung = 7)) as rungs
          from unnest(p_rows) r where r.esl_code is not null and r.mapping_id = any (p_own)) l,
         (select count(r.esl_code) as n, count(r.esl_code) filter (where r.rung is not null) as bound
          from unnest(p_rows) r) a
$$;

-- Own labels by the AP that they were heard through, where any is offline: the ten with most.
create or replace function esl.offline_by_ap(p_rows esl.shelf_row[], p_own uuid[]) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(to_jsonb(t) order by t.offline desc, t.ap_code), '[]') from (
        select r.ap_code, count(*) filter (where not r.online) as offline, count(*) as labels
        from unnest(p_rows) r where r.esl_code is not null and r.mapping_id = any (p_own)
        group by r.ap_code having count(*) filter (where not r.online) > 0
        order by 2 desc, 1 limit 10) t
$$;

-- When batteries will be low that have been seen to run down by 50 mV or more, over three days or more, since they were
-- changed: along the straight line from then to now, which flatters none that is old.
create or replace function esl.battery_forecasts(p_store text, p_rows esl.shelf_row[], p_read_at timestamptz,
                                                 p_low_mv int)
returns table (esl_code text, product_code text, mapping_id uuid, battery_mv int, low_at timestamptz)
language sql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
    with told as (
        select c.esl_code, c.at, c.new::int as mv,
               max(c.at) filter (where c.new::int > c.old::int) over (partition by c.esl_code) as changed_at
        from esl.device_changes c where c.store_code = p_store and c.what = 'battery' and c.old is not null
    ), first as (
        select distinct on (t.esl_code) t.* from told t
        where t.at >= coalesce(t.changed_at, '-infinity') order by t.esl_code, t.at
    )
    select r.esl_code, r.product_code, r.mapping_id, r.battery_mv,
           p_read_at + (p_read_at - f.at) * ((r.battery_mv - p_low_mv)::float8 / (f.mv - r.battery_mv))
    from first f join unnest(p_rows) r on r.esl_code = f.esl_code
    where f.mv - r.battery_mv >= 50 and p_read_at - f.at >= interval '3 days' and r.battery_mv >= p_low_mv
$$;

-- Batteries that will be low within 30 days: {count, first}.
create or replace function esl.dying(p_store text, p_rows esl.shelf_row[], p_own uuid[], p_limit int) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('count', count(*), 'first', coalesce(jsonb_agg(
               jsonb_build_object('esl_code', t.esl_code, 'product_code', t.product_code, 'battery_mv', t.battery_mv,
                                  'low_at', t.low_at) order by t.low_at) filter (where t.nth <= p_limit), '[]'))
    from (select f.*, row_number() over (order by f.low_at, f.esl_code) as nth
          from esl.shelf_facts(p_store) k
          cross join lateral esl.battery_forecasts(p_store, p_rows, k.read_at, k.low_mv) f
          where f.low_at < clock_timestamp() + interval '30 days' and f.mapping_id = any (p_own)) t
$$;

-- What a store's label server is known to do, and how its labels were read: {label_server, rows_move, auto_triggers,
-- probe_seconds, probed_at, knows_devices, read_at, is_read, triggered_at, compared_at, pass: newest that has ended}.
create or replace function esl.shelf_evidence(p_store text) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'label_server', n.server, 'rows_move', v.rows_move, 'auto_triggers', v.auto_triggers,
        'probe_seconds', v.probe_seconds, 'probed_at', v.probed_at, 'knows_devices', v.knows_devices,
        'read_at', k.read_at, 'is_read', k.is_read, 'triggered_at', k.triggered_at, 'compared_at', k.compared_at,
        'refreshes', esl.wants_refresh(p_store), 'pass', (
            select to_jsonb(o) from esl.device_passes o where o.store_code = p_store and o.state <> 'open'
            order by o.started_at desc limit 1))
    from esl.shelf_facts(p_store) k cross join (select esl.server_of(p_store) as server) n
    left join esl.label_servers v on v.server = n.server
$$;

-- What the policy of the one who asks allows in a store, of all who feed it the strictest: {max_unreachable_pct, …}.
create or replace function esl.shelf_limits(p_store text, p_own uuid[]) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'max_unreachable_pct', min(esl.policy_number(m.settings, 'max_unreachable_pct')),
        'max_pass_age_minutes', min(esl.policy_number(m.settings, 'max_pass_age_minutes')),
        'max_low_battery_pct', min(esl.policy_number(m.settings, 'max_low_battery_pct')),
        'low_battery_mv', max(esl.policy_number(m.settings, 'low_battery_mv')),
        'max_unbound_pct', min(esl.policy_number(m.settings, 'max_unbound_pct')),
        'max_without_label_pct', min(esl.policy_number(m.settings, 'max_without_label_pct')),
        'max_late_pct', min(esl.policy_number(m.settings, 'max_late_pct')),
        'refresh_minutes', min(esl.policy_number(m.settings, 'refresh_minutes')))
    from esl.store_mappings m where m.hipoink_store_code = p_store and m.is_active and m.id = any (p_own)
$$;

-- {shop?, store?, limit} -> {stores: [{store_code, …}]}: how the labels of stores stand, of those that a shop feeds
-- (without one: of all shops together), or of one. What is in it: esl.shelf_counts, esl.shelf_evidence; limits:
-- esl.shelf_limits; kinds: esl.shelf_kinds, with the first `limit` of each, and dying: batteries (esl.dying);
-- offline_by_ap.
create or replace function public.esl_shelf(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s'
set plan_cache_mode = force_custom_plan as $$
declare v_stores jsonb := '[]'; v_own uuid[]; v_rows esl.shelf_row[]; v_store text; v_limit int := (p ->> 'limit')::int;
begin
    v_own := array(select m.id from esl.store_mappings m where p -> 'shop' is null
        or (m.source_system, m.source_store_id) = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'));
    for v_store in select distinct m.hipoink_store_code from esl.store_mappings m
                   where m.id = any (v_own) and m.is_active and m.hipoink_store_code
                       = coalesce(p ->> 'store', m.hipoink_store_code) order by 1 loop
        v_rows := array(select r from esl.shelf(v_store) r);
        v_stores := v_stores || (
            jsonb_build_object('store_code', v_store, 'limits', esl.shelf_limits(v_store, v_own),
                'offline_by_ap', esl.offline_by_ap(v_rows, v_own),
                'kinds', esl.shelf_kinds(v_store, v_rows, v_own, v_limit)
                         || jsonb_build_object('dying', esl.dying(v_store, v_rows, v_own, v_limit)))
            || esl.shelf_counts(v_rows, v_own) || esl.shelf_evidence(v_store));
    end loop;
    return jsonb_build_object('stores', v_stores);
end $$;

-- {store, after?: [product_code, esl_code], limit} -> {labels, next}: page by page every physical label of a store, and
-- every product without one (esl.shelf), with price and name as the label server has accepted them.
create or replace function public.esl_shelf_list(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s'
set plan_cache_mode = force_custom_plan as $$
begin
    return (
        with page as materialized (
            select r.*, coalesce(r.product_code, '') as by_product, coalesce(r.esl_code, '') as by_esl
            from esl.shelf(p ->> 'store') r
            where p -> 'after' is null or (coalesce(r.product_code, ''), coalesce(r.esl_code, ''))
                                          > (p #>> '{after,0}', p #>> '{after,1}')
            order by by_product, by_esl limit (p ->> 'limit')::int
        )
        select jsonb_build_object(
            'labels', coalesce(jsonb_agg(to_jsonb(g) - '{by_product,by_esl}'::text[] || jsonb_build_object(
                          'price', esl.price_of(s.label)::text, 'source_store_id', m.source_store_id)
                          order by g.by_product, g.by_esl), '[]'),
            'next', (select jsonb_build_array(l.by_product, l.by_esl) from page l
                     order by l.by_product desc, l.by_esl desc limit 1))
        from page g
        left join lateral esl.in_ledger(p ->> 'store', g.product_code) s on true
        left join esl.store_mappings m on m.id = g.mapping_id);
end $$;

-- {code, store?} -> {places: [{store_code, code, rung, accepted_at, is_triggered, sighted_at, is_right, labels: [rows
-- of esl.shelf]}]}: how far the price of a product has come, and what its labels say of it, wherever it is.
create or replace function public.esl_ladder(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (
        select jsonb_build_object('places', coalesce(jsonb_agg(
            to_jsonb(l) || jsonb_build_object(
                'store_code', k.store_code, 'rung', g.rung, 'labels', (
                    select coalesce(jsonb_agg(to_jsonb(r) order by r.esl_code), '[]')
                    from unnest(x.rows) r where r.esl_code is not null)) order by k.store_code), '[]'))
        from (select s.store_code from esl.hipoink_products s where s.code = p ->> 'code'
              union select q.store_code from esl.sync_queue q where q.code = p ->> 'code') k
        cross join lateral (select array(select r from esl.shelf(k.store_code, p ->> 'code') r) as rows) x
        cross join lateral esl.ladder(k.store_code, p ->> 'code', esl.shelf_facts(k.store_code)) l
        cross join lateral esl.rungs(x.rows) g
        where p ->> 'store' is null or k.store_code = p ->> 'store');
end $$;
