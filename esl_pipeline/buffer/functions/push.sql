-- The queue at work: claim a batch (with its intents), finish it (with its results), shared pace and leases.

-- Whether a queued label of a live mapping may be pushed now. Not before its variant is evaluated, since it may be of an
-- older content or policy. Drastic changes wait until all changes of their shop are judged, so that the guard sees them
-- together; a removal also until its variant's new label is accepted, so that the shelf is never empty between; nothing
-- is written to a store that the mapping has left. Not SQL, which would be inlined: then the planner joins and sorts the
-- whole queue for every batch, instead of walking its index. Its own lookups are by whole keys, planned once: planned for
-- each row, as its callers want theirs, they would cost ten times as much.
create or replace function esl.may_push(q esl.sync_queue, m esl.store_mappings) returns boolean
language plpgsql stable cost 1000 set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare v_is_due boolean;
begin
    if q.variant_id <> '' then  -- foreign labels have none
        select o.due into v_is_due from esl.products o
        where o.variant_id = q.variant_id and o.source_store_id = m.source_store_id
          and o.source_system = m.source_system;
        if coalesce(v_is_due, m.awaits_read_since is not null) then
            return false;
        end if;
        if q.operation = 'delete' and exists (
                select from esl.sync_queue u
                where u.mapping_id = q.mapping_id and u.variant_id = q.variant_id and u.operation = 'upsert') then
            return false;
        end if;
    end if;
    if q.operation = 'upsert' and m.hipoink_store_code <> q.store_code then
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

-- Whether nothing is known to pass at a store: after three refused calls in a row, or a pause, one label alone is tried.
create or replace function esl.is_doubted(h esl.store_health) returns boolean
language sql immutable set search_path = '' as $$
    select h.refusals >= 3 or h.pauses > 0
$$;

-- Whether nothing may be pushed to a label server now, not even to try.
create or replace function esl.is_down(p_server text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.label_servers where server = p_server and probe_at > clock_timestamp())
$$;

drop function if exists esl.next_push(jsonb, boolean);  -- of an earlier build: its parameter had another name

-- The label whose turn it is, of one shop or of all and of no busy store ({shop?, busy_stores?}); its batch is of the same
-- mapping, store, operation and max_batch.
-- Nothing of a mapping that is paused, in dry run or not evaluated for its settings, and nothing of a paused store. The other
-- stores come first after a slow call, so that none waits for more than one of them; stores in doubt come last.
-- Among the rest mappings take turns, whoever waited longest for its turn first, and of each what is most urgent. Rises and
-- corrections go before all turns, of each mapping once between two turns (see esl.has_jump): so a rise waits for one call of
-- each other mapping with rises at most, and what is no rise for as many, however many rises one of them has.
-- Where one label alone is tried (a store in doubt, or p_alone: the whole server), one that has not failed yet is.
-- Every (mapping, store, priority) is a walk along the index of its own, so that nothing judges or sorts a whole queue.
create or replace function esl.next_push(p jsonb, p_alone boolean) returns esl.sync_queue
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare t record; v_next esl.sync_queue;
begin
    for t in
        with recursive groups as (
            (select q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code from esl.sync_queue q
             where q.state = 'ready'
             order by q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code collate "C" limit 1)
            union all
            select n.* from groups g cross join lateral (
                select q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code from esl.sync_queue q
                where q.state = 'ready'
                  and (q.mapping_id, q.store_code, q.priority) > (g.mapping_id, g.store_code, g.priority)
                order by q.mapping_id, q.store_code, q.priority, q.next_attempt_at, q.created_at, q.code collate "C"
                limit 1) n
        ), live as (
            select g.*, m as mapping, u.taken_at, g.priority = 0 and esl.has_jump(u.taken_at) as jumps,
                   p_alone or coalesce(esl.is_doubted(h), false) as alone,
                   coalesce(g.store_code = l.store_code and l.duration_ms > 1000, false) as slow
            from groups g
            join esl.store_mappings m on m.id = g.mapping_id and m.is_active and not m.is_dry_run and m.problem is null
                and (p -> 'shop' is null or (m.source_system, m.source_store_id)
                     = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
            left join esl.turns u on u.party = g.mapping_id::text and u.queue = 'push'
            left join esl.store_health h on h.store_code = g.store_code
            left join (select r.store_code, r.duration_ms from esl.sync_log r
                       where r.kind = 'result' order by r.id desc limit 1) l on true
            where coalesce(h.until <= now(), true) and g.next_attempt_at <= now()
              and not coalesce(p -> 'busy_stores' ? g.store_code, false)
        )
        select w.*, n.is_new from live w join (values (true), (false)) as n (is_new) on w.alone or not n.is_new
        order by w.alone, w.slow, n.is_new desc, w.jumps desc, w.taken_at nulls first,
                 case when n.is_new then 0 else w.priority end, w.next_attempt_at, w.created_at, w.code collate "C"
    loop
        select q.* into v_next from esl.sync_queue q
        where q.state = 'ready' and q.mapping_id = t.mapping_id and q.store_code = t.store_code
          and q.priority = t.priority and q.next_attempt_at <= now()
          and (not t.is_new or (q.attempts = 0 and q.refused_at is null))
          and esl.may_push(q, t.mapping)
        order by q.next_attempt_at, q.created_at, q.code collate "C" limit 1;
        if found then
            return v_next;
        end if;
    end loop;
    return null;
end $$;

-- Whether a mapping that had its last turn then may go before the others with its rises: not if nobody had a turn since.
create or replace function esl.has_jump(p_taken_at timestamptz) returns boolean
language sql stable set search_path = '' as $$
    select p_taken_at is null
        or p_taken_at < coalesce((select t.taken_at from esl.turns t where t.queue = 'bulk' and t.party = ''), '-infinity')
$$;

-- Whether anything is on its way to a store, or may be pushed to it now.
create or replace function esl.has_push(p_store text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.sync_queue q where q.store_code = p_store and q.state = 'leased' and q.lease_until > now())
        or (not exists (select from esl.store_health h where h.store_code = p_store and h.until > now())
            and exists (select from esl.store_mappings m join esl.sync_queue q on q.mapping_id = m.id
                        where m.is_active and not m.is_dry_run and m.problem is null and q.store_code = p_store
                          and q.state = 'ready' and q.next_attempt_at <= now() and esl.may_push(q, m)))
$$;

-- A worker that died after its claim leaves intents without a result: what became of them is unknown. Something may be
-- in its batch that no run survives: each time the batch is halved, until the culprit stands alone and dies of its
-- attempts, with growing pauses, while the others pass.
create or replace function esl.take_back_lost(p jsonb) returns void
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    with lost as materialized (
        select q.store_code, q.code, q.push_id from esl.sync_queue q
        where q.state = 'leased' and q.lease_until < now()
        order by q.store_code, q.code for update skip locked
    ), sized as (
        select l.*, (count(*) over (partition by l.push_id))::int as size from lost l
    ), released as (
        update esl.sync_queue q
        set state = case when s.size = 1 and q.attempts >= (p ->> 'max_attempts')::int then 'dead' else 'ready' end,
            max_batch = case when s.size > 1 then (s.size + 1) / 2 else q.max_batch end,
            attempts = case when s.size > 1 then q.attempts - 1 else q.attempts end,
            next_attempt_at = case when s.size > 1 then now()
                else now() + (q.attempts - 1) * make_interval(secs => (p ->> 'lease_seconds')::float8) end,
            lease_until = null, last_error = 'the run ended before the answer of the label server was recorded'
        from sized s where q.store_code = s.store_code and q.code = s.code
        returning q.*
    )
    insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label_hash,
                              attempt, run_id, outcome, message)
    select 'result', push_id, store_code, code, mapping_id, variant_id, operation, label_hash, attempts,
           p ->> 'run_id', 'lost', last_error
    from released where push_id is not null;
end $$;

-- {claim_id, limit, lease_seconds, max_attempts, run_id, asset, partition?, shop?, busy_stores?, label_server?} ->
-- {push_id, store_code, operation, rows: [{code, label, generation, event_ids, attempt}]} (rows empty: nothing due).
-- One batch is one call at the label server: one mapping, one store, one operation (see esl.next_push). Writes an intent
-- per label. While the label server is down, or a store in doubt, one worker at a time may try one label.
-- The same claim_id again returns the same rows.
create or replace function public.esl_push_claim(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_push    uuid := (p ->> 'claim_id')::uuid;
    v_until   timestamptz := clock_timestamp() + make_interval(secs => (p ->> 'lease_seconds')::float8);
    v_probes  boolean;
    v_doubted boolean;
    v_limit   int;
    v_claimed int := 0;
    v_head    esl.sync_queue;
    v_mapping esl.store_mappings;
    v_jumped  boolean;
begin
    if not exists (select from esl.sync_queue where push_id = v_push and state = 'leased') then
        perform esl.take_back_lost(p);

        -- Whoever probes keeps the others from it until its lease is over.
        update esl.label_servers set probe_at = v_until
        where server = p ->> 'label_server' and probe_at <= clock_timestamp();
        v_probes := found;
        if v_probes or not esl.is_down(p ->> 'label_server') then
            v_head := esl.next_push(p, v_probes);
        end if;

        if v_head.code is not null then
            select * into v_mapping from esl.store_mappings where id = v_head.mapping_id;
            v_doubted := exists (
                select from esl.store_health h where h.store_code = v_head.store_code and esl.is_doubted(h));
            v_limit := least((p ->> 'limit')::int, case when v_probes or v_doubted then 1 else v_head.max_batch end);
            -- Label after label, so that whatever the planner believes of the queue, it walks along the index; then locked.
            with recursive chosen as (
                select q.ctid as at, q.priority, q.next_attempt_at, q.created_at, q.code, 1 as place
                from esl.sync_queue q where q.code = v_head.code and q.store_code = v_head.store_code
                union all
                select n.*, c.place + 1 from chosen c cross join lateral (
                    select q.ctid, q.priority, q.next_attempt_at, q.created_at, q.code from esl.sync_queue q
                    where q.state = 'ready' and q.mapping_id = v_head.mapping_id and q.store_code = v_head.store_code
                      and (q.priority, q.next_attempt_at, q.created_at, q.code collate "C")
                          > (c.priority, c.next_attempt_at, c.created_at, c.code collate "C")
                      and q.operation = v_head.operation and q.max_batch = v_head.max_batch
                      and q.next_attempt_at <= now() and esl.may_push(q, v_mapping)
                    order by q.priority, q.next_attempt_at, q.created_at, q.code collate "C" limit 1) n
                where c.place < v_limit
            ), batch as (
                select q.store_code, q.code from chosen c join esl.sync_queue q on q.ctid = c.at
                where c.place <= v_limit and q.state = 'ready' and q.operation = v_head.operation
                for update of q skip locked
            )
            update esl.sync_queue q
            set state = 'leased', push_id = v_push, attempts = q.attempts + 1, in_doubt = true, lease_until = v_until
            from batch b where q.store_code = b.store_code and q.code = b.code;
            get diagnostics v_claimed = row_count;

            insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label,
                                      label_hash, attempt, run_id, asset, partition, event_ids)
            select 'intent', v_push, q.store_code, q.code, q.mapping_id, q.variant_id, q.operation, q.label,
                   q.label_hash, q.attempts, p ->> 'run_id', p ->> 'asset',
                   m.source_system || ':' || m.source_store_id, q.event_ids
            from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
            where q.push_id = v_push and q.state = 'leased';
            if v_claimed > 0 then
                v_jumped := v_head.priority = 0 and esl.has_jump(
                    (select t.taken_at from esl.turns t where t.party = v_head.mapping_id::text and t.queue = 'push'));
                perform esl.take_turns('push', array[v_head.mapping_id::text]);
                if not v_jumped then
                    perform esl.take_turns('bulk', array['']);
                end if;
            end if;
            if v_doubted and v_claimed > 0 then
                update esl.store_health set until = v_until where store_code = v_head.store_code;
            end if;
        end if;
        if v_probes and v_claimed = 0 then
            update esl.label_servers set probe_at = clock_timestamp() where server = p ->> 'label_server';
        end if;
    end if;
    return (select jsonb_build_object(
        'push_id', v_push, 'store_code', min(q.store_code), 'operation', min(q.operation),
        'rows', coalesce(jsonb_agg(jsonb_build_object(
            'code', q.code, 'label', q.label, 'generation', q.generation, 'attempt', q.attempts,
            'source_system', m.source_system, 'source_store_id', m.source_store_id, 'variant_id', q.variant_id,
            'event_ids', q.event_ids) order by q.code collate "C"), '[]'))
        from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
        where q.push_id = v_push and q.state = 'leased');
end $$;

-- The circuit breaker, told of one call (see esl_push_finish): when to try a label server again that is down, or null.
-- It is down after down_after failures in a row, or when it asks for a pause; its first answer brings it back.
create or replace function esl.note_health(p jsonb) returns timestamptz
language plpgsql volatile set search_path = '' as $$
declare
    v_now   timestamptz := clock_timestamp();
    v_asked float8 := coalesce((p ->> 'retry_after_seconds')::float8, 0);
    v_probe timestamptz;
begin
    if (p ->> 'server_failed')::boolean then
        insert into esl.label_servers as s (server, failures, last_error)
        values (p ->> 'label_server', 1, p ->> 'message')
        on conflict (server) do update set failures = s.failures + 1, last_error = excluded.last_error;
        update esl.label_servers
        set down_since = coalesce(down_since, v_now),
            probe_at = v_now + make_interval(secs => greatest(v_asked, (0.75 + random() / 2) * least(
                (p ->> 'max_probe_seconds')::float8,
                (p ->> 'probe_seconds')::float8 * power(2, least(greatest(failures - (p ->> 'down_after')::int, 0), 60)))))
        where server = p ->> 'label_server'
          and (down_since is not null or failures >= (p ->> 'down_after')::int or v_asked > 0)
        returning probe_at into v_probe;
    elsif not (p ->> 'server_failed')::boolean then
        update esl.label_servers set failures = 0, down_since = null, probe_at = null, last_error = null
        where server = p ->> 'label_server' and failures > 0;
    end if;
    return v_probe;
end $$;

-- Whose fault a refusal is (a no, or refused credentials), told of one call as esl_push_finish is: 'label', 'store' or
-- 'server'. Blame needs evidence: it is the label's when it was alone and its neighbours pass, which means that the store
-- accepted something since the label was refused first, or before, and little was refused since; the server's when
-- several stores are refused and nothing passes; else the store's. A store that passes nothing is paused with the
-- server's words, for longer each time: after five refusals, or at the first credentials if it never passed anything.
-- p_before: when the label was refused first. p_again: it has failed before, so its refusal says nothing new.
create or replace function esl.blame(p jsonb, p_alone boolean, p_before timestamptz, p_again boolean) returns text
language plpgsql volatile set search_path = '' as $$
declare
    v_store  text := p ->> 'store_code';
    v_now    timestamptz := clock_timestamp();
    v_label  boolean;
    v_server boolean;
    h        esl.store_health;
begin
    insert into esl.store_health (store_code) values (v_store) on conflict do nothing;
    select * into h from esl.store_health where store_code = v_store for update;
    -- Several stores and three refusals, this one included, since anything was accepted anywhere.
    select count(*) > 1 and sum(x.refusals) >= 2 into v_server
    from esl.store_health x
    where x.refused_at > coalesce((select max(accepted_at) from esl.store_health), '-infinity')
       or (x.store_code = v_store and h.pauses = 0);
    v_label := p_alone and coalesce(
        h.accepted_at > p_before or (h.accepted_at is not null and h.refusals < 3 and not v_server), false);
    if v_label and p_again then
        update esl.store_health set until = null where store_code = v_store;
        return 'label';
    end if;
    h.refusals := h.refusals + 1;
    update esl.store_health
    set refusals = h.refusals, until = null, reason = p ->> 'message',
        refused_at = case when h.pauses = 0 then v_now else refused_at end
    where store_code = v_store;

    -- However many labels are at fault: a store that accepts none of twenty gets a rest as well.
    v_server := v_server and not v_label;
    if not v_server and (h.refusals >= 20 or (not v_label and (
            h.refusals >= 5 or h.pauses > 0
            or (p ->> 'outcome' = 'authentication' and (h.accepted_at is null or h.refusals > 3))))) then
        update esl.store_health
        set pauses = h.pauses + 1,
            until = v_now + make_interval(secs => least(
                (p ->> 'max_pause_seconds')::float8, (p ->> 'pause_seconds')::float8 * power(2, least(h.pauses, 60))))
        where store_code = v_store;
    end if;
    return case when v_label then 'label' when v_server then 'server' else 'store' end;
end $$;

-- {push_id, outcome, http_status, error_code, message, answer, duration_ms, retry_after_seconds, run_id,
--  rows: [{code, generation}], store_code, operation,
--  max_attempts, initial_delay_seconds, multiplier, max_delay_seconds,
--  max_refusals, refused_delay_seconds, refused_multiplier, max_refused_delay_seconds, pause_seconds, max_pause_seconds,
--  label_server?, server_failed? (none: no call was made), down_after?, probe_seconds?, max_probe_seconds?}
-- -> {accepted, retried, failed, dead, stale}
-- accepted: the ledger takes the pushed labels. transient/unknown: again later, with growing delay, at last dead.
-- rejected/authentication: a refusal (see esl.blame); at the label's own fault again with long delays, at last failed.
-- A batch is halved until the culprit stands alone: at once when it was refused or its outcome is unknown, else after
-- some tries. What is not a label's own fault is no attempt of it: in company, or while the store or server is in doubt.
-- A worker whose lease is gone changes nothing but what its push may have done: those labels are pushed again.
create or replace function public.esl_push_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_push    uuid := (p ->> 'push_id')::uuid;
    v_store   text := p ->> 'store_code';
    v_outcome text := p ->> 'outcome';
    v_now     timestamptz := clock_timestamp();
    v_codes   text[];
    v_mine    text[];
    v_stale   text[];
    v_changed text[];
    v_refused boolean := v_outcome in ('rejected', 'authentication');
    v_blame   text;
    v_alone   boolean;
    v_halved  boolean;
    v_counts  boolean;
    v_probe   timestamptz;
    v_result  jsonb;
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.labels', 0));

    -- A repeated call (its first answer was lost) finds its results and changes nothing.
    select coalesce(array_agg(r.code), '{}') into v_codes from jsonb_to_recordset(p -> 'rows') as r (code text)
    where not exists (select from esl.sync_log l where l.push_id = v_push and l.kind = 'result'
                      and l.code = r.code and l.outcome <> 'lost');
    select coalesce(array_agg(q.code), '{}') into v_mine from esl.sync_queue q
    where q.store_code = v_store and q.code = any (v_codes) and q.push_id = v_push and q.state = 'leased';
    select coalesce(array_agg(c), '{}') into v_stale from unnest(v_codes) c where c <> all (v_mine);

    insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label_hash,
        attempt, run_id, asset, partition, event_ids, outcome, http_status, error_code, message, answer, duration_ms)
    select 'result', v_push, i.store_code, i.code, i.mapping_id, i.variant_id, i.operation, i.label_hash,
           i.attempt, i.run_id, i.asset, i.partition, i.event_ids, v_outcome, (p ->> 'http_status')::int,
           (p ->> 'error_code')::numeric, p ->> 'message', p ->> 'answer', (p ->> 'duration_ms')::int
    from esl.sync_log i
    where i.push_id = v_push and i.kind = 'intent' and i.code = any (v_codes);

    v_alone := cardinality(v_codes) = 1;
    if v_outcome = 'accepted' and cardinality(v_codes) > 0 then
        insert into esl.store_health (store_code, accepted_at) values (v_store, v_now)
        on conflict (store_code) do update
        set accepted_at = v_now, refusals = 0, refused_at = null, pauses = 0, until = null, reason = null;
    elsif v_refused and cardinality(v_mine) > 0 then
        select esl.blame(p, v_alone, min(q.refused_at), max(q.attempts) > 1) into v_blame
        from esl.sync_queue q where q.store_code = v_store and q.code = any (v_mine);
        if v_blame = 'server' and p ? 'label_server' then
            p := p || '{"server_failed": true}';
        end if;
    elsif cardinality(v_mine) > 0 then
        update esl.store_health set until = null where store_code = v_store and pauses + refusals > 0;
    end if;
    v_probe := esl.note_health(p);

    if v_outcome = 'accepted' then
        perform esl.note_drastic(v_push, v_store, v_mine);
        insert into esl.hipoink_products as s (store_code, code, mapping_id, variant_id, label, label_hash, push_id,
                                               accepted_at)
        select i.store_code, i.code, i.mapping_id, i.variant_id, i.label, i.label_hash, v_push, v_now
        from esl.sync_log i
        where i.push_id = v_push and i.kind = 'intent' and i.operation = 'upsert' and i.code = any (v_mine)
        on conflict (store_code, code) do update
        set mapping_id = excluded.mapping_id, variant_id = excluded.variant_id, label = excluded.label,
            label_hash = excluded.label_hash, push_id = excluded.push_id, accepted_at = excluded.accepted_at;

        insert into esl.price_history (variant_id, mapping_id, since, price)
        select distinct on (i.variant_id, i.mapping_id)
               i.variant_id, i.mapping_id, v_now, esl.price_of(i.label)
        from esl.sync_log i
        where i.push_id = v_push and i.kind = 'intent' and i.operation = 'upsert' and i.code = any (v_mine)
          and esl.price_of(i.label) is not null and not esl.is_blank(i.label)  -- which asks no price
          and esl.price_of(i.label) is distinct from (
              select h.price from esl.price_history h
              where h.variant_id = i.variant_id and h.mapping_id = i.mapping_id order by h.since desc limit 1)
        on conflict do nothing;

        delete from esl.hipoink_products s using esl.sync_log i
        where i.push_id = v_push and i.kind = 'intent' and i.operation = 'delete' and i.code = any (v_mine)
          and s.store_code = i.store_code and s.code = i.code;

        -- Done, unless the label has changed while it was on its way (generation moved on) or must go out again.
        delete from esl.sync_queue q using jsonb_to_recordset(p -> 'rows') as r (code text, generation bigint)
        where q.store_code = v_store and q.code = r.code and q.code = any (v_mine)
          and q.generation = r.generation and not q.redo;
        update esl.sync_queue q
        set state = 'ready', in_doubt = q.redo, redo = false, attempts = 0, next_attempt_at = v_now,
            lease_until = null, last_error = null, refused_at = null, refusals = 0
        where q.store_code = v_store and q.code = any (v_mine);
        perform esl.requeue(array_fill(v_store, array[cardinality(v_mine)]), v_mine);
        perform esl.want_refresh(v_store);
    else
        select v_probe is null and not v_alone and (
                   v_refused or v_outcome = 'unknown'
                   or max(q.attempts) >= least(3, (p ->> 'max_attempts')::int))
        into v_halved
        from esl.sync_queue q where q.store_code = v_store and q.code = any (v_mine);
        v_counts := v_probe is null and not v_halved and (not v_refused or v_blame = 'label');
        -- A label that changed while it was on its way starts afresh.
        select coalesce(array_agg(q.code), '{}') into v_changed
        from jsonb_to_recordset(p -> 'rows') as r (code text, generation bigint)
        join esl.sync_queue q on q.store_code = v_store and q.code = r.code and q.generation <> r.generation;
        update esl.sync_queue q
        set lease_until = null, redo = false, last_error = p ->> 'message',
            max_batch = case when v_halved then (cardinality(v_codes) + 1) / 2 else q.max_batch end,
            attempts = case when q.code = any (v_changed) then 0 when v_counts then q.attempts else q.attempts - 1 end,
            refused_at = case when q.code = any (v_changed) then null
                              when v_refused then coalesce(q.refused_at, v_now) else q.refused_at end,
            refusals = case when q.code = any (v_changed) then 0 when v_refused and v_counts then q.refusals + 1
                            else q.refusals end,
            state = case when q.code = any (v_changed) or not v_counts then 'ready'
                         when v_refused and q.refusals + 1 >= (p ->> 'max_refusals')::int then 'failed'
                         when not v_refused and q.attempts >= (p ->> 'max_attempts')::int then 'dead'
                         else 'ready' end,
            next_attempt_at = case
                when q.code = any (v_changed) or (v_halved and v_refused) then v_now
                when v_probe is not null then v_probe
                else v_now + make_interval(secs => greatest(
                    coalesce((p ->> 'retry_after_seconds')::float8, 0), (0.75 + random() / 2) * case
                    when v_refused then least((p ->> 'max_refused_delay_seconds')::float8,
                        (p ->> 'refused_delay_seconds')::float8
                        * power((p ->> 'refused_multiplier')::float8, case when v_counts then least(q.refusals, 60) else 0 end))
                    else least((p ->> 'max_delay_seconds')::float8,
                        (p ->> 'initial_delay_seconds')::float8
                        * power((p ->> 'multiplier')::float8, least(q.attempts - 1, 60))) end)) end
        where q.store_code = v_store and q.code = any (v_mine);
    end if;

    -- What a late worker pushed may stand on the label now (of a refused batch, a part of it): queue what the ledger says
    -- (or a removal), in doubt, and let requeue put the wanted label in its place.
    if cardinality(v_stale) > 0 and v_outcome in ('accepted', 'unknown', 'rejected') then
        insert into esl.sync_queue as q (store_code, code, mapping_id, variant_id, operation, label, label_hash,
                                         priority, in_doubt, event_ids)
        select i.store_code, i.code, i.mapping_id, i.variant_id,
               case when s.code is null then 'delete' else 'upsert' end, s.label, s.label_hash, 0, true, i.event_ids
        from esl.sync_log i left join esl.hipoink_products s using (store_code, code)
        where i.push_id = v_push and i.kind = 'intent' and i.code = any (v_stale)
        on conflict (store_code, code) do update set in_doubt = true, redo = q.state = 'leased';
        perform esl.requeue(array_fill(v_store, array[cardinality(v_stale)]), v_stale);
    end if;

    select jsonb_build_object(
        'accepted', case when v_outcome = 'accepted' then cardinality(v_mine) else 0 end,
        'retried', count(*) filter (where v_outcome <> 'accepted' and q.state = 'ready'),
        'failed', count(*) filter (where q.state = 'failed'),
        'dead', count(*) filter (where q.state = 'dead'),
        'stale', cardinality(v_stale))
    into v_result
    from (select 1) one left join esl.sync_queue q on q.store_code = v_store and q.code = any (v_mine);
    return v_result;
end $$;

-- {shop} -> {labels}: for the nightly run; the shop's failed and dead labels are due once more. They keep their counts,
-- so that one more refusal of the same kind puts them back at once.
create or replace function public.esl_push_again(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_labels int;
begin
    update esl.sync_queue q set state = 'ready', next_attempt_at = now()
    from esl.store_mappings m
    where m.id = q.mapping_id and q.state in ('failed', 'dead')
      and m.source_system = p #>> '{shop,source_system}' and m.source_store_id = p #>> '{shop,source_store_id}';
    get diagnostics v_labels = row_count;
    return jsonb_build_object('labels', v_labels);
end $$;

-- {server, rate_per_second, slots} -> {wait_seconds}: reserves call slots of one label server for whoever asks.
create or replace function public.esl_rate_take(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_now  timestamptz := clock_timestamp();
    v_step interval := make_interval(secs => (p ->> 'slots')::float8 / (p ->> 'rate_per_second')::float8);
    v_slot timestamptz;
begin
    insert into esl.label_servers as r (server, next_slot) values (p ->> 'server', v_now + v_step)
    on conflict (server) do update set next_slot = greatest(r.next_slot, clock_timestamp()) + v_step
    returning next_slot - v_step into v_slot;
    return jsonb_build_object('wait_seconds', greatest(0, extract(epoch from v_slot - clock_timestamp())::float8));
end $$;

-- {name, holder, seconds} -> {held, holder, until}: takes or renews; refused while another holder's runs.
create or replace function public.esl_lease_take(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_held boolean;
begin
    insert into esl.leases as l (name, holder, until)
    values (p ->> 'name', p ->> 'holder', clock_timestamp() + make_interval(secs => (p ->> 'seconds')::float8))
    on conflict (name) do update set holder = excluded.holder, until = excluded.until
    where l.holder = excluded.holder or l.until < clock_timestamp();
    v_held := found;
    return (select jsonb_build_object('held', v_held, 'holder', l.holder, 'until', l.until)
            from esl.leases l where l.name = p ->> 'name');
end $$;

-- {name, holder} -> {released}
create or replace function public.esl_lease_release(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with gone as (
        delete from esl.leases where name = p ->> 'name' and holder = p ->> 'holder' returning 1
    ) select jsonb_build_object('released', exists (select from gone))
$$;

-- {label_server?} -> {due, inbox, variants, queue, refresh, outage, drain, shops}: what the sensor asks. due: a drain run
-- would find work now. outage: {since, probe_at, reason} while the label server is down.
create or replace function public.esl_due(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with mapped as (
        select source_system, source_store_id, bool_or(is_active) as is_active
        from esl.store_mappings group by 1, 2
    ), found as (
        select
            exists (select from mapped s join esl.webhook_inbox i using (source_system, source_store_id)
                    where i.state = 'ready' or (i.state = 'leased' and i.lease_until < now())) as inbox,
            exists (select from mapped s join esl.products o using (source_system, source_store_id)
                    where s.is_active and o.due) as variants,
            not esl.is_down(p ->> 'label_server') and (
                exists (select from esl.sync_queue q where q.state = 'leased' and q.lease_until < now())
                or (esl.next_push(null, false)).code is not null) as queue,
            exists (select from esl.refreshable(p ->> 'label_server')) as refresh
    )
    select jsonb_build_object(
        'due', f.inbox or f.variants or f.queue or f.refresh,
        'inbox', f.inbox, 'variants', f.variants, 'queue', f.queue, 'refresh', f.refresh,
        'outage', (select jsonb_build_object('since', down_since, 'probe_at', probe_at, 'reason', last_error)
                   from esl.label_servers where server = p ->> 'label_server' and down_since is not null),
        'drain', (select jsonb_build_object('holder', holder, 'until', until) from esl.leases
                  where name = 'event_sync' and until > clock_timestamp()),
        'shops', (select coalesce(jsonb_agg(jsonb_build_object(
                      'source_system', source_system, 'source_store_id', source_store_id)
                      order by source_system, source_store_id), '[]') from mapped))
    from found f
$$;
