-- What may go on a label: evaluated labels come in, the places where they differ from the ledger go into the queue.

-- Compares the given (store, code) places with the ledger and brings the queue in line. This is the only place
-- that decides what is pushed, whatever the occasion.
--   one publisher   -> its label, unless the ledger holds it and no push is in doubt
--   two and more    -> collision: nothing is pushed, the label on the shelf stays
--   none            -> removal, unless the label's owner is held back or paused (then it stays)
create or replace function esl.requeue(p_stores text[], p_codes text[]) returns void
language plpgsql set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_stores text[]; v_codes text[];
begin
    -- Findings first: a collision is an error of every variant that takes part, and ends for all of them. Where one
    -- begins or ends, the other places of its variants are decided again: a label that was kept may go now.
    with keys as (
        select distinct k.store_code, k.code from unnest(p_stores, p_codes) as k (store_code, code)
        where k.code is not null
    ), rivals as (
        select l.mapping_id, l.variant_id, l.code, l.collides,
               count(*) over (partition by l.store_code, l.code) > 1 as collides_now,
               string_agg(l.variant_id, ', ') over (partition by l.store_code, l.code) as variants
        from keys join esl.labels l using (store_code, code)
        join esl.store_mappings m on m.id = l.mapping_id and m.is_active and m.hipoink_store_code = l.store_code
        where l.state = 'publish'
    ), marked as (
        update esl.labels l set collides = r.collides_now from rivals r
        where l.mapping_id = r.mapping_id and l.variant_id = r.variant_id and l.collides <> r.collides_now
        returning l.mapping_id, l.variant_id
    ), noted as (
        insert into esl.findings as f (mapping_id, variant_id, check_name, level, column_name, value, reason, action)
        select mapping_id, variant_id, 'duplicate_code', 'error', 'code', code,
               format('variants %s share the code %s', variants, code), 'give each variant a code of its own'
        from rivals where collides_now
        on conflict (mapping_id, variant_id, check_name) do update
        set value = excluded.value, reason = excluded.reason, last_seen_at = now(), resolved_at = null
    ), elsewhere as (
        select s.store_code, s.code from marked join esl.hipoink_products s using (mapping_id, variant_id)
        union select q.store_code, q.code from marked join esl.sync_queue q using (mapping_id, variant_id)
    )
    select p_stores || array_agg(store_code), p_codes || array_agg(code) into v_stores, v_codes from elsewhere;

    update esl.findings f set resolved_at = now()
    from esl.labels l
    where f.check_name = 'duplicate_code' and f.resolved_at is null
      and l.mapping_id = f.mapping_id and l.variant_id = f.variant_id and not (l.collides and l.state = 'publish')
      and (f.value = any (p_codes) or l.code = any (p_codes));

    with keys as (
        select distinct k.store_code, k.code from unnest(v_stores, v_codes) as k (store_code, code)
        where k.code is not null
    ), places as (
        select k.store_code, k.code, b.n as publishers, w.mapping_id, w.variant_id, w.label, w.label_hash, w.event_ids,
               s.label as shown, s.label_hash as shown_hash,
               coalesce(s.mapping_id, q.mapping_id) as owner_mapping,
               coalesce(s.variant_id, q.variant_id) as owner_variant,
               coalesce(q.in_doubt or q.state = 'leased', false) as open_push
        from keys k
        cross join lateral (
            select count(*) as n, min(l.mapping_id::text)::uuid as mapping_id, min(l.variant_id) as variant_id
            from esl.labels l
            join esl.store_mappings m on m.id = l.mapping_id and m.is_active and m.hipoink_store_code = l.store_code
            where l.store_code = k.store_code and l.code = k.code and l.state = 'publish') b
        left join esl.labels w on b.n = 1 and w.mapping_id = b.mapping_id and w.variant_id = b.variant_id
        left join esl.hipoink_products s on s.store_code = k.store_code and s.code = k.code
        left join esl.sync_queue q on q.store_code = k.store_code and q.code = k.code
    ), decided as (
        select p.*, case
            when p.publishers = 1 and (p.open_push or p.shown_hash is distinct from p.label_hash)
                then 'upsert'
            when p.publishers = 1 then 'nothing'
            when p.publishers > 1 then 'keep'
            when p.shown is null and not p.open_push then 'nothing'
            when exists (select from esl.labels o join esl.store_mappings m on m.id = o.mapping_id
                         where o.mapping_id = p.owner_mapping and o.variant_id = p.owner_variant
                           and (o.state = 'held' or o.collides or not m.is_active)) then 'keep'
            else 'delete' end as decision
        from places p
    ), dropped as (
        delete from esl.sync_queue q using decided d
        where q.store_code = d.store_code and q.code = d.code and d.decision in ('nothing', 'keep')
          and q.state <> 'leased' and not q.in_doubt
    ), taken_over as (
        -- The label is right already, but was another variant's: from now on its new owner decides what becomes of it.
        update esl.hipoink_products s set mapping_id = d.mapping_id, variant_id = d.variant_id
        from decided d
        where s.store_code = d.store_code and s.code = d.code and d.publishers = 1 and d.decision = 'nothing'
          and (s.mapping_id, s.variant_id) <> (d.mapping_id, d.variant_id)
    )
    insert into esl.sync_queue as q (store_code, code, mapping_id, variant_id, operation, label, label_hash,
                                     priority, event_ids)
    select d.store_code, d.code,
           coalesce(d.mapping_id, d.owner_mapping), coalesce(d.variant_id, d.owner_variant),
           d.decision, d.label, d.label_hash,
           case when d.decision = 'delete' then 3
                when d.shown is null then 2
                when (d.label ->> 'pp')::numeric > (d.shown ->> 'pp')::numeric then 0
                when (d.label ->> 'pp')::numeric < (d.shown ->> 'pp')::numeric then 1
                else 2 end,
           coalesce(d.event_ids, (select o.event_ids from esl.labels o where o.mapping_id = d.owner_mapping
                                  and o.variant_id = d.owner_variant), '{}')
    from decided d where d.decision in ('upsert', 'delete')
    on conflict (store_code, code) do update
    set mapping_id = excluded.mapping_id, variant_id = excluded.variant_id, operation = excluded.operation,
        label = excluded.label, label_hash = excluded.label_hash, priority = excluded.priority,
        event_ids = excluded.event_ids, generation = nextval('esl.revision'), attempts = 0, max_batch = 1000,
        state = case when q.state = 'leased' then 'leased' else 'ready' end,
        next_attempt_at = now(), last_error = null
    where (q.operation, q.label_hash, q.mapping_id, q.variant_id)
       is distinct from (excluded.operation, excluded.label_hash, excluded.mapping_id, excluded.variant_id);
end $$;

-- {labels: [{mapping_id, variant_id, revision, store_code, state, code, label, label_hash, event_ids}],
--  findings: [{mapping_id, variant_id, revision, check_name, level, column_name, value, reason, action}],
--  evaluated: [{source_system, source_store_id, variant_id, revision}]}
-- -> {labels_changed, stale, upserts_queued, removals_queued, collisions: [findings of the staged variants]}
-- Only variants whose revision is still the evaluated one are staged; the others have changed meanwhile, are due
-- again, and an older evaluation may not win over a newer one.
create or replace function public.esl_labels_stage(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_stores text[]; v_codes text[]; v_staged int; v_fresh int; v_now timestamptz; v_collisions jsonb;
begin
    -- Stages are short and take turns: codes may collide between any two of them.
    perform pg_advisory_xact_lock(hashtextextended('esl.labels', 0));
    v_now := clock_timestamp();

    -- Locks the variants, so that their revisions stand until the end of this call.
    update esl.products o set due = false
    from jsonb_to_recordset(p -> 'evaluated') as e (
        source_system text, source_store_id text, variant_id text, revision bigint)
    where o.source_system = e.source_system and o.source_store_id = e.source_store_id
      and o.variant_id = e.variant_id and o.revision = e.revision;
    get diagnostics v_fresh = row_count;

    with incoming as (
        select distinct on (d.mapping_id, d.variant_id) d.*
        from jsonb_to_recordset(p -> 'labels') as d (
            mapping_id uuid, variant_id text, revision bigint, store_code text, state text, code text, label jsonb,
            label_hash text, event_ids bigint[])
        join esl.store_mappings m on m.id = d.mapping_id and m.is_active
        join esl.products o on o.source_system = m.source_system and o.source_store_id = m.source_store_id
                           and o.variant_id = d.variant_id and o.revision = d.revision
        order by d.mapping_id, d.variant_id
    ), before as (
        select o.store_code, o.code from esl.labels o join incoming using (mapping_id, variant_id)
        union select s.store_code, s.code from esl.hipoink_products s join incoming using (mapping_id, variant_id)
        union select q.store_code, q.code from esl.sync_queue q join incoming using (mapping_id, variant_id)
    ), written as (
        insert into esl.labels as o (mapping_id, variant_id, store_code, code, label, label_hash, state, event_ids)
        select i.mapping_id, i.variant_id, i.store_code, i.code, i.label, i.label_hash, i.state,
               coalesce(i.event_ids, '{}')
        from incoming i
        where not exists (
            select from esl.labels o where o.mapping_id = i.mapping_id and o.variant_id = i.variant_id
              and (o.store_code, o.code, o.label_hash, o.state)
                  is not distinct from (i.store_code, i.code, i.label_hash, i.state))
        on conflict (mapping_id, variant_id) do update
        set store_code = excluded.store_code, code = excluded.code, label = excluded.label,
            label_hash = excluded.label_hash, state = excluded.state, collides = false,
            event_ids = excluded.event_ids, evaluated_at = now()
        returning 1
    ), touched as (
        select store_code, code from before
        union select store_code, code from incoming
    )
    select array_agg(store_code), array_agg(code), (select count(*) from written)
    into v_stores, v_codes, v_staged
    from touched where code is not null;

    insert into esl.findings as f (mapping_id, variant_id, check_name, level, column_name, value, reason, action,
                                   last_seen_at)
    select distinct on (d.mapping_id, d.variant_id, d.check_name)
           d.mapping_id, d.variant_id, d.check_name, d.level, d.column_name, d.value, d.reason, d.action, v_now
    from jsonb_to_recordset(p -> 'findings') as d (
        mapping_id uuid, variant_id text, revision bigint, check_name text, level text, column_name text, value text,
        reason text, action text)
    join esl.store_mappings m on m.id = d.mapping_id and m.is_active
    join esl.products o on o.source_system = m.source_system and o.source_store_id = m.source_store_id
                       and o.variant_id = d.variant_id and o.revision = d.revision
    order by d.mapping_id, d.variant_id, d.check_name
    on conflict (mapping_id, variant_id, check_name) do update
    set level = excluded.level, column_name = excluded.column_name, value = excluded.value,
        reason = excluded.reason, action = excluded.action, last_seen_at = excluded.last_seen_at, resolved_at = null;

    -- What was not found again is resolved.
    update esl.findings f set resolved_at = v_now
    from jsonb_to_recordset(p -> 'labels') as d (mapping_id uuid, variant_id text, revision bigint)
    join esl.store_mappings m on m.id = d.mapping_id and m.is_active
    join esl.products o on o.source_system = m.source_system and o.source_store_id = m.source_store_id
                       and o.variant_id = d.variant_id and o.revision = d.revision
    where f.mapping_id = d.mapping_id and f.variant_id = d.variant_id and f.resolved_at is null
      and f.last_seen_at < v_now and f.check_name <> 'duplicate_code';

    perform esl.requeue(v_stores, v_codes);

    select coalesce(jsonb_agg(jsonb_build_object('mapping_id', f.mapping_id, 'variant_id', f.variant_id,
               'check_name', f.check_name, 'level', f.level, 'column_name', f.column_name, 'value', f.value,
               'reason', f.reason, 'action', f.action)), '[]')
    into v_collisions
    from jsonb_to_recordset(p -> 'labels') as d (mapping_id uuid, variant_id text)
    join esl.labels l using (mapping_id, variant_id)
    join esl.findings f using (mapping_id, variant_id)
    where l.state = 'publish' and l.collides and f.check_name = 'duplicate_code' and f.resolved_at is null;

    return (select jsonb_build_object(
        'labels_changed', coalesce(v_staged, 0),
        'stale', jsonb_array_length(p -> 'evaluated') - v_fresh,
        'upserts_queued', count(*) filter (where q.operation = 'upsert'),
        'removals_queued', count(*) filter (where q.operation = 'delete'),
        'collisions', v_collisions)
        from unnest(v_stores, v_codes) as k (store_code, code) join esl.sync_queue q using (store_code, code));
end $$;

select esl.restrict_functions();
