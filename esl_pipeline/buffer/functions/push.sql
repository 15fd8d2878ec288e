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

-- What may be pushed now: nothing of a mapping that is paused, in dry run or not evaluated for its settings, and
-- nothing of a paused store.
drop view if exists esl.pushable;
create view esl.pushable as
select q.store_code, q.code, q.operation, q.priority, q.next_attempt_at, q.created_at, q.max_batch, q.attempts, q.state,
       m.source_system, m.source_store_id
from esl.sync_queue q
join esl.store_mappings m on m.id = q.mapping_id
where m.is_active and not m.is_dry_run and m.problem is null
  and ((q.state = 'ready' and q.next_attempt_at <= now()) or (q.state = 'leased' and q.lease_until < now()))
  and q.store_code not in (select s.store_code from esl.store_pauses s where s.until > now())
  and esl.may_push(q, m);

-- Whether nothing may be pushed to a label server now, not even to try.
create or replace function esl.is_down(p_server text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.label_servers where server = p_server and probe_at > clock_timestamp())
$$;

-- {claim_id, limit, lease_seconds, max_attempts, run_id, asset, partition?, shop?, label_server?} ->
-- {push_id, store_code, operation, rows: [{code, label, generation, event_ids, attempt}]} (rows empty: nothing due).
-- One batch is one call at the label server: one store, one operation. The rises first. Writes an intent per label.
-- While the label server is down, one batch at a time may try whether it still is.
-- The same claim_id again returns the same rows.
-- Walks the queue in its order: a planner without statistics would rather judge and sort all of it for each batch.
create or replace function public.esl_push_claim(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set enable_sort = off set enable_bitmapscan = off as $$
declare
    v_push   uuid := (p ->> 'claim_id')::uuid;
    v_max    int := (p ->> 'max_attempts')::int;
    v_lease  interval := make_interval(secs => (p ->> 'lease_seconds')::float8);
    v_probes boolean;
    v_slow   text;
    v_head   record;
begin
    if not exists (select from esl.sync_queue where push_id = v_push and state = 'leased') then
        -- A worker that died after its claim leaves an intent without a result: what became of it is unknown.
        with lost as (
            select q.store_code, q.code from esl.sync_queue q
            where q.state = 'leased' and q.lease_until < now()
            order by q.store_code, q.code for update skip locked
        ), released as (
            update esl.sync_queue q
            set state = case when q.attempts >= v_max then 'dead' else 'ready' end, next_attempt_at = now(),
                lease_until = null, last_error = 'the run ended before the answer of the label server was recorded'
            from lost where q.store_code = lost.store_code and q.code = lost.code
            returning q.*
        )
        insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label_hash,
                                  attempt, run_id, outcome, message)
        select 'result', push_id, store_code, code, mapping_id, variant_id, operation, label_hash, attempts,
               p ->> 'run_id', 'lost', last_error
        from released where push_id is not null;

        -- Whoever probes keeps the others from it until its lease is over.
        update esl.label_servers set probe_at = clock_timestamp() + v_lease
        where server = p ->> 'label_server' and probe_at <= clock_timestamp();
        v_probes := found;

        if v_probes then
            -- Not with what it may have failed for.
            select v.store_code, v.operation, v.max_batch into v_head from esl.pushable v
            where v.state = 'ready'
              and (p -> 'shop' is null or (v.source_system, v.source_store_id)
                   = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
            order by v.attempts, v.max_batch desc, v.priority, v.next_attempt_at limit 1;
        else
            -- After a slow call the other stores come first: none waits for more than one of them.
            select l.store_code into v_slow from (
                select r.store_code, r.duration_ms from esl.sync_log r where r.kind = 'result' order by r.id desc limit 1) l
            where l.duration_ms > 1000;
            loop
                select v.store_code, v.operation, v.max_batch into v_head from esl.pushable v
                where v.state = 'ready' and not esl.is_down(p ->> 'label_server')
                  and (v_slow is null or v.store_code <> v_slow)
                  and (p -> 'shop' is null or (v.source_system, v.source_store_id)
                       = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
                order by v.priority, v.next_attempt_at, v.created_at, v.code collate "C" limit 1;
                exit when found or v_slow is null;
                v_slow := null;
            end loop;
        end if;

        if found then
            -- Chosen first and locked after: joining the whole queue with itself grows with its square.
            with chosen as materialized (
                select v.store_code, v.code from esl.pushable v
                where v.state = 'ready' and v.store_code = v_head.store_code and v.operation = v_head.operation
                  and v.max_batch = v_head.max_batch
                  and (p -> 'shop' is null or (v.source_system, v.source_store_id)
                       = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
                order by v.priority, v.next_attempt_at, v.created_at, v.code collate "C"
                limit least((p ->> 'limit')::int, v_head.max_batch)
            ), batch as (
                select q.store_code, q.code from chosen join esl.sync_queue q using (store_code, code)
                where q.state = 'ready' and q.operation = v_head.operation for update of q skip locked
            )
            update esl.sync_queue q
            set state = 'leased', push_id = v_push, attempts = q.attempts + 1, in_doubt = true,
                lease_until = clock_timestamp() + v_lease
            from batch b where q.store_code = b.store_code and q.code = b.code;

            insert into esl.sync_log (kind, push_id, store_code, code, mapping_id, variant_id, operation, label,
                                      label_hash, attempt, run_id, asset, partition, event_ids)
            select 'intent', v_push, q.store_code, q.code, q.mapping_id, q.variant_id, q.operation, q.label,
                   q.label_hash, q.attempts, p ->> 'run_id', p ->> 'asset',
                   m.source_system || ':' || m.source_store_id, q.event_ids
            from esl.sync_queue q join esl.store_mappings m on m.id = q.mapping_id
            where q.push_id = v_push and q.state = 'leased';
        elsif v_probes then
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

-- {push_id, outcome, http_status, error_code, message, answer, duration_ms, retry_after_seconds, pause_seconds,
--  max_attempts, initial_delay_seconds, multiplier, max_delay_seconds, run_id,
--  rows: [{code, generation}], store_code, operation,
--  label_server?, server_failed? (none: no call was made), down_after?, probe_seconds?, max_probe_seconds?}
-- -> {accepted, retried, failed, dead, stale}
-- accepted: the ledger takes the pushed labels. transient/unknown: again later, with growing delay. rejected: a batch
-- is halved until the refused label stands alone, which is then failed; so is one that the server does not survive.
-- authentication: the store pauses. While the label server is down, nothing is a label's own fault.
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
    v_halved  boolean;
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
            lease_until = null, last_error = null
        where q.store_code = v_store and q.code = any (v_mine);
        perform esl.requeue(array_fill(v_store, array[cardinality(v_mine)]), v_mine);
    else
        -- A label that changed while it was on its way starts afresh. Neither a batch that has to be halved nor
        -- refused credentials nor a server that is down count as an attempt of the label.
        v_halved := cardinality(v_codes) > 1 and v_probe is null and v_outcome in ('rejected', 'unknown');
        update esl.sync_queue q
        set lease_until = null,
            redo = false, last_error = p ->> 'message',
            max_batch = case when v_halved then (cardinality(v_codes) + 1) / 2 else q.max_batch end,
            attempts = case when q.generation <> r.generation then 0
                            when v_halved or v_probe is not null or v_outcome = 'authentication' then q.attempts - 1
                            else q.attempts end,
            state = case when q.generation <> r.generation or v_halved or v_probe is not null
                           or v_outcome = 'authentication' then 'ready'
                         when v_outcome = 'rejected' then 'failed'
                         when q.attempts >= (p ->> 'max_attempts')::int then 'dead'
                         else 'ready' end,
            next_attempt_at = case
                when v_outcome in ('rejected', 'authentication') or q.generation <> r.generation then v_now
                else coalesce(v_probe, v_now + make_interval(secs => greatest(
                    coalesce((p ->> 'retry_after_seconds')::float8, 0),
                    least((p ->> 'max_delay_seconds')::float8, (p ->> 'initial_delay_seconds')::float8
                        * power((p ->> 'multiplier')::float8, least(q.attempts - 1, 60)))
                    * (0.75 + random() / 2)))) end
        from jsonb_to_recordset(p -> 'rows') as r (code text, generation bigint)
        where q.store_code = v_store and q.code = r.code and q.code = any (v_mine);

        if v_outcome = 'authentication' then
            insert into esl.store_pauses as s (store_code, until, reason)
            values (v_store, v_now + make_interval(secs => (p ->> 'pause_seconds')::float8), p ->> 'message')
            on conflict (store_code) do update set until = excluded.until, reason = excluded.reason;
        end if;
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

-- {label_server?} -> {due, inbox, variants, queue, outage, drain, shops}: what the sensor asks. due: a drain run would
-- find work now. outage: {since, probe_at, reason} while the label server is down.
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
            not esl.is_down(p ->> 'label_server') and exists (select from esl.pushable) as queue
    )
    select jsonb_build_object(
        'due', f.inbox or f.variants or f.queue, 'inbox', f.inbox, 'variants', f.variants, 'queue', f.queue,
        'outage', (select jsonb_build_object('since', down_since, 'probe_at', probe_at, 'reason', last_error)
                   from esl.label_servers where server = p ->> 'label_server' and down_since is not null),
        'drain', (select jsonb_build_object('holder', holder, 'until', until) from esl.leases
                  where name = 'event_sync' and until > clock_timestamp()),
        'shops', (select coalesce(jsonb_agg(jsonb_build_object(
                      'source_system', source_system, 'source_store_id', source_store_id)
                      order by source_system, source_store_id), '[]') from mapped))
    from found f
$$;
