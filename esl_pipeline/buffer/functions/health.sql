-- What passes and what does not: label servers that are down, stores in doubt, and whose fault a refusal is.

-- Whether nothing is known to pass at a store: after three refused calls in a row, or a pause, one label is tried.
create or replace function esl.is_doubted(h esl.store_health) returns boolean
language sql immutable set search_path = '' as $$
    select h.refusals >= 3 or h.pauses > 0
$$;

-- Whether nothing may be pushed to a label server now, not even to try.
create or replace function esl.is_down(p_server text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.label_servers where server = p_server and probe_at > clock_timestamp())
$$;

-- Whether this worker may try a label server that is down; it keeps the others from it until its lease is over.
create or replace function esl.take_probe(p_server text, p_until timestamptz) returns boolean
language plpgsql volatile set search_path = '' as $$
begin
    update esl.label_servers set probe_at = p_until where server = p_server and probe_at <= clock_timestamp();
    return found;
end $$;

-- There was nothing to try it with.
create or replace function esl.give_probe_back(p_server text) returns void
language sql volatile set search_path = '' as $$
    update esl.label_servers set probe_at = clock_timestamp() where server = p_server
$$;

-- Seconds until the next try after so many in a row: growing to p_most, and not the same for all who wait.
create or replace function esl.backoff(p_first float8, p_multiplier float8, p_most float8, p_tries int) returns float8
language sql volatile set search_path = '' as $$
    select (0.75 + random() / 2) * least(p_most, p_first * power(p_multiplier, least(p_tries, 60)))
$$;

-- How long a label waits that was not accepted (p: as for esl_push_finish): what the server asks for, at least, and for
-- refusals longer than for failures.
create or replace function esl.pause_before(p jsonb, q esl.sync_queue, p_counts boolean) returns interval
language sql volatile set search_path = '' as $$
    select make_interval(secs => greatest(
        coalesce((p ->> 'retry_after_seconds')::float8, 0),
        case when esl.is_refusal(p ->> 'outcome') then esl.backoff(
                 (p ->> 'refused_delay_seconds')::float8, (p ->> 'refused_multiplier')::float8,
                 (p ->> 'max_refused_delay_seconds')::float8, case when p_counts then q.refusals else 0 end)
             else esl.backoff((p ->> 'initial_delay_seconds')::float8, (p ->> 'multiplier')::float8,
                 (p ->> 'max_delay_seconds')::float8, q.attempts - 1) end))
$$;

-- Whether an outcome is a no, or refused credentials.
create or replace function esl.is_refusal(p_outcome text) returns boolean
language sql immutable set search_path = '' as $$
    select p_outcome in ('rejected', 'authentication')
$$;

-- A store has accepted something: nothing is held against it any more.
create or replace function esl.note_passing(p_store text) returns void
language sql volatile set search_path = '' as $$
    insert into esl.store_health (store_code, accepted_at) values (p_store, clock_timestamp())
    on conflict (store_code) do update
    set accepted_at = excluded.accepted_at, refusals = 0, refused_at = null, pauses = 0, until = null, reason = null
$$;

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
            probe_at = v_now + make_interval(secs => greatest(v_asked, esl.backoff(
                (p ->> 'probe_seconds')::float8, 2, (p ->> 'max_probe_seconds')::float8,
                greatest(failures - (p ->> 'down_after')::int, 0))))
        where server = p ->> 'label_server'
          and (down_since is not null or failures >= (p ->> 'down_after')::int or v_asked > 0)
        returning probe_at into v_probe;
    elsif not (p ->> 'server_failed')::boolean then
        update esl.label_servers set failures = 0, down_since = null, probe_at = null, last_error = null
        where server = p ->> 'label_server' and failures > 0;
    end if;
    return v_probe;
end $$;

-- Whose fault a refusal is, told of one call as esl_push_finish is: 'label', 'store' or 'server'.
-- Blame needs evidence: it is the label's when it was alone and its neighbours pass, which means that the store
-- accepted something since the label was refused first, or before, and little was refused since; the server's when
-- several stores of it are refused and nothing passes; else the store's. A store that passes nothing is paused with the
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
    where esl.server_of(x.store_code) = esl.server_of(v_store)
      and (x.refused_at > coalesce((select max(a.accepted_at) from esl.store_health a
                                    where esl.server_of(a.store_code) = esl.server_of(v_store)), '-infinity')
           or (x.store_code = v_store and h.pauses = 0));
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
                (p ->> 'max_pause_seconds')::float8,
                (p ->> 'pause_seconds')::float8 * power(2, least(h.pauses, 60))))
        where store_code = v_store;
    end if;
    return case when v_label then 'label' when v_server then 'server' else 'store' end;
end $$;
