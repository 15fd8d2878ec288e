-- Pushes: a batch is claimed, with its intents, and finished, with its results.

-- A worker that died after its claim leaves intents without a result: what became of them is unknown. Something may be
-- in its batch that no run survives: each time the batch is halved, until the culprit stands alone and dies of its
-- attempts, with growing pauses, while the others pass.
create or replace function esl.take_back_lost(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare v_stores text[];
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
    ), landed as (
        delete from esl.flights f using lost l where f.push_id = l.push_id
    ), noted as (
        insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label_hash,
                                  attempt, run_id, outcome, message, cause)
        select 'result', push_id, store_code, code, mapping_id, variant_id, operation, label_hash, attempts,
               p ->> 'run_id', 'lost', last_error, cause
        from released where push_id is not null
        returning store_code
    )
    select array_agg(store_code) into v_stores from noted;
    if v_stores is not null then
        perform esl.measure_lost(v_stores);
    end if;
end $$;

-- Takes a batch behind this label: of the same mapping, store, operation and max_batch; none if there are too few.
-- -> how many labels.
create or replace function esl.lease_batch(p_push uuid, p_head esl.sync_queue, m esl.store_mappings, p_fewest int,
                                           p_limit int, p_until timestamptz)
returns int language plpgsql set search_path = '' as $$
declare v_leased int;
begin
    -- Label after label, so that whatever the planner believes of the queue, it walks along the index; then locked.
    with recursive chosen as (
        select q.ctid as at, q.priority, q.next_attempt_at, q.created_at, q.code, 1 as place
        from esl.sync_queue q where q.code = p_head.code and q.store_code = p_head.store_code
        union all
        select n.*, c.place + 1 from chosen c cross join lateral (
            select q.ctid, q.priority, q.next_attempt_at, q.created_at, q.code from esl.sync_queue q
            where q.state = 'ready' and q.mapping_id = p_head.mapping_id and q.store_code = p_head.store_code
              and (q.priority, q.next_attempt_at, q.created_at, q.code collate "C")
                  > (c.priority, c.next_attempt_at, c.created_at, c.code collate "C")
              and q.operation = p_head.operation and q.max_batch = p_head.max_batch
              and q.next_attempt_at <= now() and esl.may_push(q, m)
            order by q.priority, q.next_attempt_at, q.created_at, q.code collate "C" limit 1) n
        where c.place < p_limit
    ), batch as (
        select q.store_code, q.code from chosen c join esl.sync_queue q on q.ctid = c.at
        where c.place <= p_limit and q.state = 'ready' and q.operation = p_head.operation
          and (select count(*) from chosen) >= p_fewest
        for update of q skip locked
    )
    update esl.sync_queue q
    set state = 'leased', push_id = p_push, attempts = q.attempts + 1, in_doubt = true, was_in_doubt = q.in_doubt,
        lease_until = p_until
    from batch b where q.store_code = b.store_code and q.code = b.code;
    get diagnostics v_leased = row_count;
    return v_leased;
end $$;

-- A mapping had its turn; a jump of its rises (see esl.has_jump) is no turn of all.
create or replace function esl.note_turn(p_head esl.sync_queue) returns void
language plpgsql set search_path = '' as $$
declare
    v_server text := esl.server_of(p_head.store_code);
    v_jumped boolean := p_head.priority = 0 and esl.has_jump(
        v_server, (select t.taken_at from esl.turns t where t.party = p_head.mapping_id::text and t.queue = 'push'));
begin
    perform esl.take_turns('push', array[p_head.mapping_id::text]);
    if not v_jumped then
        perform esl.take_turns('bulk', array[v_server]);
    end if;
end $$;

-- Claims the batch of this label, of one alone where that is a try (p_probes, or of a store in doubt, which is kept
-- from the others meanwhile), and writes its intents (p: as for esl_push_claim). -> how many labels.
create or replace function esl.claim_batch(p jsonb, p_head esl.sync_queue, p_probes boolean, p_until timestamptz)
returns int language plpgsql set search_path = '' as $$
declare
    v_push    uuid := (p ->> 'claim_id')::uuid;
    v_server  text := esl.server_in(p);
    v_limit   int;
    v_claimed int;
    v_doubted boolean;
    h         esl.store_health;
    m         esl.store_mappings;
begin
    select * into m from esl.store_mappings where id = p_head.mapping_id;
    select * into h from esl.store_health x where x.store_code = p_head.store_code and esl.is_doubted(x) for update;
    v_doubted := found;
    v_limit := least((p ->> 'limit')::int, case when p_probes or v_doubted then 1 else p_head.max_batch end,
                     esl.most_labels(v_server, p_head.store_code));
    v_claimed := esl.lease_batch(v_push, p_head, m, case when p_probes or v_doubted then 1
                                 else esl.fewest_labels(p, p_head.store_code, v_limit) end, v_limit, p_until);
    if v_claimed > 0 then
        insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label,
                                  label_hash, attempt, run_id, asset, partition, event_ids, cause, queued_at)
        select 'intent', v_push, q.store_code, q.code, q.mapping_id, q.variant_id, q.operation, q.label,
               q.label_hash, q.attempts, p ->> 'run_id', p ->> 'asset',
               m.source_system || ':' || m.source_store_id, q.event_ids, q.cause, q.queued_at
        from esl.sync_queue q where q.push_id = v_push and q.state = 'leased';
        insert into esl.flights (push_id, store_code, label_server, run_id, until, probes)
        values (v_push, p_head.store_code, v_server, p ->> 'run_id', p_until, p_probes);
        perform esl.note_turn(p_head);
        if v_doubted then
            update esl.store_health set until = p_until where store_code = p_head.store_code;
        end if;
    end if;
    return v_claimed;
end $$;

-- Claims what is due now at a label server, if anything (p: as for esl_push_claim). -> whether something is due that
-- has to wait for what is under way.
create or replace function esl.claim_next(p jsonb) returns boolean
language plpgsql set search_path = '' as $$
declare
    v_server  text := esl.server_in(p);
    v_until   timestamptz := clock_timestamp() + make_interval(secs => (p ->> 'lease_seconds')::float8);
    v_probes  boolean := esl.take_probe(v_server, v_until);
    v_claimed int := 0;
    n         record;
begin
    if exists (select from esl.sync_queue where state = 'leased' and lease_until < now()) then
        perform esl.take_back_lost(p);
    end if;
    if not v_probes and esl.is_down(v_server) then
        return false;
    end if;
    select * into n from esl.next_push(p, v_probes);
    if not n.is_held then
        v_claimed := esl.claim_batch(p, n.head, v_probes, v_until);
    end if;
    if v_probes and v_claimed = 0 then
        perform esl.give_probe_back(v_server);
    end if;
    return v_claimed = 0 and p ->> 'concurrency' is not null and n.is_held is not null;
end $$;

-- {claim_id, limit, lease_seconds, max_attempts, run_id, asset, partition?, shop?, label_server?, concurrency?} ->
-- {push_id, store_code, operation, rows: [{code, label, generation, event_ids, attempt}], has_more, again_seconds,
-- is_paced}.
-- rows empty: nothing is due, or (again_seconds) what is has to wait for what is under way, where concurrency says how
-- many calls there may be at a time; is_paced: for the pace, that keeps back whatever may come meanwhile. has_more:
-- anything else is queued. One batch is one call at the label server: one mapping, one store, one operation (see
-- esl.next_push). Writes an intent per label. While the label server is down, or a store in doubt, one worker at a
-- time may try one label. The same claim_id again returns the same rows.
create or replace function public.esl_push_claim(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
    v_push uuid := (p ->> 'claim_id')::uuid;
    v_held boolean := false;
    v_pace interval;
begin
    perform esl.know_what_grew();
    if not exists (select from esl.sync_queue where push_id = v_push and state = 'leased') then
        perform esl.lock_claims(esl.server_in(p));
        v_held := esl.claim_next(p);
        v_pace := esl.until_next_call(esl.server_in(p));
    end if;
    return (select jsonb_build_object(
        'push_id', v_push, 'store_code', min(q.store_code), 'operation', min(q.operation),
        'again_seconds', case when v_held then least(0.25, extract(epoch from v_pace)) end,
        'is_paced', v_pace is not null, 'has_more', exists (select from esl.sync_queue where state = 'ready'),
        'rows', coalesce(jsonb_agg(jsonb_build_object(
            'code', q.code, 'label', q.label, 'generation', q.generation, 'attempt', q.attempts,
            'source_system', m.source_system, 'source_store_id', m.source_store_id, 'variant_id', q.variant_id,
            'event_ids', q.event_ids) order by q.code collate "C"), '[]'))
        from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
        where q.push_id = v_push and q.state = 'leased');
end $$;

-- Of a push the labels whose answer is not known yet (a repeated call, whose first answer was lost, finds none): mine
-- are those that this worker still holds, stale the codes of the others.
create or replace function esl.unfinished(p_push uuid, p_store text, p_rows jsonb, out codes text[],
                                          out mine esl.pushed_row[], out stale text[])
language plpgsql volatile set search_path = '' as $$
declare v_known text[]; v_held text[];
begin
    v_known := array(select l.code from esl.sync_log l
                     where l.push_id = p_push and l.kind = 'result' and l.outcome <> 'lost');
    v_held := array(  -- locked, so that nobody takes them for lost meanwhile
        select r.code from jsonb_populate_recordset(null::esl.pushed_row, p_rows) r
        join esl.sync_queue q on q.code = r.code and q.store_code = p_store
        where q.push_id = p_push and q.state = 'leased' order by q.code for update of q);
    select coalesce(array_agg(r.code), '{}'), coalesce(array_agg(r) filter (where r.code = any (v_held)), '{}'),
           coalesce(array_agg(r.code) filter (where r.code <> all (v_held)), '{}')
    into codes, mine, stale
    from jsonb_populate_recordset(null::esl.pushed_row, p_rows) r where r.code <> all (v_known);
end $$;

-- The answer to these labels of a push, beside their intents (p: as for esl_push_finish).
create or replace function esl.note_results(p jsonb, p_codes text[]) returns void
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label_hash,
        attempt, run_id, asset, partition, event_ids, cause, outcome, http_status, error_code, message, answer,
        duration_ms)
    select 'result', i.push_id, i.store_code, i.code, i.mapping_id, i.variant_id, i.operation, i.label_hash,
           i.attempt, i.run_id, i.asset, i.partition, i.event_ids, i.cause, p ->> 'outcome', (p ->> 'http_status')::int,
           (p ->> 'error_code')::numeric, p ->> 'message', p ->> 'answer', (p ->> 'duration_ms')::int
    from esl.sync_log i
    where i.push_id = (p ->> 'push_id')::uuid and i.kind = 'intent' and i.code = any (p_codes);
end $$;

-- The ledger takes what was pushed, and the price history the prices that are new on labels.
create or replace function esl.enter_in_ledger(p_push uuid, p_store text, p_codes text[]) returns void
language plpgsql set search_path = '' as $$
declare v_now timestamptz := clock_timestamp();
begin
    insert into esl.hipoink_products as s (store_code, code, mapping_id, variant_id, label, label_hash, push_id,
                                           accepted_at)
    select i.store_code, i.code, i.mapping_id, i.variant_id, i.label, i.label_hash, p_push, v_now
    from esl.sync_log i
    where i.push_id = p_push and i.kind = 'intent' and i.operation = 'upsert' and i.code = any (p_codes)
    on conflict (store_code, code) do update
    set mapping_id = excluded.mapping_id, variant_id = excluded.variant_id, label = excluded.label,
        label_hash = excluded.label_hash, push_id = excluded.push_id, accepted_at = excluded.accepted_at;

    insert into esl.price_history (variant_id, mapping_id, since, price)
    select distinct on (i.variant_id, i.mapping_id) i.variant_id, i.mapping_id, v_now, i.price
    from (select l.variant_id, l.mapping_id, esl.price_of(l.label) as price from esl.sync_log l
          where l.push_id = p_push and l.kind = 'intent' and l.operation = 'upsert' and l.code = any (p_codes)
            and not esl.is_blanked(l.label_hash)) i  -- which asks no price
    where i.price is not null and i.price is distinct from (
        select h.price from esl.price_history h
        where h.variant_id = i.variant_id and h.mapping_id = i.mapping_id order by h.since desc limit 1)
    on conflict do nothing;

    delete from esl.hipoink_products s using esl.sync_log i
    where i.push_id = p_push and i.kind = 'intent' and i.operation = 'delete' and i.code = any (p_codes)
      and s.store_code = p_store and s.code = i.code;
end $$;

-- Whether prices on labels rise with this push. To be asked before the ledger takes it.
create or replace function esl.has_rise(p_push uuid, p_store text, p_codes text[]) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    return exists (
        select from esl.sync_log i
        join esl.hipoink_products s on s.code = i.code and s.store_code = p_store
        where i.push_id = p_push and i.kind = 'intent' and i.operation = 'upsert' and i.code = any (p_codes)
          and esl.price_of(i.label) > esl.price_of(s.label));
end $$;

-- The label server has accepted these labels of a push.
create or replace function esl.take_accepted(p_push uuid, p_store text, p_mine esl.pushed_row[]) returns void
language plpgsql set search_path = '' as $$
declare
    v_codes text[] := array(select r.code from unnest(p_mine) r);
    v_rises boolean := esl.has_rise(p_push, p_store, v_codes);
begin
    perform esl.note_drastic(p_push, p_store, v_codes);
    perform esl.enter_in_ledger(p_push, p_store, v_codes);
    -- Done, unless the label has changed while it was on its way (generation moved on) or must go out again. What is
    -- done needs no new decision: whatever would have changed it meanwhile has asked for one, and that would have
    -- changed the queue. But where a removal waits, its time begins now, or is over.
    delete from esl.sync_queue q using unnest(p_mine) r
    where q.store_code = p_store and q.code = r.code and q.generation = r.generation and not q.redo;
    with open as (
        update esl.sync_queue q
        set state = 'ready', in_doubt = q.redo, redo = false, attempts = 0, next_attempt_at = clock_timestamp(),
            lease_until = null, last_error = null, refused_at = null, refusals = 0,
            cause = case when q.redo and q.cause is distinct from 'moved' then 'correction' else q.cause end
        where q.store_code = p_store and q.code = any (v_codes)
        returning q.code
    )
    select coalesce(array_agg(k.code), '{}') into v_codes
    from (select o.code from open o
          union select g.code from esl.graces g where g.store_code = p_store and g.code = any (v_codes)) k;
    if v_codes = '{}' then
        perform esl.guard(p_store);  -- which counts the labels that hang
    else
        perform esl.requeue(array_fill(p_store, array[cardinality(v_codes)]), v_codes);
    end if;
    perform esl.want_refresh(p_store, v_rises);
end $$;

-- These labels of a push were not accepted (p, p_size labels: as for esl_push_finish): again later, with growing delay,
-- at last failed or dead. p_probe: when the label server is tried again that is down. All of them together: one delay
-- is drawn for all, as long as the one that was tried most often has to wait.
-- A batch is halved until the culprit stands alone: at once when it was refused or its outcome is unknown, else after
-- some tries. What is not a label's own fault is no attempt of it: in company, or while store or server are in doubt.
-- Too large a batch (p_blame 'size') is nobody's.
create or replace function esl.put_back(p jsonb, p_size int, p_mine esl.pushed_row[], p_blame text,
                                        p_probe timestamptz)
returns void language plpgsql set search_path = '' as $$
declare
    v_now     timestamptz := clock_timestamp();
    v_large   boolean := coalesce(p_blame, '') = 'size';
    v_refused boolean := esl.is_refusal(p ->> 'outcome') and not v_large;
    v_halved  boolean;
    v_counts  boolean;
    v_again   timestamptz;
    worst     record;
begin
    select max(q.attempts) as attempts, max(q.refusals) as refusals into worst
    from unnest(p_mine) r
    join esl.sync_queue q on q.store_code = p ->> 'store_code' and q.code = r.code and q.generation = r.generation;
    v_halved := p_probe is null and p_size > 1 and (
        v_refused or v_large or p ->> 'outcome' = 'unknown'
        or coalesce(worst.attempts, 0) >= least(3, (p ->> 'max_attempts')::int));
    v_counts := p_probe is null and not v_halved and (not v_refused or p_blame = 'label');
    v_again := case when v_halved and (v_refused or v_large) then v_now
                    when p_probe is not null then p_probe
                    else v_now + esl.pause_before(p, worst.attempts, case when v_counts then worst.refusals else 0 end)
               end;

    update esl.sync_queue q
    set lease_until = null, redo = false, last_error = p ->> 'message', state = n.state, attempts = n.attempts,
        refused_at = n.refused_at, refusals = n.refusals, next_attempt_at = n.at,
        max_batch = case when v_halved then (p_size + 1) / 2 else q.max_batch end
    from unnest(p_mine) r
    join esl.sync_queue o on o.store_code = p ->> 'store_code' and o.code = r.code
    cross join lateral (
        -- A label that changed while it was on its way starts afresh.
        select 'ready' as state, 0 as attempts, null::timestamptz as refused_at, 0 as refusals, v_now as at
        where o.generation <> r.generation
        union all
        select case when not v_counts then 'ready'
                    when v_refused and o.refusals + 1 >= (p ->> 'max_refusals')::int then 'failed'
                    when not v_refused and o.attempts >= (p ->> 'max_attempts')::int then 'dead'
                    else 'ready' end,
               case when v_counts then o.attempts else o.attempts - 1 end,
               case when v_refused then coalesce(o.refused_at, v_now) else o.refused_at end,
               case when v_refused and v_counts then o.refusals + 1 else o.refusals end,
               v_again
        where o.generation = r.generation) n
    where q.store_code = o.store_code and q.code = o.code;
end $$;

-- What a late worker pushed may stand on these labels now (of a refused batch, a part of it): what the ledger says (or
-- a removal) is queued in doubt, and requeue puts the wanted label in its place.
create or replace function esl.doubt_late(p_push uuid, p_store text, p_codes text[]) returns void
language plpgsql set search_path = '' as $$
begin
    insert into esl.sync_queue as q (store_code, code, mapping_id, variant_id, operation, label, label_hash,
                                     priority, in_doubt, event_ids, cause)
    select i.store_code, i.code, i.mapping_id, i.variant_id,
           case when s.code is null then 'delete' else 'upsert' end, s.label, s.label_hash, 0, true, i.event_ids,
           'correction'
    from esl.sync_log i left join esl.hipoink_products s using (store_code, code)
    where i.push_id = p_push and i.kind = 'intent' and i.code = any (p_codes)
    on conflict (store_code, code) do update set in_doubt = true, redo = q.state = 'leased';
    perform esl.requeue(array_fill(p_store, array[cardinality(p_codes)]), p_codes, 'correction');
end $$;

-- These labels of a push were not sent after all: as if they had not been claimed.
create or replace function esl.take_unsent(p_store text, p_mine esl.pushed_row[]) returns void
language plpgsql set search_path = '' as $$
declare v_codes text[] := array(select r.code from unnest(p_mine) r);
begin
    update esl.sync_queue q
    set state = 'ready', attempts = greatest(0, q.attempts - 1), in_doubt = q.was_in_doubt or q.redo, redo = false,
        next_attempt_at = clock_timestamp(), lease_until = null
    where q.store_code = p_store and q.code = any (v_codes);
    perform esl.requeue(array_fill(p_store, array[cardinality(v_codes)]), v_codes);
end $$;

-- What an answer says of a store, a label server and these labels, told of one call as esl_push_finish is (p_size
-- labels, p_mine of them still this worker's). blame: see esl.blame, or 'size'. probe: when the label server is tried
-- again that is down.
create or replace function esl.judge(p jsonb, p_flight esl.flights, p_size int, p_mine esl.pushed_row[],
                                     out blame text, out probe timestamptz)
language plpgsql volatile set search_path = '' as $$
declare
    v_store   text := p ->> 'store_code';
    v_outcome text := p ->> 'outcome';
    v_locked  boolean := esl.lock_server(esl.server_in(p), v_outcome);
begin
    perform esl.note_size(p, p_size, v_locked);
    if v_outcome = 'accepted' and p_size > 0 then
        perform esl.note_passing(p);
    elsif v_outcome = 'rejected' and p ->> 'http_status' = '413' and p_size > 1 then
        blame := 'size';
    elsif esl.is_refusal(v_outcome) and cardinality(p_mine) > 0 then
        select esl.blame(p, p_size = 1, min(q.refused_at), max(q.attempts) > 1) into blame
        from unnest(p_mine) r join esl.sync_queue q on q.store_code = v_store and q.code = r.code;
    end if;
    if cardinality(p_mine) > 0 and (blame = 'size' or not (v_outcome = 'accepted' or esl.is_refusal(v_outcome))) then
        update esl.store_health set until = null where store_code = v_store and pauses + refusals > 0;
    end if;
    if v_outcome = 'not_sent' and p_flight.probes then
        perform esl.give_probe_back(esl.server_in(p));
    end if;
    probe := esl.note_health(
        case when blame = 'server' and p ? 'label_server' then p || '{"server_failed": true}' else p end,
        p_flight.claimed_at, v_locked);
end $$;

-- {push_id, outcome, http_status, error_code, message, answer, duration_ms, retry_after_seconds, run_id,
--  rows: [{code, generation}], store_code, operation, batch_size?,
--  max_attempts, initial_delay_seconds, multiplier, max_delay_seconds, max_refusals, refused_delay_seconds,
--  refused_multiplier, max_refused_delay_seconds, pause_seconds, max_pause_seconds,
--  label_server?, server_failed? (none: no call was made), down_after?, probe_seconds?, max_probe_seconds?}
-- -> {accepted, retried, failed, dead, stale}
-- accepted: the ledger takes the pushed labels. transient/unknown: again later, at last dead. rejected/authentication:
-- a refusal (see esl.blame); at the label's own fault again with long delays, at last failed. not_sent: due as before.
-- A worker whose lease is gone changes nothing but what its push may have done: those labels are pushed again.
create or replace function public.esl_push_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare
    v_push    uuid := (p ->> 'push_id')::uuid;
    v_store   text := p ->> 'store_code';
    v_outcome text := p ->> 'outcome';
    v_flight  esl.flights;
    t         record;
    j         record;
begin
    perform esl.know_what_grew();
    perform esl.lock_stores(array[v_store]);
    select * into v_flight from esl.flights where push_id = v_push;
    select u.codes, u.mine, u.stale into t from esl.unfinished(v_push, v_store, p -> 'rows') u;
    perform esl.note_results(p, t.codes);
    perform esl.measure_push(p, t.codes, t.mine);
    select * into j from esl.judge(p, v_flight, cardinality(t.codes), t.mine);

    if v_outcome = 'accepted' then
        perform esl.take_accepted(v_push, v_store, t.mine);
    elsif v_outcome = 'not_sent' then
        perform esl.take_unsent(v_store, t.mine);
    else
        perform esl.put_back(p, cardinality(t.codes), t.mine, j.blame, j.probe);
    end if;
    if cardinality(t.stale) > 0 and v_outcome in ('accepted', 'unknown', 'rejected') then
        perform esl.doubt_late(v_push, v_store, t.stale);
    end if;
    perform esl.finish_leaving(v_store);
    delete from esl.flights where push_id = v_push;
    delete from esl.calls where recorded_as = v_push;  -- last, for whoever asks for a call waits for it

    return (select jsonb_build_object(
        'accepted', case when v_outcome = 'accepted' then cardinality(t.mine) else 0 end,
        'retried', count(*) filter (where v_outcome <> 'accepted' and q.state = 'ready'),
        'failed', count(*) filter (where q.state = 'failed'),
        'dead', count(*) filter (where q.state = 'dead'),
        'stale', cardinality(t.stale))
        from unnest(t.mine) r join esl.sync_queue q on q.store_code = v_store and q.code = r.code);
end $$;

-- {shop} -> {labels}: for the nightly run; the shop's failed and dead labels are due once more. They keep their counts,
-- so that one more refusal of the same kind puts them back at once.
create or replace function public.esl_push_again(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_labels int;
begin
    update esl.sync_queue q set state = 'ready', next_attempt_at = now(), cause = 'push again'
    from esl.store_mappings m
    where m.id = q.mapping_id and q.state in ('failed', 'dead')
      and m.source_system = p #>> '{shop,source_system}' and m.source_store_id = p #>> '{shop,source_store_id}';
    get diagnostics v_labels = row_count;
    return jsonb_build_object('labels', v_labels);
end $$;
