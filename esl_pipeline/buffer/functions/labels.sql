-- What may go on a label: evaluated labels come in, the places where they differ from the ledger go into the queue.

-- Who may show its label at the given (store, code) places, one row per place and variant: how many want it, and
-- whether this one gets it. Several of one mapping: all do when their labels are equal, else the first in order of
-- precedence where its policy ranks them (duplicate_rule). A mapping in dry run never stands against a live one.
create or replace function esl.publishers(p_stores text[], p_codes text[])
returns table (store_code text, code text, mapping_id uuid, variant_id text, source_store_id text, collides boolean,
               rivals int, place int, wins boolean)
language sql stable set search_path = '' as $$
    with wanted as (
        select l.store_code, l.code, l.mapping_id, l.variant_id, m.source_store_id, l.collides, l.label_hash,
               l.precedence, m.is_dry_run
        from (select distinct k.store_code, k.code from unnest(p_stores, p_codes) as k (store_code, code)
              where k.code is not null) k
        cross join lateral (
            select * from esl.labels l
            where l.store_code = k.store_code and l.code = k.code and l.state = 'publish') l
        join esl.store_mappings m on m.id = l.mapping_id and m.is_active and m.hipoink_store_code = l.store_code
    ), judged as (
        select w.*, count(*) over place as rivals,
               -- Only among the live ones, where there are any.
               min(w.mapping_id::text) over live = max(w.mapping_id::text) over live as one_shop,
               min(w.label_hash) over live = max(w.label_hash) over live as equal,
               bool_and(w.precedence is not null) over live as ranked,
               w.is_dry_run = bool_and(w.is_dry_run) over place as takes_part,
               row_number() over (partition by w.store_code, w.code
                                  order by w.is_dry_run, w.precedence collate "C", w.variant_id collate "C") as place
        from wanted w
        window place as (partition by w.store_code, w.code),
               live as (partition by w.store_code, w.code, w.is_dry_run)
    )
    select store_code, code, mapping_id, variant_id, source_store_id, collides, rivals::int, place::int,
           takes_part and one_shop and (rivals = 1 or equal or (ranked and place = 1))
    from judged
$$;

-- Compares the given (store, code) places with the ledger and brings the queue in line. This is the only place
-- that decides what is pushed, whatever the occasion.
--   a winner     -> its label, unless the ledger holds it and no push is in doubt
--   rivals only  -> collision: nothing is pushed, the label on the shelf stays
--   nobody       -> removal, unless the label's owner is held back, kept or paused (then it stays) or to be blanked
create or replace function esl.requeue(p_stores text[], p_codes text[]) returns void
language plpgsql set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_stores text[]; v_codes text[];
begin
    -- Findings first: a collision is a finding of every variant that takes part, and ends for all of them. Where one
    -- begins or ends, the other places of its variants are decided again: a label that was kept may go now.
    with rivals as materialized (
        select * from esl.publishers(p_stores, p_codes)
    ), named as (
        -- A house code of a whole shop may have thousands of rivals.
        select store_code, code, min(rivals) as n,
               string_agg(variant_id || ' of ' || source_store_id, ', ' order by place) filter (where place <= 10) as names,
               min(variant_id) filter (where wins) as winner
        from rivals where rivals > 1 group by 1, 2
    ), marked as (
        update esl.labels l set collides = not r.wins from rivals r
        where l.mapping_id = r.mapping_id and l.variant_id = r.variant_id and l.collides = r.wins
        returning l.mapping_id, l.variant_id
    ), noted as (
        insert into esl.findings as f (mapping_id, variant_id, check_name, level, column_name, value, reason, action)
        select r.mapping_id, r.variant_id, 'duplicate_code', case when r.wins then 'warning' else 'error' end, 'code',
               r.code,
               format('variants %s%s share the code %s', n.names,
                      case when n.n > 10 then format(' and %s more', n.n - 10) else '' end, r.code)
               || case when n.winner is null then '' else format('; the label shows %s', n.winner) end,
               'give each variant a code of its own'
        from rivals r join named n using (store_code, code)
        -- Equal labels are no conflict.
        where not r.wins or exists (select from rivals o
                                    where o.store_code = r.store_code and o.code = r.code and not o.wins)
        on conflict (mapping_id, variant_id, check_name) do update
        set level = excluded.level, value = excluded.value, reason = excluded.reason, last_seen_at = now(),
            resolved_at = null
        returning f.mapping_id, f.variant_id
    ), resolved as (
        update esl.findings f set resolved_at = now()
        from esl.labels l
        where f.check_name = 'duplicate_code' and f.resolved_at is null
          and l.mapping_id = f.mapping_id and l.variant_id = f.variant_id
          and (f.value = any (p_codes) or l.code = any (p_codes))
          and not exists (select from noted n where n.mapping_id = f.mapping_id and n.variant_id = f.variant_id)
    ), elsewhere as (
        select s.store_code, s.code from marked join esl.hipoink_products s using (mapping_id, variant_id)
        union select q.store_code, q.code from marked join esl.sync_queue q using (mapping_id, variant_id)
    )
    select p_stores || array_agg(store_code), p_codes || array_agg(code) into v_stores, v_codes from elsewhere;

    with keys as (
        select distinct k.store_code, k.code from unnest(v_stores, v_codes) as k (store_code, code)
        where k.code is not null
    ), winners as materialized (
        -- Of equal labels one stands for all.
        select distinct on (store_code, code) store_code, code, mapping_id, variant_id, wins
        from esl.publishers(v_stores, v_codes) order by store_code, code, wins desc, place
    ), places as (
        select k.store_code, k.code, b.wins, l.mapping_id, l.variant_id, l.label, l.label_hash, l.event_ids,
               coalesce(s.label, q.label) as shown, s.label_hash as shown_hash,
               coalesce(s.mapping_id, q.mapping_id) as owner_mapping,
               coalesce(s.variant_id, q.variant_id) as owner_variant,
               s.code is not null as on_label,
               coalesce(q.in_doubt or q.state = 'leased', false) as open_push
        from keys k
        left join winners b on b.store_code = k.store_code and b.code = k.code
        left join esl.labels l on b.wins and l.mapping_id = b.mapping_id and l.variant_id = b.variant_id
        left join esl.hipoink_products s on s.store_code = k.store_code and s.code = k.code
        left join esl.sync_queue q on q.store_code = k.store_code and q.code = k.code
    ), owned as (
        select p.*, o.state as owner_state, o.event_ids as owner_events,
               o.state in ('held', 'kept') or o.collides or not m.is_active as owner_stays
        from places p
        left join esl.labels o on o.mapping_id = p.owner_mapping and o.variant_id = p.owner_variant
        left join esl.store_mappings m on m.id = o.mapping_id
    ), decided as (
        select o.store_code, o.code, o.wins, o.mapping_id, o.variant_id, o.owner_mapping, o.owner_variant,
               o.owner_events, o.event_ids, o.shown, o.on_label,
               coalesce(o.label, b.label) as label, coalesce(o.label_hash, b.label_hash) as label_hash,
               case
                   when o.wins and (o.open_push or o.shown_hash is distinct from o.label_hash) then 'upsert'
                   when o.wins then 'nothing'
                   when not o.wins then 'keep'
                   when not o.on_label and not o.open_push then 'nothing'
                   when b.label is not null and not o.open_push and o.shown = b.label then 'keep'
                   when b.label is not null then 'upsert'
                   when o.owner_stays then 'keep'
                   else 'delete' end as decision
        from owned o
        left join lateral (
            select x.label, encode(sha256(x.label::text::bytea), 'hex') as label_hash from (
                -- The label server demands a name and a price (hipoink-api.md section 5).
                select jsonb_object_agg(f.key, case when f.key = 'pc' then f.value
                           when f.key = 'pn' then '"-"' when f.key = 'pp' then '"0.00"'
                           when jsonb_typeof(f.value) = 'object' then (
                               select jsonb_object_agg(e.key, '') from jsonb_each(f.value) e)
                           else '""' end) as label
                from jsonb_each(o.shown) f) x
            where o.wins is null and o.owner_state = 'blank' and o.shown is not null) b on true
    ), dropped as (
        delete from esl.sync_queue q using decided d
        where q.store_code = d.store_code and q.code = d.code and d.decision in ('nothing', 'keep')
          and q.state <> 'leased' and not q.in_doubt
    ), taken_over as (
        -- The label is right already, but was another variant's: from now on its new owner decides what becomes of it.
        update esl.hipoink_products s set mapping_id = d.mapping_id, variant_id = d.variant_id
        from decided d
        where s.store_code = d.store_code and s.code = d.code and d.wins and d.decision = 'nothing'
          and (s.mapping_id, s.variant_id) <> (d.mapping_id, d.variant_id)
    )
    insert into esl.sync_queue as q (store_code, code, mapping_id, variant_id, operation, label, label_hash,
                                     is_drastic, priority, event_ids)
    select d.store_code, d.code,
           coalesce(d.mapping_id, d.owner_mapping), coalesce(d.variant_id, d.owner_variant),
           d.decision, d.label, d.label_hash,
           d.decision = 'delete' or coalesce(d.on_label and d.wins and esl.is_large_change(
               (d.shown ->> 'pp')::numeric, (d.label ->> 'pp')::numeric,
               (select (m.settings ->> 'max_change_pct')::numeric from esl.store_mappings m where m.id = d.mapping_id)),
               false),
           case when d.decision = 'delete' then 3
                when (d.label ->> 'pp')::numeric > (d.shown ->> 'pp')::numeric then 0
                when (d.label ->> 'pp')::numeric < (d.shown ->> 'pp')::numeric then 1
                else 2 end,
           coalesce(d.event_ids, d.owner_events, '{}')
    from decided d where d.decision in ('upsert', 'delete')
    on conflict (store_code, code) do update
    set mapping_id = excluded.mapping_id, variant_id = excluded.variant_id, operation = excluded.operation,
        label = excluded.label, label_hash = excluded.label_hash, priority = excluded.priority,
        is_drastic = excluded.is_drastic, event_ids = excluded.event_ids, generation = nextval('esl.revision'), attempts = 0, max_batch = 1000,
        refused_at = null, refusals = 0,
        state = case when q.state = 'leased' then 'leased' else 'ready' end, approved = false,
        next_attempt_at = now(), last_error = null
    where (q.operation, q.label_hash, q.mapping_id, q.variant_id)
       is distinct from (excluded.operation, excluded.label_hash, excluded.mapping_id, excluded.variant_id);

    perform esl.guard(store_code) from (select distinct unnest(v_stores) as store_code) touched;
end $$;

-- Whether a price changes by more than so many per cent of the one shown.
create or replace function esl.is_large_change(p_shown numeric, p_price numeric, p_max_pct numeric) returns boolean
language sql immutable set search_path = '' as $$
    select p_shown > 0 and abs(p_price - p_shown) * 100 > coalesce(p_max_pct, 80) * p_shown
$$;

-- Too many drastic changes at once (removals, or large price changes) are more likely a mistake than a wish: they
-- wait until somebody approves them, or until there are fewer. The limits are of the strictest policy concerned.
create or replace function esl.guard(p_store text) returns void
language plpgsql set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare r record; v_labels int;
begin
    for r in
        select q.operation, count(*) as pending, bool_or(q.state = 'guarded') as guarded,
               min(coalesce((m.settings ->> 'guard_labels')::int, 5)) as most,
               min(coalesce((m.settings ->> 'guard_share_pct')::int, 20)) as share
        from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
        where q.store_code = p_store and q.is_drastic and not q.approved
        group by q.operation
    loop
        if r.pending > r.most then
            v_labels := coalesce(v_labels, (select count(*) from esl.hipoink_products s where s.store_code = p_store));
        end if;
        if r.pending > r.most and r.pending * 100 > r.share * v_labels then
            update esl.sync_queue set state = 'guarded'
            where store_code = p_store and is_drastic and operation = r.operation and not approved
              and state in ('ready', 'failed', 'dead');
        elsif r.guarded then
            update esl.sync_queue set state = 'ready'
            where store_code = p_store and is_drastic and operation = r.operation and state = 'guarded';
        end if;
    end loop;
end $$;

-- {labels: [{mapping_id, variant_id, revision, store_code, state, code, precedence, label, label_hash, event_ids}],
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
            mapping_id uuid, variant_id text, revision bigint, store_code text, state text, code text, precedence text,
            label jsonb, label_hash text, event_ids bigint[])
        join esl.store_mappings m on m.id = d.mapping_id and m.is_active
        join esl.products o on o.source_system = m.source_system and o.source_store_id = m.source_store_id
                           and o.variant_id = d.variant_id and o.revision = d.revision
        order by d.mapping_id, d.variant_id
    ), before as (
        select o.store_code, o.code from esl.labels o join incoming using (mapping_id, variant_id)
        union select s.store_code, s.code from esl.hipoink_products s join incoming using (mapping_id, variant_id)
        union select q.store_code, q.code from esl.sync_queue q join incoming using (mapping_id, variant_id)
    ), written as (
        insert into esl.labels as o (mapping_id, variant_id, store_code, code, precedence, label, label_hash, state,
                                     event_ids)
        select i.mapping_id, i.variant_id, i.store_code, i.code, i.precedence, i.label, i.label_hash, i.state,
               coalesce(i.event_ids, '{}')
        from incoming i
        where not exists (
            select from esl.labels o where o.mapping_id = i.mapping_id and o.variant_id = i.variant_id
              and (o.store_code, o.code, o.precedence, o.label_hash, o.state)
                  is not distinct from (i.store_code, i.code, i.precedence, i.label_hash, i.state))
        on conflict (mapping_id, variant_id) do update
        set store_code = excluded.store_code, code = excluded.code, precedence = excluded.precedence,
            label = excluded.label,
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
    where l.state = 'publish' and f.check_name = 'duplicate_code' and f.resolved_at is null;

    return (select jsonb_build_object(
        'labels_changed', coalesce(v_staged, 0),
        'stale', jsonb_array_length(p -> 'evaluated') - v_fresh,
        'upserts_queued', count(*) filter (where q.operation = 'upsert'),
        'removals_queued', count(*) filter (where q.operation = 'delete'),
        'collisions', v_collisions)
        from unnest(v_stores, v_codes) as k (store_code, code) join esl.sync_queue q using (store_code, code));
end $$;
