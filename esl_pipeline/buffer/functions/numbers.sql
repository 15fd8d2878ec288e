-- Numbers: what is counted where it happens, and what is told of it. What a call counts, it counts last of all or under
-- the lock of its store, so that no two calls wait for each other.

-- What esl.measures counts, by name:
--   pushes    labels that were pushed; kind: the outcome
--   calls     the calls that pushed them, with their seconds; kind: the outcome
--   accepted  labels accepted with news that no accepted label had, with the seconds since its webhook was received;
--             kind: rise (of the price) or other
--   wrong     labels accepted whose price was another than the shop's, with the seconds for which it was; kind: over
--             (the till asked for more than the shelf) or under
--   avoided   labels that did not have to be pushed; kind: same_product (a webhook without anything new) or same_label
--   drift     differences that were found at the label server; kind: as in esl.drift
--   refused   signatures that were wrong, of a shop; kind: none

-- Upper bounds of the buckets, in seconds; the last bucket has none.
create or replace function esl.bucket_bounds() returns float8[]
language sql immutable as $$
    select array[0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120, 300, 900, 3600]::float8[]
$$;

-- How many of these are in each bucket.
create or replace function esl.buckets(p_seconds float8[]) returns bigint[]
language sql immutable set search_path = '' as $$
    select array_agg(coalesce(f.n, 0) order by b.i)
    from generate_series(0, cardinality(esl.bucket_bounds())) b (i)
    left join (select width_bucket(s, esl.bucket_bounds()) as i, count(*) as n
               from unnest(p_seconds) s group by 1) f on f.i = b.i
$$;

-- Both, bucket by bucket; null: no buckets.
create or replace function esl.buckets_added(p_one bigint[], p_other bigint[]) returns bigint[]
language sql immutable set search_path = '' as $$
    select array_agg(coalesce(x.a, 0) + coalesce(x.b, 0) order by x.i)
    from unnest(p_one, p_other) with ordinality x (a, b, i)
$$;

create or replace aggregate esl.all_buckets(bigint[]) (sfunc = esl.buckets_added, stype = bigint[]);

-- Counts these, in the present hour and for all time. Planned once: it is a part of every push.
create or replace function esl.measure(p_rows esl.measure_row[]) returns void
language plpgsql volatile set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    insert into esl.measures as m (name, party, server, kind, hour, n, total, buckets)
    select r.name, r.party, coalesce(r.server, ''), coalesce(r.kind, ''), h.hour, r.n, r.total, r.buckets
    from unnest(p_rows) r
    cross join (values ('-infinity'::timestamptz), (date_trunc('hour', clock_timestamp(), 'UTC'))) h (hour)
    where r.n > 0
    order by r.party, r.name, r.kind, r.server, h.hour
    on conflict (party, name, kind, server, hour) do update
    set n = m.n + excluded.n, total = m.total + excluded.total,
        buckets = esl.buckets_added(m.buckets, excluded.buckets);
end $$;

-- When a window of prices that may rise opened last; null: there is none, or it cannot be read.
create or replace function esl.window_opened(p_window jsonb, p_now timestamptz) returns timestamptz
language plpgsql stable set search_path = '' as $$
declare v_zone text := coalesce(p_window ->> 'time_zone', 'UTC'); v_at timestamp;
begin
    if p_window is null or p_window = 'null' or esl.window_problem(p_window) is not null then
        return null;
    end if;
    v_at := date_trunc('day', p_now at time zone v_zone) + (p_window ->> 'opens')::time;
    return (case when v_at > p_now at time zone v_zone then v_at - interval '1 day' else v_at end) at time zone v_zone;
end $$;

-- What an accepted push says of the labels that are still this worker's, for esl.measure. To be asked before the ledger
-- takes it. A rise that waited for its window is late since that opened. news_at: when the first of a label's webhooks
-- came, where it is news for this place: no label that was accepted there was made of it, and the place has been queued
-- because of it and not of something later.
create or replace function esl.acceptances(p_push uuid, p_store text, p_server text, p_mine esl.pushed_row[])
returns esl.measure_row[] language plpgsql stable set search_path = '' as $$
declare v_now timestamptz := clock_timestamp();
begin
    return array(
        with pushed as materialized (
            select esl.price_of(i.label) as price, q.created_at, n.news_at,
                   case when not esl.is_blanked(i.label_hash) and not esl.is_blanked(s.label_hash)
                        then esl.price_of(s.label) end as shown,
                   case when q.is_rise then esl.window_opened(m.settings -> 'raise_window', v_now) end as opened_at
            from unnest(p_mine) r
            join esl.sync_log i on i.push_id = p_push and i.code = r.code and i.kind = 'intent'
            join esl.sync_queue q on q.code = r.code and q.store_code = p_store
            join esl.store_mappings m on m.id = i.mapping_id
            left join esl.hipoink_products s on s.code = r.code and s.store_code = p_store
            left join lateral (
                select min(w.received_at) as news_at from esl.webhook_inbox w
                where coalesce(i.cause, 'new version') = 'new version'  -- rows of before migration 110 have none
                  and w.id = any (i.event_ids) and w.finished_at > q.created_at - interval '10 minutes'
                  and not exists (
                    select from esl.sync_log l
                    where l.push_id = s.push_id and l.code = r.code and l.event_ids && i.event_ids)) n on true
            where i.operation = 'upsert'
        ), timed as (
            select 'accepted' as name, case when p.price > p.shown then 'rise' else 'other' end as kind,
                   p.news_at as since
            from pushed p where p.news_at is not null
            union all
            select 'wrong', case when p.price > p.shown then 'over' else 'under' end,
                   greatest(least(p.created_at, p.news_at), p.opened_at)
            from pushed p where p.price <> p.shown
        ), seconds as (
            select t.name, t.kind, greatest(0, extract(epoch from v_now - t.since))::float8 as took from timed t
        )
        select row(s.name, p_store, p_server, s.kind, count(*), sum(s.took), esl.buckets(array_agg(s.took)))
               ::esl.measure_row
        from seconds s group by s.name, s.kind);
end $$;

-- Counts one call (p: as for esl_push_finish) with these labels, of which some are still this worker's.
create or replace function esl.measure_push(p jsonb, p_codes text[], p_mine esl.pushed_row[]) returns void
language plpgsql volatile set search_path = '' as $$
declare
    v_store   text := p ->> 'store_code';
    v_server  text := esl.server_in(p);
    v_seconds float8 := (p ->> 'duration_ms')::float8 / 1000;
    v_rows    esl.measure_row[];
begin
    if cardinality(p_codes) = 0 then  -- said before
        return;
    end if;
    v_rows := array[row('pushes', v_store, v_server, p ->> 'outcome', cardinality(p_codes), null, null)]
              ::esl.measure_row[];
    if v_seconds is not null then
        v_rows := v_rows || row('calls', v_store, v_server, p ->> 'outcome', 1, v_seconds,
                                esl.buckets(array[v_seconds]))::esl.measure_row;
    end if;
    if p ->> 'outcome' = 'accepted' and cardinality(p_mine) > 0 then
        v_rows := v_rows || esl.acceptances((p ->> 'push_id')::uuid, v_store, v_server, p_mine);
    end if;
    perform esl.measure(v_rows);
end $$;

-- Counts labels of these stores, one each, whose push was lost.
create or replace function esl.measure_lost(p_stores text[]) returns void
language sql volatile set search_path = '' as $$
    select esl.measure(array(
        select row('pushes', s.store, esl.server_of(s.store), 'lost', count(*), null, null)::esl.measure_row
        from unnest(p_stores) s (store) group by s.store))
$$;

-- Counts the labels of variants that a webhook told of (rows as for esl_variants_merge) and that it has not changed.
create or replace function esl.measure_unchanged(p_variants jsonb) returns void
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    perform esl.measure(array(
        select row('avoided', m.hipoink_store_code, esl.server_of(m.hipoink_store_code), 'same_product', count(*),
                   null, null)::esl.measure_row
        from (select distinct d.source_system, d.source_store_id, d.variant_id
              from jsonb_populate_recordset(null::esl.variant_row, p_variants) d) d
        join esl.products o on o.variant_id = d.variant_id and o.source_store_id = d.source_store_id
                           and o.source_system = d.source_system
        join esl.store_mappings m on m.source_system = d.source_system and m.source_store_id = d.source_store_id
        where o.changed_at < now() and not o.removed and m.is_active and not m.is_dry_run
        group by m.hipoink_store_code));
end $$;

-- Counts evaluated labels that the label server has as they are.
create or replace function esl.measure_same(p_labels esl.label_row[]) returns void
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    perform esl.measure(array(
        select row('avoided', l.store_code, esl.server_of(l.store_code), 'same_label', count(*), null, null)
               ::esl.measure_row
        from unnest(p_labels) l
        join esl.hipoink_products s on s.code = l.code and s.store_code = l.store_code and s.label_hash = l.label_hash
        where l.state = 'publish'
          and not exists (select from esl.sync_queue q where q.code = l.code and q.store_code = l.store_code)
        group by l.store_code));
end $$;

-- Counts the drift that this transaction has noted of these places.
create or replace function esl.measure_drift(p_store text, p_codes text[]) returns void
language sql volatile set search_path = '' as $$
    select esl.measure(array(
        select row('drift', p_store, esl.server_of(p_store), d.kind, count(*), null, null)::esl.measure_row
        from esl.drift d where d.code = any (p_codes) and d.store_code = p_store and d.at >= now() group by d.kind))
$$;

-- Counts what a receiver says that it refused (as for esl_refusals_note) beyond what it has said of the same series. To
-- be asked before that is kept.
create or replace function esl.measure_refused(p jsonb) returns void
language sql volatile set search_path = '' as $$
    select esl.measure(array(
        select row('refused', r.source_system || ':' || r.source_store_id, '', '',
                   max(r.refused) - coalesce(max(o.refused), 0), null, null)::esl.measure_row
        from jsonb_populate_recordset(null::esl.refused_row, p -> 'refused') r
        left join esl.refused_signatures o
          on o.source_system = r.source_system and o.source_store_id = r.source_store_id
         and o.receiver = p ->> 'receiver' and o.refused <= r.refused
         and abs(extract(epoch from o.since - r.since)) < 3600
        where r.since is not null and r.last_at is not null and esl.is_mapped(r.source_system, r.source_store_id)
        group by r.source_system, r.source_store_id))
$$;

-- Forgets the hours of five weeks ago, how many rows; what was counted of all time stays.
create or replace function esl.forget_hours(p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_rows int;
begin
    delete from esl.measures where ctid = any (array(
        select ctid from esl.measures
        where hour > '-infinity' and hour < now() - interval '35 days' limit p_limit for update skip locked));
    get diagnostics v_rows = row_count;
    return v_rows;
end $$;

-- What waits in the inbox and how the deliveries that no longer wait have ended, by shop.
create or replace function esl.inbox_numbers() returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(to_jsonb(t) order by t.shop), '[]') from (
        select k.source_system || ':' || k.source_store_id as shop, w.deliveries as waiting,
               (select extract(epoch from now() - i.received_at)::float8 from esl.webhook_inbox i
                where i.source_system = k.source_system and i.source_store_id = k.source_store_id
                  and i.state in ('ready', 'leased') order by i.id limit 1) as oldest_seconds,
               jsonb_build_object('done', d.done, 'superseded', d.superseded, 'unusable', d.unusable, 'dead', d.dead,
                                  'not_kept', d.not_kept, 'expired', d.expired) as ended
        from (select source_system, source_store_id from esl.shop_deliveries
              union select source_system, source_store_id from esl.shop_waiting
              union select source_system, source_store_id from esl.store_mappings) k
        cross join lateral esl.waiting(k.source_system, k.source_store_id) w
        left join esl.shop_deliveries d using (source_system, source_store_id)) t
$$;

-- What of the queue waits, by store and state (window: for the hours in which prices may rise), how long, and how many
-- labels of it show a price that is wrong meanwhile. Of mappings that are active and not in dry run.
create or replace function esl.queue_numbers() returns jsonb
language sql stable set search_path = '' as $$
    with mappings as materialized (
        select m.id, esl.window_is_open(m.settings -> 'raise_window') as is_open from esl.store_mappings m
        where m.is_active and not m.is_dry_run
    ), waiting as materialized (
        select q.store_code as store, q.created_at, q.is_rise,
               case when q.state = 'ready' and q.is_rise and not q.in_doubt and not m.is_open then 'window'
                    when q.state = 'leased' then 'ready' else q.state end as state,
               case when not esl.is_blanked(q.label_hash) and not esl.is_blanked(s.label_hash)
                    then sign(esl.price_of(q.label) - esl.price_of(s.label)) end as wrong
        from esl.sync_queue q join mappings m on m.id = q.mapping_id
        left join esl.hipoink_products s on s.code = q.code and s.store_code = q.store_code
    )
    select jsonb_build_object(
        'queue', (select coalesce(jsonb_agg(to_jsonb(t) order by t.store, t.state), '[]') from (
            select store, state, count(*) as labels, count(*) filter (where is_rise) as rises,
                   extract(epoch from now() - min(created_at))::float8 as oldest_seconds,
                   extract(epoch from now() - min(created_at) filter (where is_rise))::float8 as oldest_rise_seconds
            from waiting group by store, state) t),
        'wrong', (select coalesce(jsonb_agg(to_jsonb(t) order by t.store, t.kind), '[]') from (
            select store, case when wrong > 0 then 'over' else 'under' end as kind, count(*) as labels,
                   sum(extract(epoch from now() - created_at))::float8 as seconds
            from waiting where wrong <> 0 and state <> 'window' group by 1, 2) t))
$$;

-- How the labels of each active mapping stand, as far as that is cheap: accuracy as it was counted last.
create or replace function esl.mapping_numbers() returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(to_jsonb(t) order by t.store, t.shop), '[]') from (
        select m.hipoink_store_code as store, m.source_system || ':' || m.source_store_id as shop,
               a.at as counted_at, a.publishable, a.accurate, a.unsettled,
               (select count(*) from esl.labels l where l.mapping_id = m.id and (l.state = 'held' or l.collides))
               as held_back
        from esl.store_mappings m left join esl.accuracies a on a.mapping_id = m.id
        where m.is_active and not m.is_dry_run) t
$$;

-- The label servers of mapped stores, their breakers, and whether a drain of theirs is alive; stores that pause,
-- or that somebody has paused.
create or replace function esl.server_numbers() returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'servers', (select coalesce(jsonb_agg(jsonb_build_object(
                'server', s.state ->> 'server', 'failures', coalesce((s.state ->> 'failures')::int, 0),
                'down_seconds', extract(epoch from now() - (s.state ->> 'down_since')::timestamptz)::float8,
                'drain_is_alive', exists (select from esl.leases l
                                          where l.name = 'event_sync:' || (s.state ->> 'server') and l.until > now())
            ) order by s.state ->> 'server'), '[]') from jsonb_array_elements(esl.server_states()) s (state)),
        'paused', (select coalesce(jsonb_agg(k.store_code order by k.store_code), '[]') from (
                       select h.store_code from esl.store_health h where h.until > now() and esl.is_doubted(h)
                       union select s.store_code from esl.store_pauses s
                       where s.ended_at is null and esl.store_is_paused(s.store_code)) k),
        'comparisons', (select coalesce(jsonb_agg(jsonb_build_object('store', c.store_code, 'at', c.at,
                            'complete', c.complete, 'given_up', c.given_up) order by c.store_code), '[]')
                        from esl.comparisons c))
$$;

-- All of it, as esl_numbers tells it.
create or replace function esl.all_numbers() returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'at', clock_timestamp(), 'bounds', esl.bucket_bounds(),
        'measures', (select coalesce(jsonb_agg(to_jsonb(m) - 'hour' order by m.name, m.party, m.kind, m.server), '[]')
                     from esl.measures m where m.hour = '-infinity'),
        'inbox', esl.inbox_numbers(), 'mappings', esl.mapping_numbers())
        || esl.queue_numbers() || esl.server_numbers()
$$;

-- {seconds?} -> {at, bounds, measures: [{name, party, server, kind, n, total, buckets}], inbox, mappings, queue, wrong,
-- servers, paused, comparisons}: how things stand, not older than so many seconds (5), or than it took twenty times to
-- count, so that asking often costs little. Who comes while it is counted is told the answer before.
create or replace function public.esl_numbers(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare
    v_began  timestamptz := clock_timestamp();
    v_answer jsonb;
    k        esl.number_answers;
begin
    select * into k from esl.number_answers;
    if k.at > v_began - make_interval(secs => greatest(coalesce((p ->> 'seconds')::float8, 5), 20 * k.took)) then
        return k.answer;
    end if;
    if not pg_try_advisory_xact_lock(hashtextextended('esl.numbers', 0)) then
        return coalesce(k.answer, esl.all_numbers());
    end if;
    v_answer := esl.all_numbers();
    insert into esl.number_answers as a (at, took, answer)
    values (v_began, extract(epoch from clock_timestamp() - v_began), v_answer)
    on conflict (is_only) do update set at = excluded.at, took = excluded.took, answer = excluded.answer;
    return v_answer;
end $$;

-- The first row of the audit that is not older than this, by halving: its ids and times grow together.
create or replace function esl.first_logged(p_since timestamptz) returns bigint
language plpgsql stable set search_path = '' as $$
declare
    v_low  bigint := (select coalesce(min(id), 0) from esl.sync_log) - 1;
    v_high bigint := (select coalesce(max(id), 0) from esl.sync_log) + 1;
    v_mid  bigint;
begin
    while v_high - v_low > 1 loop
        v_mid := (v_low + v_high) / 2;
        if (select l.at from esl.sync_log l where l.id >= v_mid order by l.id limit 1) < p_since then
            v_low := v_mid;
        else
            v_high := v_mid;
        end if;
    end loop;
    return v_high;
end $$;

-- The labels that were pushed most often since then, of the newest 500,000 rows of the audit at most. contents: how
-- many different labels these were.
create or replace function esl.changing(p_since timestamptz, p_store text, p_limit int) returns jsonb
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_first bigint := greatest(esl.first_logged(p_since), (select max(id) from esl.sync_log) - 500000);
begin
    return (select coalesce(jsonb_agg(to_jsonb(t) order by t.pushes desc, t.store_code, t.code), '[]') from (
        select f.*, o.title, o.variant_title from (
            select l.store_code, l.code, count(*) as pushes, count(distinct l.label_hash) as contents,
                   max(l.at) as last_at
            from esl.sync_log l
            where l.id >= v_first and l.kind = 'result' and l.outcome = 'accepted' and l.operation = 'upsert'
              and (p_store is null or l.store_code = p_store)
            group by 1, 2 having count(*) > 1
            order by 3 desc, 1, 2 limit p_limit) f
        left join esl.hipoink_products s on s.code = f.code and s.store_code = f.store_code
        left join esl.store_mappings m on m.id = s.mapping_id
        left join esl.products o on o.variant_id = s.variant_id and o.source_store_id = m.source_store_id
                                and o.source_system = m.source_system) t);
end $$;

-- {since, store?, limit} -> {since, bounds, measures: as of esl_numbers, since the hour in which that is, changing:
-- [{store_code, code, title, variant_title, pushes, contents, last_at}]}: for people, of all stores or of one and the
-- shops that feed it.
create or replace function public.esl_stats(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare
    v_since   timestamptz := date_trunc('hour', (p ->> 'since')::timestamptz, 'UTC');
    v_parties text[];
begin
    if p ->> 'store' is not null then
        v_parties := array(
            select m.source_system || ':' || m.source_store_id from esl.store_mappings m
            where m.hipoink_store_code = p ->> 'store') || (p ->> 'store');
    end if;
    return jsonb_build_object(
        'since', v_since, 'bounds', esl.bucket_bounds(),
        'measures', (
            select coalesce(jsonb_agg(to_jsonb(t) order by t.name, t.party, t.kind, t.server), '[]') from (
                select m.name, m.party, m.server, m.kind, sum(m.n)::bigint as n, sum(m.total) as total,
                       esl.all_buckets(m.buckets) as buckets
                from esl.measures m
                where m.hour >= v_since and (v_parties is null or m.party = any (v_parties))
                group by m.name, m.party, m.server, m.kind) t),
        'changing', esl.changing(v_since, p ->> 'store', (p ->> 'limit')::int));
end $$;
