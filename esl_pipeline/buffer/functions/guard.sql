-- The guard: too many drastic changes within some hours are more likely a mistake than a wish, and wait for somebody's
-- word.

-- Whether a price changes by more than so many per cent of the one shown.
create or replace function esl.is_large_change(p_shown numeric, p_price numeric, p_max_pct numeric) returns boolean
language sql immutable as $$
    select p_shown > 0 and abs(p_price - p_shown) * 100 > p_max_pct * p_shown
$$;

-- What the guard counts a change as: 'removal' (of a label, or of what it says), 'price' (by more than max_change_pct),
-- or null. p_shown: the label that hangs, p_label: the one that is wanted.
create or replace function esl.drastic_kind(p_operation text, p_shown jsonb, p_shown_hash text, p_label jsonb,
                                            p_label_hash text, p_settings jsonb)
returns text language sql immutable as $$
    select case
        when p_operation = 'delete' then 'removal'
        when esl.is_blanked(p_label_hash) and p_shown is not null and not esl.is_blanked(p_shown_hash) then 'removal'
        when esl.is_large_change(esl.price_of(p_shown), esl.price_of(p_label),
                                 esl.policy_number(p_settings, 'max_change_pct')) then 'price' end
$$;

-- Holds back the drastic changes of a store, or lets them go on. What counts, per kind: those that wait without
-- approval, and those that were accepted without one in the last guard_hours and since somebody approved any. Too many:
-- more than guard_labels, and than guard_share_pct of the labels there were before. The limits are of the strictest
-- policy concerned.
create or replace function esl.guard(p_store text) returns void
language plpgsql set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare r record; v_count bigint; v_labels bigint;
begin
    for r in
        select q.drastic, count(*) as pending, bool_or(q.state = 'guarded') as guarded,
               min(esl.policy_number(m.settings, 'guard_labels')) as most,
               min(esl.policy_number(m.settings, 'guard_share_pct')) as share,
               max(esl.policy_number(m.settings, 'guard_hours')) as hours
        from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
        where q.store_code = p_store and q.drastic is not null and not q.approved
        group by q.drastic
    loop
        select r.pending + coalesce(sum(c.labels) filter (where c.kind = r.drastic), 0), coalesce(sum(c.gone), 0)
        into v_count, v_labels
        from esl.drastic_changes c
        where c.store_code = p_store and c.at > greatest(
            now() - make_interval(hours => r.hours),
            (select max(a.at) from esl.approvals a where a.store_code = p_store));
        if v_count > r.most then
            -- No more of them are counted than it takes to be enough.
            v_labels := v_labels + (select count(*) from (
                select from esl.hipoink_products s where s.store_code = p_store
                limit v_count * 100 / greatest(r.share, 1) + 1) enough);
        end if;
        if v_count > r.most and v_count * 100 > r.share * v_labels then
            update esl.sync_queue set state = 'guarded'
            where store_code = p_store and drastic = r.drastic and not approved
              and state in ('ready', 'failed', 'dead');
        elsif r.guarded then
            update esl.sync_queue set state = 'ready'
            where store_code = p_store and drastic = r.drastic and state = 'guarded';
        end if;
    end loop;
end $$;

-- Remembers the drastic changes of an accepted push for esl.guard, but for approved ones. To be called before the
-- ledger takes the labels.
create or replace function esl.note_drastic(p_push uuid, p_store text, p_codes text[]) returns void
language plpgsql set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    insert into esl.drastic_changes (store_code, kind, labels, gone)
    select p_store, d.kind, count(*), count(*) filter (where i.operation = 'delete')
    from esl.sync_log i
    join esl.hipoink_products s on s.code = i.code and s.store_code = i.store_code
    join esl.sync_queue q on q.code = i.code and q.store_code = i.store_code
    join esl.store_mappings m on m.id = i.mapping_id
    cross join lateral (
        select esl.drastic_kind(i.operation, s.label, s.label_hash, i.label, i.label_hash, m.settings) as kind) d
    where i.push_id = p_push and i.kind = 'intent' and i.store_code = p_store and i.code = any (p_codes)
      and not q.approved and d.kind is not null
    group by d.kind;
    if found then
        delete from esl.drastic_changes where store_code = p_store and at < now() - interval '720 hours';
    end if;
end $$;
