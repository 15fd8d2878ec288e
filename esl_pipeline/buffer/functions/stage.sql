-- Evaluated labels come in: what is new of them is stored, with what was found, and the places they touch are decided.

-- Of evaluated labels those of live mappings whose variant has not changed since, each once. The others are due again,
-- and an older evaluation may not win over a newer one.
create or replace function esl.fresh_labels(p_labels jsonb) returns esl.label_row[]
language plpgsql stable set search_path = '' as $$
begin
    return array(
        select distinct on (d.mapping_id, d.variant_id)
               row(d.mapping_id, d.variant_id, d.revision, d.store_code, d.state, d.code, d.precedence, d.label,
                   d.label_hash, d.event_ids, o.cause)::esl.label_row
        from jsonb_populate_recordset(null::esl.label_row, p_labels) d
        join esl.store_mappings m on m.id = d.mapping_id and m.is_active
        join esl.products o on o.source_system = m.source_system and o.source_store_id = m.source_store_id
                           and o.variant_id = d.variant_id and o.revision = d.revision
        order by d.mapping_id, d.variant_id);
end $$;

-- Stores what differs from what is known. changed: how many; stores, codes: the places where their labels were, are on
-- their way, and belong now.
create or replace function esl.store_labels(p_labels esl.label_row[], out changed int, out stores text[],
                                            out codes text[])
language plpgsql set search_path = '' as $$
begin
    with incoming as (
        select * from unnest(p_labels)
    ), before as (
        select o.store_code, o.code from esl.labels o join incoming using (mapping_id, variant_id)
        union select s.store_code, s.code from esl.hipoink_products s join incoming using (mapping_id, variant_id)
        union select q.store_code, q.code from esl.sync_queue q join incoming using (mapping_id, variant_id)
    ), written as (
        insert into esl.labels as o (mapping_id, variant_id, store_code, code, precedence, label, label_hash, state,
                                     event_ids, cause)
        select i.mapping_id, i.variant_id, i.store_code, i.code, i.precedence, i.label, i.label_hash, i.state,
               coalesce(i.event_ids, '{}'), i.cause
        from incoming i
        where not exists (
            select from esl.labels o where o.mapping_id = i.mapping_id and o.variant_id = i.variant_id
              and (o.store_code, o.code, o.precedence, o.label_hash, o.state)
                  is not distinct from (i.store_code, i.code, i.precedence, i.label_hash, i.state))
        on conflict (mapping_id, variant_id) do update
        set store_code = excluded.store_code, code = excluded.code, precedence = excluded.precedence,
            label = excluded.label, label_hash = excluded.label_hash, state = excluded.state, collides = false,
            event_ids = excluded.event_ids, cause = excluded.cause, evaluated_at = now()
        returning 1
    ), touched as (
        select store_code, code from before
        union select store_code, code from incoming
    )
    select (select count(*) from written), array_agg(t.store_code), array_agg(t.code)
    into changed, stores, codes
    from touched t where t.code is not null;
end $$;

-- Stores what was found in fresh evaluations, and resolves what was not found again in these labels' variants; of
-- collisions esl.requeue knows more, unless no code is claimed any longer.
create or replace function esl.store_findings(p_findings jsonb, p_labels esl.label_row[]) returns void
language plpgsql set search_path = '' as $$
declare v_now timestamptz := clock_timestamp();
begin
    insert into esl.findings as f (mapping_id, variant_id, check_name, level, column_name, value, reason, action,
                                   last_seen_at)
    select distinct on (d.mapping_id, d.variant_id, d.check_name)
           d.mapping_id, d.variant_id, d.check_name, d.level, d.column_name, d.value, d.reason, d.action, v_now
    from jsonb_populate_recordset(null::esl.finding_row, p_findings) d
    join esl.store_mappings m on m.id = d.mapping_id and m.is_active
    join esl.products o on o.source_system = m.source_system and o.source_store_id = m.source_store_id
                       and o.variant_id = d.variant_id and o.revision = d.revision
    order by d.mapping_id, d.variant_id, d.check_name
    on conflict (mapping_id, variant_id, check_name) do update
    set level = excluded.level, column_name = excluded.column_name, value = excluded.value,
        reason = excluded.reason, action = excluded.action, last_seen_at = excluded.last_seen_at, resolved_at = null;

    update esl.findings f set resolved_at = v_now
    from unnest(p_labels) d
    where f.mapping_id = d.mapping_id and f.variant_id = d.variant_id and f.resolved_at is null
      and f.last_seen_at < v_now and (f.check_name <> 'duplicate_code' or d.code is null);
end $$;

-- The open collisions of these labels' variants.
create or replace function esl.open_collisions(p_labels esl.label_row[]) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object('mapping_id', f.mapping_id, 'variant_id', f.variant_id,
                   'check_name', f.check_name, 'level', f.level, 'column_name', f.column_name, 'value', f.value,
                   'reason', f.reason, 'action', f.action)), '[]')
        from unnest(p_labels) d
        join esl.labels l on l.mapping_id = d.mapping_id and l.variant_id = d.variant_id
        join esl.findings f on f.mapping_id = d.mapping_id and f.variant_id = d.variant_id
        where l.state in ('publish', 'held') and f.check_name = 'duplicate_code' and f.resolved_at is null);
end $$;

-- {labels: [{mapping_id, variant_id, revision, store_code, state, code, precedence, label, label_hash, event_ids}],
--  findings: [{mapping_id, variant_id, revision, check_name, level, column_name, value, reason, action}],
--  evaluated: [{source_system, source_store_id, variant_id, revision}],
--  problems?: {mapping_id: what makes its settings unusable, or null}}
-- -> {labels_changed, stale, upserts_queued, removals_queued, collisions: [findings of the staged variants]}
-- Only variants whose revision is still the evaluated one are staged (see esl.fresh_labels).
create or replace function public.esl_labels_stage(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
    v_labels esl.label_row[]; v_evaluated int; v_staged record;
begin
    perform esl.know_what_grew();
    -- Stages of a store are short and take turns: codes may collide between any two of them.
    perform esl.lock_stores(esl.stores_of_shops(p -> 'evaluated'));

    -- Locks the variants, so that their revisions stand until the end of this call.
    update esl.products o set due = false
    from jsonb_populate_recordset(null::esl.evaluated_row, p -> 'evaluated') e
    where o.source_system = e.source_system and o.source_store_id = e.source_store_id
      and o.variant_id = e.variant_id and o.revision = e.revision;
    get diagnostics v_evaluated = row_count;

    update esl.store_mappings m set problem = e.value
    from jsonb_each_text(coalesce(p -> 'problems', '{}')) e
    where m.id = e.key::uuid and m.problem is distinct from e.value;

    v_labels := esl.fresh_labels(p -> 'labels');
    select * into v_staged from esl.store_labels(v_labels);
    perform esl.store_findings(p -> 'findings', v_labels);
    perform esl.requeue(v_staged.stores, v_staged.codes);
    perform esl.measure_same(v_labels);

    return (select jsonb_build_object(
        'labels_changed', v_staged.changed,
        'stale', jsonb_array_length(p -> 'evaluated') - v_evaluated,
        'upserts_queued', count(*) filter (where q.operation = 'upsert' and not esl.is_blanked(q.label_hash)),
        'removals_queued', count(*) filter (where q.operation = 'delete' or esl.is_blanked(q.label_hash)),
        'collisions', esl.open_collisions(v_labels))
        from unnest(v_staged.stores, v_staged.codes) as k (store_code, code)
        join esl.sync_queue q using (store_code, code));
end $$;
