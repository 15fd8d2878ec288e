-- The guard: too many drastic changes within some hours are more likely a mistake than a wish, and wait for somebody's
-- word.

-- Whether a price changes by more than so many per cent of the one shown.
create or replace function esl.is_large_change(p_shown numeric, p_price numeric, p_max_pct numeric) returns boolean
language sql immutable as $$
    select p_shown > 0 and abs(p_price - p_shown) * 100 > p_max_pct * p_shown
$$;

-- What the guard counts a change as: 'removal' (of a label, or of what it says), 'price' (by more than max_change_pct),
-- or null. p_shown: the label that hangs, p_label: the one that is wanted; p_passed: the removal has been let go before
-- it waited (see esl.has_passed).
create or replace function esl.drastic_kind(p_operation text, p_shown jsonb, p_shown_hash text, p_label jsonb,
                                            p_label_hash text, p_passed boolean, p_settings jsonb)
returns text language sql immutable as $$
    select case
        when p_operation = 'delete' then case when not p_passed then 'removal' end
        when esl.is_blanked(p_label_hash) and p_shown is not null and not esl.is_blanked(p_shown_hash) then 'removal'
        when esl.is_large_change(esl.price_of(p_shown), esl.price_of(p_label),
                                 esl.policy_number(p_settings, 'max_change_pct')) then 'price' end
$$;

-- For how many labels a drastic change of a place counts.
create or replace function esl.weight(p_drastic text, p_store text, p_code text) returns int
language sql stable as $$
    select case when p_drastic = 'removal' then greatest(1, esl.bound_labels(p_store, p_code)) else 1 end
$$;

-- How many labels a store had before so many were removed, physical ones or products on them, whichever are more; no
-- more of them are counted than it takes to be enough.
create or replace function esl.count_labels(p_store text, p_gone bigint, p_enough bigint) returns bigint
language sql stable set search_path = '' as $$
    select greatest(p_gone +
        (select count(*) from (select from esl.hipoink_products s where s.store_code = p_store limit p_enough) s),
        (select count(*) from (select from esl.devices d
                               where d.store_code = p_store and d.product_code is not null and d.gone_at is null
                                 and not esl.is_reserved(d.product_code)
                               limit p_enough) d))
$$;

-- How many changes of a kind were approved one by one since then.
create or replace function esl.approved_alone(p_store text, p_drastic text, p_since timestamptz) returns bigint
language sql stable set search_path = '' as $$
    select coalesce(sum(case p_drastic when 'removal' then a.removals else a.prices end), 0)
    from esl.approvals a where a.store_code = p_store and a.codes is not null and a.at > p_since
$$;

-- Holds back the drastic changes of a store, or lets them go on. What counts, per kind: those that wait without
-- approval, and those that were accepted without one in the last guard_hours and since somebody approved all. Too many:
-- more than guard_labels, and than guard_share_pct of the labels there were before. The limits are of the strictest
-- policy concerned. What was approved or rejected one by one counts as long, so that the others do not go because of
-- that. A removal counts for each physical label that is known to be bound to its product.
create or replace function esl.guard(p_store text) returns void
language plpgsql set search_path = '' as $$
declare r record; v_count bigint; v_labels bigint; v_since timestamptz;
begin
    for r in
        select q.drastic, bool_or(q.state = 'guarded' and q.rejected_at is null) as guarded,
               coalesce(sum(esl.weight(q.drastic, q.store_code, q.code)) filter (where coalesce(q.rejected_at > now()
                   - make_interval(hours => esl.policy_number(m.settings, 'guard_hours')), true)), 0) as pending,
               min(esl.policy_number(m.settings, 'guard_labels')) as most,
               min(esl.policy_number(m.settings, 'guard_share_pct')) as share,
               max(esl.policy_number(m.settings, 'guard_hours')) as hours
        from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
        where q.store_code = p_store and q.drastic is not null and not q.approved
        group by q.drastic
    loop
        v_since := greatest(now() - make_interval(hours => r.hours), (
            select max(a.at) from esl.approvals a where a.store_code = p_store and a.codes is null));
        select r.pending + coalesce(sum(c.labels) filter (where c.kind = r.drastic), 0), coalesce(sum(c.gone), 0)
        into v_count, v_labels
        from esl.drastic_changes c where c.store_code = p_store and c.at > v_since;
        v_count := v_count + esl.approved_alone(p_store, r.drastic, v_since);
        if v_count > r.most then
            v_labels := esl.count_labels(p_store, v_labels, v_count * 100 / greatest(r.share, 1) + 1);
        end if;
        if v_count > r.most and v_count * 100 > r.share * v_labels then
            update esl.sync_queue set state = 'guarded'
            where store_code = p_store and drastic = r.drastic and not approved
              and state in ('ready', 'failed', 'dead');
        elsif r.guarded then
            update esl.sync_queue set state = 'ready'
            where store_code = p_store and drastic = r.drastic and state = 'guarded' and rejected_at is null;
        end if;
    end loop;
end $$;

-- Remembers the drastic changes of an accepted push for esl.guard, but for approved ones. To be called before the
-- ledger takes the labels.
create or replace function esl.note_drastic(p_push uuid, p_store text, p_codes text[]) returns void
language plpgsql set search_path = '' as $$
begin
    insert into esl.drastic_changes (store_code, kind, labels, gone)
    select p_store, d.kind, sum(w.n), count(*) filter (where i.operation = 'delete')
    from esl.sync_log i
    join esl.hipoink_products s on s.code = i.code and s.store_code = i.store_code
    join esl.sync_queue q on q.code = i.code and q.store_code = i.store_code
    join esl.store_mappings m on m.id = i.mapping_id
    left join esl.graces g on g.code = i.code and g.store_code = i.store_code
    cross join lateral (
        select esl.drastic_kind(i.operation, s.label, s.label_hash, i.label, i.label_hash,
                                esl.has_passed(g, s.label_hash), m.settings) as kind) d
    cross join lateral (select esl.weight(d.kind, i.store_code, i.code) as n) w
    where i.push_id = p_push and i.kind = 'intent' and i.store_code = p_store and i.code = any (p_codes)
      and not q.approved and d.kind is not null
    group by d.kind;
    if found then
        delete from esl.drastic_changes where store_code = p_store and at < now() - interval '720 hours';
    end if;
end $$;
