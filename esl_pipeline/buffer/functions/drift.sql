-- Drift: the label server's own list against the ledger, and how accurate the labels are.

-- Of earlier builds; esl.written had other columns.
drop function if exists esl.is_moving(text, text, timestamptz);
do $$ begin
    if pg_get_function_result(to_regprocedure('esl.written(text, text)')) not like '%label_hash%' then
        drop function esl.written(text, text);
    end if;
end $$;

-- Whether a label is, or has been since, on its way: the ledger may know more of it than a listing, or less. What only
-- waits (for a window, an approval, a repair) is not on its way: until then what the ledger says must hang. Of a
-- foreign label that is to be removed, or waits for that, it is all the same what it says. A table of one row, because
-- only those are inlined: as a plain function it would be planned anew for each label. One look at each table, however
-- long the audit (offset 0: else all of it may be read, to be looked up in).
create or replace function esl.moves(p_store text, p_code text, p_since timestamptz) returns table (moves boolean)
language sql stable as $$  -- inlined as well
    select exists (select from esl.sync_queue q
                   where q.code = p_code and q.store_code = p_store
                     and (q.in_doubt or q.state = 'leased' or q.variant_id = '') offset 0)
        or exists (select from esl.graces g
                   join esl.hipoink_products s on s.code = g.code and s.store_code = g.store_code and s.variant_id = ''
                   where g.code = p_code and g.store_code = p_store offset 0)
        or coalesce((select l.at from esl.sync_log l where l.code = p_code and l.store_code = p_store
                     order by l.id desc limit 1) >= p_since, false)
$$;

-- A label in the ledger. One look at it, whatever the statistics say (offset 0): of a store that is newer than they are
-- they say that it has no labels, and then all of them are read for each.
create or replace function esl.in_ledger(p_store text, p_code text) returns setof esl.hipoink_products
language sql stable as $$  -- inlined as well
    select s.* from esl.hipoink_products s where s.code = p_code and s.store_code = p_store offset 0
$$;

-- {store} -> {at, ledger, owned}: when the comparison begins, how many labels the store should have, and whether a
-- policy says that nobody else keeps labels there.
create or replace function public.esl_drift_begin(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object(
        'at', clock_timestamp(),
        'ledger', (select count(*) from esl.hipoink_products s where s.store_code = p ->> 'store'),
        'owned', esl.store_is_owned(p ->> 'store'))
$$;

-- What our own audit says of a place that is in no ledger: whose label we wrote there last. No row: nobody's, or it was
-- removed and the label server where its store is has said so: since the store is there, for it may have been there
-- before, with labels that another server removed. What was adopted only to be removed (no variant) was never ours.
create or replace function esl.written(p_store text, p_code text)
returns table (mapping_id uuid, variant_id text, label jsonb, label_hash text)
language sql stable as $$  -- inlined as well
    select m.id, i.variant_id, u.label, u.label_hash
    from (select l.* from esl.sync_log l
          where l.code = p_code and l.store_code = p_store and l.kind = 'intent'
          order by l.id desc limit 1) i
    join esl.store_mappings m on m.id = i.mapping_id
    left join lateral (
        select l.label, l.label_hash from esl.sync_log l
        where l.code = p_code and l.store_code = p_store and l.kind = 'intent' and l.operation = 'upsert'
        order by l.id desc limit 1) u on true
    where i.variant_id <> '' and (i.operation = 'upsert' or not exists (
        select from esl.sync_log r
        where r.code = p_code and r.store_code = p_store and r.push_id = i.push_id and r.outcome = 'accepted'
          and r.at >= coalesce((select s.placed_at from esl.stores s where s.store_code = p_store), '-infinity')))
$$;

-- {store, since, codes} -> {labels: [{code, push_id, label}], ours: [{code, label}], foreign: [codes], reserved: n}:
-- what we know of listed codes. Moving labels are left out. ours: in no ledger, but written by us (label: what was sent
-- last). foreign: in no ledger, queue, audit or evaluated label of ours. reserved: so many are of probes, and left out.
create or replace function public.esl_drift_compare(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (
        with listed as materialized (
            select c.code, s.push_id, s.label
            from jsonb_array_elements_text(p -> 'codes') as c (code)
            cross join lateral esl.moves(p ->> 'store', c.code, (p ->> 'since')::timestamptz) m
            left join lateral esl.in_ledger(p ->> 'store', c.code) s on true
            where not m.moves and not esl.is_reserved(c.code)
        ), unknown as materialized (
            select l.code, w.mapping_id is not null as is_ours, w.label
            from listed l left join lateral esl.written(p ->> 'store', l.code) w on true
            where l.push_id is null
        )
        select jsonb_build_object(
            'labels', (select coalesce(jsonb_agg(to_jsonb(l) order by l.code), '[]') from listed l
                       where l.push_id is not null),
            'ours', (select coalesce(jsonb_agg(jsonb_build_object('code', u.code, 'label', u.label)
                                               order by u.code), '[]')
                     from unknown u where u.is_ours),
            'foreign', (select coalesce(jsonb_agg(u.code order by u.code), '[]') from unknown u
                        where not u.is_ours and not exists (
                            select from esl.labels b where b.code = u.code and b.store_code = p ->> 'store')),
            'reserved', (select count(*) from jsonb_array_elements_text(p -> 'codes') as c (code)
                         where esl.is_reserved(c.code))));
end $$;

-- {store, after?, limit} -> {codes, next}: the places of ledger and queue, page by page.
create or replace function public.esl_drift_ledger(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (
        with page as (
            (select s.code from esl.hipoink_products s
             where s.store_code = p ->> 'store' and s.code > coalesce(p ->> 'after', '')
             order by s.code limit (p ->> 'limit')::int)
            union
            (select q.code from esl.sync_queue q
             where q.store_code = p ->> 'store' and q.code > coalesce(p ->> 'after', '')
             order by q.code limit (p ->> 'limit')::int)
            order by code limit (p ->> 'limit')::int
        )
        select jsonb_build_object('codes', coalesce(jsonb_agg(g.code order by g.code), '[]'), 'next', max(g.code))
        from page g);
end $$;

-- {store, since, codes} -> {labels: [{code, push_id}], moving: [codes]}: what the ledger has of places that are in no
-- list. moving: on their way, or in no ledger.
create or replace function public.esl_drift_unlisted(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return (
        with judged as materialized (
            select c.code, s.push_id, m.moves
            from jsonb_array_elements_text(p -> 'codes') as c (code)
            cross join lateral esl.moves(p ->> 'store', c.code, (p ->> 'since')::timestamptz) m
            left join lateral esl.in_ledger(p ->> 'store', c.code) s on true
        )
        select jsonb_build_object(
            'labels', coalesce(jsonb_agg(jsonb_build_object('code', j.code, 'push_id', j.push_id) order by j.code)
                               filter (where not j.moves and j.push_id is not null), '[]'),
            'moving', coalesce(jsonb_agg(j.code order by j.code) filter (where j.moves or j.push_id is null), '[]'))
        from judged j);
end $$;

-- Of differences that were found those that still stand (p: as for esl_drift_repair), with what the label should say,
-- whose it is, and how often it was repaired lately. The same difference is meant; a label that is missing, or there,
-- is so whatever it says. A label of ours as it was sent keeps the hash that it was sent with.
create or replace function esl.standing_drift(p jsonb)
returns table (code text, kind text, said jsonb, theirs jsonb, label jsonb, label_hash text, mapping_id uuid,
               variant_id text, repairs bigint)
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return query
        select d.code, d.kind, coalesce(d.ours, s.label, w.label), d.theirs, d.label,
               case when d.label = w.label then w.label_hash else d.label_hash end,
               coalesce(s.mapping_id, w.mapping_id), coalesce(s.variant_id, w.variant_id),
               (select count(*) from esl.drift x
                where x.code = d.code and x.store_code = p ->> 'store' and x.kind = d.kind
                  and (d.kind <> 'different' or (x.ours, x.theirs) = (d.ours, d.theirs))
                  and x.at > now() - interval '14 days')
        from jsonb_populate_recordset(null::esl.drift_row, p -> 'labels') d
        cross join lateral esl.moves(p ->> 'store', d.code, (p ->> 'since')::timestamptz) m
        left join lateral esl.in_ledger(p ->> 'store', d.code) s on true
        left join lateral esl.written(p ->> 'store', case when d.kind = 'ours' then d.code end) w on true
        where d.push_id is not distinct from s.push_id
          and not m.moves and not esl.is_reserved(d.code)
          and (d.kind <> 'ours' or w.mapping_id is not null)
          and (d.kind <> 'foreign' or not exists (
              select from esl.labels b where b.code = d.code and b.store_code = p ->> 'store'));
end $$;

-- Which mapping answers for labels of a store that are nobody's; null: none feeds it.
create or replace function esl.mapping_for_strangers(p_store text) returns uuid
language sql stable set search_path = '' as $$
    select m.id from esl.store_mappings m where m.hipoink_store_code = p_store and m.is_active
    order by m.is_dry_run, esl.policy_text(m.settings, 'owns_store') = 'true' desc, m.created_at, m.id limit 1
$$;

-- {store, run_id, since, labels: [{code, kind, push_id, ours, theirs, label, label_hash}]}
-- -> {requeued, given_up: [codes]}
-- What the label server holds is not what it has accepted: the place is in doubt, and esl.requeue decides what follows.
--   different, missing -> in doubt: what is wanted is pushed, what the ledger says where the label stays as it is,
--                and a removal too where nothing is wanted any more, because the label may hang after all
--   ours      -> the label enters the ledger again, in doubt, as its variant's
--   foreign   -> the label enters the ledger, owned by no variant, so that it is removed (esl.guard counts it)
-- Not for the fourth time in 14 days, when the same came back after three repairs: then it is how the server keeps what
-- we send (or another writer), and repairing changes nothing: given_up.
-- What has been pushed since it was compared (another push_id) or is on its way is left alone.
create or replace function public.esl_drift_repair(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_store text := p ->> 'store'; v_codes text[]; v_given_up text[];
begin
    perform esl.lock_stores(array[v_store]);

    with found as materialized (
        select * from esl.standing_drift(p)
    ), taken as materialized (
        select * from found where repairs < 3
    ), noted as (
        insert into esl.drift (run_id, store_code, code, kind, ours, theirs)
        select p ->> 'run_id', v_store, code, kind, said, theirs from taken
    ), doubted as (
        -- What the server holds is not what the ledger says, or not known: nobody may drop the row.
        insert into esl.sync_queue (store_code, code, mapping_id, variant_id, operation, label, label_hash, priority,
                                    in_doubt, cause)
        select v_store, t.code, t.mapping_id, t.variant_id, 'upsert', coalesce(s.label, t.label),
               coalesce(s.label_hash, t.label_hash), case when t.kind = 'missing' then 2 else 0 end, true, 'drift'
        from taken t left join lateral esl.in_ledger(v_store, t.code) s on true
        where t.kind in ('missing', 'different', 'ours')
        on conflict (store_code, code) do update set in_doubt = true
    ), adopted as (
        insert into esl.hipoink_products (store_code, code, mapping_id, variant_id, label, label_hash, push_id)
        select v_store, t.code, m.id, coalesce(t.variant_id, ''), t.label, t.label_hash, gen_random_uuid()
        from taken t
        cross join lateral (select coalesce(t.mapping_id, esl.mapping_for_strangers(v_store)) as id) m
        where t.kind in ('foreign', 'ours') and m.id is not null
        returning mapping_id
    ), left_behind as (
        insert into esl.left_stores (mapping_id, store_code)
        select distinct m.id, v_store from adopted a join esl.store_mappings m on m.id = a.mapping_id
        where m.hipoink_store_code <> v_store
        on conflict do nothing
    )
    select array_agg(code) filter (where repairs < 3), coalesce(array_agg(code) filter (where repairs >= 3), '{}')
    into v_codes, v_given_up from found;
    perform esl.requeue(array_fill(v_store, array[coalesce(cardinality(v_codes), 0)]), v_codes, 'drift');
    perform esl.measure_drift(v_store, v_codes);
    if v_codes is not null then  -- the server may hold what it never confirmed, and its labels not show it
        perform esl.want_refresh(v_store);
    end if;

    return (select jsonb_build_object('requeued', count(*), 'given_up', to_jsonb(v_given_up))
            from esl.sync_queue q where q.store_code = v_store and q.code in (
                select d.code from jsonb_populate_recordset(null::esl.drift_row, p -> 'labels') d));
end $$;

-- {store, at, run_id, complete, reason, listed, ledger, skipped, given_up} -> {}: how a comparison that began at that
-- time ended; the latest of each store is kept.
create or replace function public.esl_drift_end(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    insert into esl.comparisons as c (store_code, at, run_id, complete, reason, listed, ledger, skipped, given_up)
    values (p ->> 'store', (p ->> 'at')::timestamptz, p ->> 'run_id', (p ->> 'complete')::boolean, p ->> 'reason',
            (p ->> 'listed')::int, (p ->> 'ledger')::int, (p ->> 'skipped')::int, (p ->> 'given_up')::int)
    on conflict (store_code) do update
    set at = excluded.at, run_id = excluded.run_id, complete = excluded.complete, reason = excluded.reason,
        listed = excluded.listed, ledger = excluded.ledger, skipped = excluded.skipped, given_up = excluded.given_up
    where c.at <= excluded.at;
    return '{}';
end $$;

-- What was counted of these mappings is kept for those who cannot count it each time (see functions/numbers.sql).
create or replace function esl.note_accuracy(p_mappings jsonb) returns void
language sql volatile set search_path = '' as $$
    insert into esl.accuracies as a (mapping_id, at, publishable, accurate, unsettled, due)
    select c.mapping_id, clock_timestamp(), c.publishable, c.accurate, c.unsettled, c.due
    from jsonb_populate_recordset(null::esl.accuracies, p_mappings) c order by c.mapping_id
    on conflict (mapping_id) do update
    set at = excluded.at, publishable = excluded.publishable, accurate = excluded.accurate,
        unsettled = excluded.unsettled, due = excluded.due
$$;

-- {shop?, shops?} -> {mappings: [{mapping_id, source_system, source_store_id, hipoink_store_code, problem, publishable,
--   accurate, unsettled, window: {labels, until}, grace, due, comparison: {at, complete, reason, skipped, given_up, …}
--   or null}]} of every active mapping that is not in dry run.
-- accurate: of the publishable labels, those that the label server accepted as they should be now, with nothing in
-- doubt. unsettled: other places where it does not hold, or is not known to hold, what it should: labels that are to go
-- and are still there, whatever they wait for but their grace, and ones that are to be put back. grace: labels that go
-- when theirs is over, and are as they are to be until then (see esl.grace_state). due: variants that are not evaluated
-- yet. window: rises that wait for theirs and for nothing else: neither right nor wrong, as the policy says so.
-- comparison: how the last one of the store with the label server's own list ended.
create or replace function public.esl_accuracy(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
declare v_answer jsonb;
begin
    select jsonb_build_object('mappings',
        coalesce(jsonb_agg(to_jsonb(t) order by t.hipoink_store_code, t.mapping_id), '[]')) into v_answer from (
        select m.id as mapping_id, m.source_system, m.source_store_id, m.hipoink_store_code,
               esl.mapping_problem(m) as problem,
               count(l.variant_id) as publishable,
               count(s.code) filter (where o.variant_id is null and q.code is null) as accurate,
               (select count(*) from esl.sync_queue w
                where w.mapping_id = m.id and not exists (
                    select from esl.labels b
                    where b.variant_id = w.variant_id and b.mapping_id = m.id and b.state = 'publish' and not b.collides
                      and b.code = w.code and b.store_code = w.store_code)) as unsettled,
               (select jsonb_build_object('labels', count(*), 'until', min(o.opens))
                from (select esl.window_opens(m.settings -> 'raise_window') as opens offset 0) o  -- asked once
                join esl.sync_queue w on w.mapping_id = m.id and esl.waits_for_window(w, o.opens)
                where w.variant_id not in (  -- once for all of them
                    select d.variant_id from esl.products d
                    where d.due and d.source_system = m.source_system
                      and d.source_store_id = m.source_store_id)) as "window",
               esl.grace_state(m.id) as grace,
               (select count(*) from esl.products d where d.due and not d.removed
                  and d.source_system = m.source_system and d.source_store_id = m.source_store_id) as due,
               (select to_jsonb(c) from esl.comparisons c where c.store_code = m.hipoink_store_code) as comparison
        from esl.store_mappings m
        left join esl.labels l on l.mapping_id = m.id and l.state = 'publish' and not l.collides
        left join esl.hipoink_products s
          on s.code = l.code and s.store_code = l.store_code and s.label_hash = l.label_hash
        left join esl.sync_queue q on q.code = l.code and q.store_code = l.store_code and q.in_doubt
        left join esl.products o
          on o.due and o.variant_id = l.variant_id and o.source_system = m.source_system
         and o.source_store_id = m.source_store_id
        where m.is_active and not m.is_dry_run and m.id in (select c.id from esl.chosen_mappings(p) c)
        group by m.id) t;
    perform esl.note_accuracy(v_answer -> 'mappings');
    return v_answer;
end $$;
