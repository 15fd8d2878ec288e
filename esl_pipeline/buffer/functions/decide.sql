-- The queue's decision: what is to happen to the label of each place (who wins a place: duplicates.sql).

-- The given (store, code) places with all that their decisions rest on, once each.
create or replace function esl.places(p_stores text[], p_codes text[]) returns setof esl.place_row
language sql stable set search_path = '' as $$
    with keys as (
        select distinct k.store_code, k.code from unnest(p_stores, p_codes) as k (store_code, code)
        where k.code is not null
    ), winners as materialized (
        -- Of equal labels one stands for all. wins is null where nobody publishes.
        select distinct on (c.store_code, c.code) c.store_code, c.code, c.mapping_id, c.variant_id, c.wins
        from esl.claims(p_stores, p_codes) c
        where c.publishes order by c.store_code, c.code, c.wins desc, c.place
    )
    select k.store_code, k.code,
           w.wins, l.mapping_id, l.variant_id, l.label, l.label_hash, l.event_ids, l.cause,
           s.label, s.label_hash, s.code is not null, (s.mapping_id, s.variant_id) = (l.mapping_id, l.variant_id),
           q.operation, q.label, q.label_hash, q.mapping_id, q.variant_id,
           q.event_ids, q.cause, coalesce(q.in_doubt or q.state = 'leased', false),
           x.mapping_id, x.variant_id, o.event_ids, o.cause, m.hipoink_store_code = k.store_code,
           o.state in ('held', 'kept') or o.collides, not m.is_active and coalesce(m.leaving = 'keep', true),
           case when o.state = 'blank' then esl.blanked(coalesce(s.label, q.label)) end,
           g.decided_at, g.since, esl.has_passed(g, s.label_hash)
    from keys k
    left join winners w on w.store_code = k.store_code and w.code = k.code
    left join esl.labels l on w.wins and l.mapping_id = w.mapping_id and l.variant_id = w.variant_id
    left join esl.hipoink_products s on s.store_code = k.store_code and s.code = k.code
    left join esl.sync_queue q on q.store_code = k.store_code and q.code = k.code
    left join esl.graces g on g.store_code = k.store_code and g.code = k.code
    cross join lateral (select coalesce(s.mapping_id, q.mapping_id) as mapping_id,
                               coalesce(s.variant_id, q.variant_id) as variant_id) x
    left join esl.store_mappings m on m.id = x.mapping_id
    left join esl.labels o on o.mapping_id = x.mapping_id and o.variant_id = x.variant_id
$$;

-- What a label needs that is to stay as it is.
create or replace function esl.as_it_is(p esl.place_row) returns text
language sql immutable as $$  -- inlined
    select case
        when not p.in_doubt then 'nothing'
        when p.is_shown and (p.pending = 'delete' or esl.is_blanked(p.pending_hash)) then 'shown'
        else 'pending' end
$$;

-- What is to become of a place. This is the only place that decides what is pushed, whatever the occasion.
--   label    somebody wins: its label, unless the ledger holds it and nothing is in doubt (then: right)
--   pending  the label stays, but a push is in doubt: it goes out again ...
--   shown    ... unless it takes the label away: then what the ledger says
--   blank    its variant has left and wants it empty
--   removal  nobody wants it
--   grace    the same, but it waits (see esl.removal_waits and esl.during_grace)
--   forget   it is not ours, was to be removed, and no policy wants that any more
--   nothing  there is no label, or it stays as it is
-- A label stays while its variant is held back or kept, or nobody wins among those who claim its place, and as long as
-- its mapping is paused. What a mapping has left behind in another store does not stay.
create or replace function esl.what_is_due(p esl.place_row) returns text
language sql stable as $$  -- without a search_path of its own, so that it is inlined
    select case
        when p.wins and (p.in_doubt or p.shown_hash is distinct from p.label_hash) then 'label'
        when p.wins then 'right'
        when p.wins is null and not p.is_shown and not p.in_doubt then 'nothing'
        when not p.wins or p.is_paused or (p.is_home and p.is_kept) then esl.as_it_is(p)
        when p.owner_variant = '' and not p.in_doubt and not esl.store_is_owned(p.store_code) then 'forget'
        when p.is_home and p.blank is not null then
            case when not p.in_doubt and esl.is_blanked(p.shown_hash) then 'nothing' else 'blank' end
        when esl.removal_waits(p) then 'grace'
        else 'removal' end
$$;

-- Why a label is pushed: as it says itself, but where the code passes from one variant to another, or never had a
-- label: then the shop's own word, where there is one, and else that it is the first.
create or replace function esl.cause_of(p_what text, p_cause text, p_events bigint[], p_is_shown boolean,
                                        p_is_its_own boolean, p_store text, p_code text) returns text
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return case
        when p_what <> 'label' then p_cause
        when p_is_shown then case when p_is_its_own then p_cause else 'other variant' end
        when p_cause is null or (p_cause = 'new version' and p_events <> '{}') then p_cause
        when not exists (select from esl.sync_log l where l.code = p_code and l.store_code = p_store) then 'first fill'
        else p_cause end;
end $$;

-- What is to be pushed to each of the given (store, code) places (operation null: nothing), and how it counts. due: as
-- esl.what_is_due says; what: the same, but of one that waits what it needs meanwhile. rests: its mapping is paused.
create or replace function esl.decisions(p_stores text[], p_codes text[])
returns table (store_code text, code text, due text, what text, operation text, label jsonb, label_hash text,
               mapping_id uuid, variant_id text, event_ids bigint[], cause text, priority smallint, is_rise boolean,
               drastic text, shown jsonb, shown_hash text, owner_mapping uuid, waits_since timestamptz, rests boolean)
language sql stable set search_path = '' as $$
    with judged as materialized (  -- or each use of `due` would decide again
        select p as place, esl.what_is_due(p) as due from esl.places(p_stores, p_codes) p
    ), decided as materialized (
        select (j.place).*, j.due, case when j.due = 'grace' then esl.during_grace(j.place) else j.due end as what
        from judged j
    )
    select d.store_code, d.code, d.due, d.what, c.operation, c.label, c.label_hash, c.mapping_id, c.variant_id,
           coalesce(c.event_ids, '{}'),
           esl.cause_of(d.what, c.cause, c.event_ids, d.is_shown, d.is_its_own, d.store_code, d.code),
           case when d.in_doubt then 0  -- whatever puts right comes first
                when c.operation = 'delete' or esl.is_blanked(c.label_hash) then 3
                when esl.price_of(c.label) > esl.price_of(coalesce(d.shown, d.pending_label)) then 0
                when esl.price_of(c.label) < esl.price_of(coalesce(d.shown, d.pending_label)) then 1
                else 2 end::smallint,
           coalesce(d.what = 'label' and d.is_its_own and not d.in_doubt and not esl.is_blanked(d.shown_hash)
                    and esl.price_of(c.label) > esl.price_of(d.shown), false),
           case when c.operation is not null then
                esl.drastic_kind(c.operation, d.shown, d.shown_hash, c.label, c.label_hash, d.has_passed, m.settings)
                end,
           d.shown, d.shown_hash, d.owner_mapping, d.waits_since,
           coalesce(d.is_paused and d.due in ('nothing', 'shown', 'pending'), false)
    from decided d
    left join lateral (
        select 'upsert', d.label, d.label_hash, d.mapping_id, d.variant_id, d.event_ids, d.cause
        where d.what = 'label'
        union all
        select null, null, null, d.mapping_id, d.variant_id, null, null where d.what = 'right'
        union all
        select d.pending, d.pending_label, d.pending_hash, d.pending_mapping, d.pending_variant, d.pending_events,
               d.pending_cause
        where d.what = 'pending'
        union all
        select 'upsert', d.shown, d.shown_hash, d.owner_mapping, d.owner_variant, d.owner_events, d.owner_cause
        where d.what = 'shown'
        union all
        select 'upsert', b.label, esl.blank_hash(b.label), d.owner_mapping, d.owner_variant, d.owner_events,
               d.owner_cause
        from (select coalesce(d.blank, esl.blanked(d.shown)) as label) b where d.what = 'blank'
        union all
        select 'delete', null, null, d.owner_mapping, d.owner_variant, d.owner_events, d.owner_cause
        where d.what = 'removal'
    ) c (operation, label, label_hash, mapping_id, variant_id, event_ids, cause) on true
    left join esl.store_mappings m on m.id = c.mapping_id
$$;

-- Compares the given (store, code) places with the ledger and brings the queue in line (see esl.what_is_due). p_cause:
-- why what is queued now is; null: for the reason that its label has. What was queued already keeps its own.
create or replace function esl.requeue(p_stores text[], p_codes text[], p_cause text default null) returns void
language plpgsql set search_path = '' as $$
declare v_stores text[]; v_codes text[];
begin
    select p_stores || e.stores, p_codes || e.codes into v_stores, v_codes
    from esl.note_collisions(p_stores, p_codes) e;

    with decided as materialized (select * from esl.decisions(v_stores, v_codes)),
    dropped as (
        delete from esl.sync_queue q using decided d
        where q.store_code = d.store_code and q.code = d.code and d.operation is null
          and q.state <> 'leased' and not q.in_doubt
    ), forgotten as (
        delete from esl.hipoink_products s using decided d
        where s.store_code = d.store_code and s.code = d.code and d.what = 'forget'
    ), taken_over as (
        -- The label is right already, but was another variant's: from now on its new owner decides what becomes of it.
        update esl.hipoink_products s set mapping_id = d.mapping_id, variant_id = d.variant_id
        from decided d where s.store_code = d.store_code and s.code = d.code and d.what = 'right'
          and (s.mapping_id, s.variant_id) <> (d.mapping_id, d.variant_id)
    ), judged_again as (
        -- What is pushed stays the same; how it counts may not, after another policy, mode or ledger.
        update esl.sync_queue q set priority = d.priority, is_rise = d.is_rise, drastic = d.drastic,
            state = case when q.state = 'guarded' and d.drastic is null and q.rejected_at is null then 'ready'
                         else q.state end
        from decided d where q.store_code = d.store_code and q.code = d.code
          and (q.operation, q.label_hash, q.mapping_id, q.variant_id)
              is not distinct from (d.operation, d.label_hash, d.mapping_id, d.variant_id)
          and (q.priority, q.is_rise, q.drastic) is distinct from (d.priority, d.is_rise, d.drastic)
    ), waiting as (
        insert into esl.graces as g (store_code, code, since, until, label, label_hash)
        select d.store_code, d.code, w.since, esl.grace_until(d.owner_mapping, w.since), d.shown, d.shown_hash
        from decided d cross join lateral esl.wait_of(d.waits_since, d.what) w where d.due = 'grace'
        on conflict (code, store_code) do update set since = excluded.since, until = excluded.until
        where (g.since, g.until) is distinct from (excluded.since, excluded.until)
    ), waited as (
        update esl.graces g set until = null from decided d
        where g.store_code = d.store_code and g.code = d.code and (d.due = 'removal' or d.rests)
    ), stays as (
        delete from esl.graces g using decided d
        where g.store_code = d.store_code and g.code = d.code and not (d.due in ('grace', 'removal') or d.rests)
    )
    insert into esl.sync_queue as q (store_code, code, mapping_id, variant_id, operation, label, label_hash,
                                     priority, is_rise, drastic, event_ids, cause)
    select store_code, code, mapping_id, variant_id, operation, label, label_hash, priority, is_rise, drastic,
           event_ids, coalesce(p_cause, cause) from decided where operation is not null
    on conflict (store_code, code) do update
    set mapping_id = excluded.mapping_id, variant_id = excluded.variant_id, operation = excluded.operation,
        label = excluded.label, label_hash = excluded.label_hash, priority = excluded.priority,
        is_rise = excluded.is_rise, drastic = excluded.drastic, event_ids = excluded.event_ids,
        cause = excluded.cause, queued_at = excluded.queued_at, generation = nextval('esl.revision'), attempts = 0,
        refused_at = null, refusals = 0, max_batch = 1000, approved = false, next_attempt_at = now(), last_error = null,
        rejected_at = null, state = case when q.state = 'leased' then 'leased' else 'ready' end
    where (q.operation, q.label_hash, q.mapping_id, q.variant_id)
       is distinct from (excluded.operation, excluded.label_hash, excluded.mapping_id, excluded.variant_id);

    perform esl.guard(store_code) from (select distinct unnest(v_stores) as store_code) touched;
end $$;
