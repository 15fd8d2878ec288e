-- Whose turn it is to be pushed.

-- Whether labels of a mapping are pushed at all: it is live, or it is being removed and they with it.
create or replace function esl.is_pushed(m esl.store_mappings) returns boolean
language sql immutable as $$  -- inlined
    select (m.is_active or m.leaving is not null) and not m.is_dry_run and m.problem is null
$$;

-- Whether a queued label of a live mapping may be pushed now. Not before its variant is evaluated, since it may be of
-- an older content or policy. Drastic changes wait until all changes of their shop are judged, so that the guard sees
-- them together; a removal also until its variant's new label is accepted, so that the shelf is never empty between;
-- nothing is written to a store that the mapping has left, but that a label is blank. Not SQL, which would be
-- inlined: then the planner joins and sorts the whole queue for every batch, instead of walking its index. Its own
-- lookups are by whole keys, planned once: planned for each row, as its callers want theirs, they would cost ten times
-- as much.
create or replace function esl.may_push(q esl.sync_queue, m esl.store_mappings) returns boolean
language plpgsql stable cost 1000 set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare v_is_due boolean;
begin
    if q.variant_id <> '' and m.leaving is null then  -- foreign labels have none
        select o.due into v_is_due from esl.products o
        where o.variant_id = q.variant_id and o.source_store_id = m.source_store_id
          and o.source_system = m.source_system;
        if coalesce(v_is_due, m.awaits_read_since is not null) then
            return false;
        end if;
        if (q.operation = 'delete' or esl.is_blanked(q.label_hash)) and exists (
                select from esl.sync_queue u
                where u.mapping_id = q.mapping_id and u.variant_id = q.variant_id and u.operation = 'upsert'
                  and not esl.is_blanked(u.label_hash)) then
            return false;
        end if;
    end if;
    if q.operation = 'upsert' and m.hipoink_store_code <> q.store_code and not esl.is_blanked(q.label_hash) then
        return false;
    end if;
    if q.drastic is not null and not q.approved and exists (
            select from esl.products o
            where o.source_system = m.source_system and o.source_store_id = m.source_store_id and o.due) then
        return false;
    end if;
    -- A push since may have put it in doubt: what is not known to be lower is no rise.
    return not q.is_rise or q.in_doubt or esl.window_is_open(m.settings -> 'raise_window');
end $$;

-- Where a label may be due at a label server, in the order of turns, of one shop or of all (p: as for
-- esl_push_claim): a mapping, store and priority each (is_new: only a label that has not failed yet; is_held: what
-- is under way of the store keeps it back). Nothing of a mapping that is paused, in dry run or not evaluated for its
-- settings, and nothing of a store that refusals or somebody has paused. The other stores come first after a slow call,
-- so that none waits for more than one of them, and before one that has much under way (see esl.crowded); stores in
-- doubt come last. Among the rest mappings take turns, whoever waited longest for its turn first, and of each what is
-- most urgent. Rises and corrections go before all turns, of each mapping once between two turns (see esl.has_jump): so
-- a rise waits for one call of each other mapping with rises at most, and what is no rise for as many, however many one
-- of them has. Where one label alone is tried (a store in doubt, or p_alone: the whole server), one that has not failed
-- yet is, and then whichever has waited longest: the most urgent may be the one at fault, and would be tried for ever.
-- Every (mapping, store, priority) is a walk along the index of its own, so that nothing judges or sorts a whole queue.
create or replace function esl.turns_to_push(p jsonb, p_alone boolean)
returns table (mapping esl.store_mappings, store_code text, priority smallint, is_new boolean, is_held boolean)
language plpgsql stable set search_path = '' as $$
begin
    return query
        with recursive groups as (
            (select q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code
             from esl.sync_queue q
             where q.state = 'ready'
             order by q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code collate "C"
             limit 1)
            union all
            select n.* from groups g cross join lateral (
                select q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code
                from esl.sync_queue q
                where q.state = 'ready'
                  and (q.mapping_id, q.store_code, q.priority) > (g.mapping_id, g.store_code, g.priority)
                order by q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code collate "C"
                limit 1) n
        ), live as (
            select g.*, m as mapping, u.taken_at,
                   g.priority = 0 and esl.has_jump(esl.server_in(p), u.taken_at) as jumps,
                   p_alone or coalesce(esl.is_doubted(h), false) as alone,
                   coalesce(g.store_code = l.store_code and l.duration_ms > 1000, false) as slow,
                   case when p_alone then 0 else coalesce(c.degree, 0) end as crowded
            from groups g
            join esl.store_mappings m on m.id = g.mapping_id and esl.is_pushed(m)
                and (p -> 'shop' is null or (m.source_system, m.source_store_id)
                     = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
            left join esl.turns u on u.party = g.mapping_id::text and u.queue = 'push'
            left join esl.store_health h on h.store_code = g.store_code
            left join esl.crowded(p) c on c.store_code = g.store_code
            left join (select r.store_code, r.duration_ms from esl.sync_log r
                       where r.kind = 'result' order by r.id desc limit 1) l on true
            where coalesce(h.until <= now(), true) and g.next_attempt_at <= now()
              and esl.server_of(g.store_code) = esl.server_in(p) and not esl.store_is_paused(g.store_code)
        )
        select w.mapping, w.store_code, w.priority, n.is_new, w.crowded = 2
        from live w join (values (true), (false)) as n (is_new) on w.alone or not n.is_new
        order by w.crowded = 2, w.alone, w.slow, w.crowded, n.is_new desc, w.jumps desc, w.taken_at nulls first,
                 case when w.alone then 0 else w.priority end, w.next_attempt_at, w.created_at, w.code collate "C";
end $$;

-- The label whose turn it is, if any; its batch is of the same mapping, store, operation and max_batch. is_held:
-- nothing else is due, and what is under way of its store keeps it back.
create or replace function esl.next_push(p jsonb, p_alone boolean, out head esl.sync_queue, out is_held boolean)
language plpgsql stable set search_path = '' as $$
declare t record;
begin
    for t in select * from esl.turns_to_push(p, p_alone) loop
        select q.* into head from esl.sync_queue q
        where q.state = 'ready' and q.mapping_id = (t.mapping).id and q.store_code = t.store_code
          and q.priority = t.priority and q.next_attempt_at <= now()
          and (not t.is_new or (q.attempts = 0 and q.refused_at is null))
          and esl.may_push(q, t.mapping)
        order by q.next_attempt_at, q.created_at, q.code collate "C" limit 1;
        if found then
            is_held := t.is_held;
            return;
        end if;
    end loop;
end $$;

-- Whether a mapping that had its last turn then may go before the others with its rises: not if nobody had one at its
-- label server since.
create or replace function esl.has_jump(p_server text, p_taken_at timestamptz) returns boolean
language sql stable set search_path = '' as $$
    select p_taken_at is null or p_taken_at < coalesce(
        (select t.taken_at from esl.turns t where t.queue = 'bulk' and t.party = p_server), '-infinity')
$$;

-- Whether anything is on its way to a store, or may be pushed to it now.
create or replace function esl.has_push(p_store text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.sync_queue q
                   where q.store_code = p_store and q.state = 'leased' and q.lease_until > now())
        or (not exists (select from esl.store_health h where h.store_code = p_store and h.until > now())
            and not esl.store_is_paused(p_store)
            and exists (select from esl.store_mappings m join esl.sync_queue q on q.mapping_id = m.id
                        where esl.is_pushed(m) and q.store_code = p_store
                          and q.state = 'ready' and q.next_attempt_at <= now() and esl.may_push(q, m)))
$$;
