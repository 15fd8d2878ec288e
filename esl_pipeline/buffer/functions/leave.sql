-- A store is removed: its mappings end, and their labels stay, become blank, or are removed at the label server. The
-- mapping is inactive from the first moment, and is pushed all the same (leaving) until nothing of it waits any more.
-- Its row stays for what names it.

-- The labels of a mapping that leaves are wanted no longer, what was found of them is over, and their places are
-- decided: what is to be done there is somebody's word already.
create or replace function esl.withdraw_all(m esl.store_mappings) returns void
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_stores text[]; v_codes text[];
begin
    select array_agg(k.store_code), array_agg(k.code) into v_stores, v_codes
    from (select l.store_code, l.code from esl.labels l where l.mapping_id = m.id and l.code is not null
          union select s.store_code, s.code from esl.hipoink_products s where s.mapping_id = m.id
          union select q.store_code, q.code from esl.sync_queue q where q.mapping_id = m.id) k;
    update esl.labels
    set state = case m.leaving when 'keep' then 'kept' when 'blank' then 'blank' else 'withdrawn' end, code = null,
        label = null, label_hash = null, precedence = null, collides = false
    where mapping_id = m.id;
    update esl.findings set resolved_at = clock_timestamp() where mapping_id = m.id and resolved_at is null;
    perform esl.requeue(v_stores, v_codes, 'removal');
    update esl.sync_queue
    set approved = true, state = case when state = 'leased' then state else 'ready' end, rejected_at = null,
        attempts = case when state = 'leased' then attempts else 0 end, next_attempt_at = now()
    where mapping_id = m.id and m.leaving <> 'keep';
end $$;

-- Of mappings that leave this store those are gone of which nothing waits or is on its way.
create or replace function esl.finish_leaving(p_store text) returns void
language plpgsql volatile set search_path = '' as $$
declare m esl.store_mappings; v_before jsonb;
begin
    for m in select * from esl.store_mappings x where x.leaving is not null and (
                 x.hipoink_store_code = p_store or exists (select from esl.left_stores l
                     where l.mapping_id = x.id and l.store_code = p_store)) loop
        delete from esl.sync_queue where mapping_id = m.id and state <> 'leased' and m.leaving = 'keep';
        continue when exists (select from esl.sync_queue q where q.mapping_id = m.id);
        v_before := esl.shown_mapping(m);
        update esl.store_mappings set leaving = null, removed_at = clock_timestamp(), updated_at = now()
        where id = m.id returning * into m;
        perform esl.note_change('stores remove', v_before, esl.shown_mapping(m));
    end loop;
end $$;

-- The mappings that are to leave (p: as for esl_operator_remove), with their stores locked.
create or replace function esl.leavers(p jsonb) returns setof esl.store_mappings
language plpgsql volatile set search_path = '' as $$
declare v_ids uuid[] := array(select c.id from esl.chosen_mappings(p) c);
begin
    if not coalesce(p ->> 'labels' in ('keep', 'blank', 'remove'), false) then
        perform esl.refuse_action('say what becomes of the labels: keep, blank or remove');
    elsif v_ids = '{}' then
        perform esl.need_store(p ->> 'store');
        perform esl.refuse_action(format('%s is not mapped to store %s: see `esl-pipeline stores list`',
                                         p #>> '{shop,source_store_id}', p ->> 'store'));
    elsif p ->> 'labels' <> 'keep' and esl.store_is_paused(p ->> 'store') then
        perform esl.refuse_action(format('store %s is paused, so its labels cannot be changed: resume it first, or '
                                         'keep them', p ->> 'store'));
    end if;
    perform esl.lock_stores(array(select esl.stores_of(v_ids)));
    return query select * from esl.store_mappings m where m.id = any (v_ids) order by m.created_at, m.id;
end $$;

-- {store, labels: keep | blank | remove, shop?} -> {store_code, label_server, mappings, labels, dropped, is_done}: no
-- shop feeds this store any more, or not this one. labels: how many hang; dropped: changes that waited and are not
-- made; is_done: false while labels are still to be blanked or removed, or on their way.
create or replace function public.esl_operator_remove(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
declare
    v_answer jsonb := esl.answered(p, 'remove'); m esl.store_mappings; v_before jsonb; v_ids uuid[] := '{}';
    v_labels bigint; v_dropped bigint := 0; v_here bigint;
begin
    if v_answer is not null then
        return v_answer;
    end if;
    perform esl.lock_mappings();
    for m in select * from esl.leavers(p) loop
        v_ids := v_ids || m.id;
        v_before := esl.shown_mapping(m);
        select count(*) into v_here from esl.sync_queue q
        where q.mapping_id = m.id and (q.operation = 'upsert' or p ->> 'labels' = 'keep');
        v_dropped := v_dropped + v_here;
        update esl.store_mappings
        set is_active = false, is_dry_run = false, leaving = p ->> 'labels', problem = null, switched_off = null,
            awaits_read_since = null, updated_at = now()
        where id = m.id returning * into m;
        perform esl.note_change(esl.actor(p), v_before, esl.shown_mapping(m));
        perform esl.contest_again(m.source_system, m.source_store_id);
        perform esl.withdraw_all(m);
    end loop;
    select count(*) into v_labels from esl.hipoink_products s where s.mapping_id = any (v_ids);
    perform esl.finish_leaving(p ->> 'store');
    perform pg_notify('esl_inbox', '');
    return esl.keep_action(p, 'remove', v_labels, jsonb_build_object(
        'store_code', p ->> 'store', 'label_server', esl.server_of(p ->> 'store'), 'mappings', cardinality(v_ids),
        'labels', v_labels, 'dropped', v_dropped, 'is_done', not exists (
            select from esl.store_mappings x where x.id = any (v_ids) and x.removed_at is null)));
end $$;
