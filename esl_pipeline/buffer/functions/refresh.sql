-- The refresh trigger: what the label server has accepted reaches the physical labels of a store after esl/bind_task.
-- Level-triggered as everything here: the mark of a store says that something was accepted since its last trigger was
-- begun; whoever works next makes one call for all of it. Nothing here holds up or fails a label.

-- Something was accepted for this store, with prices that rise or without: in the transaction that says so, so that no
-- crash comes between.
create or replace function esl.want_refresh(p_store text, p_rises boolean default false) returns void
language sql volatile set search_path = '' as $$
    insert into esl.refresh_marks as r (store_code, since, rise_since)
    values (p_store, clock_timestamp(), case when p_rises then clock_timestamp() end)
    on conflict (store_code) do update
    set since = coalesce(r.since, excluded.since), rise_since = coalesce(r.rise_since, excluded.rise_since),
        next_at = r.not_before
    where r.since is null or r.next_at > r.not_before or (r.rise_since is null and excluded.rise_since is not null)
$$;

-- How long after its begin a burst is refreshed at the latest, by the strictest policy of a store.
create or replace function esl.refresh_seconds(p_store text) returns int
language sql stable set search_path = '' as $$
    select coalesce(min(esl.policy_number(m.settings, 'refresh_seconds')),
                    esl.policy_number('{}', 'refresh_seconds'))
    from esl.store_mappings m
    where m.hipoink_store_code = p_store and m.is_active and not m.is_dry_run
$$;

-- Whether the trigger of a mark waits for no more labels of its burst: none can be pushed now, or it has waited long
-- enough. Whoever asks more at the till than the label says has less time: p_rise_seconds.
create or replace function esl.has_settled(r esl.refresh_marks, p_rise_seconds float8) returns boolean
language sql volatile set search_path = '' as $$
    select coalesce(r.claimed_since, r.since)
               <= clock_timestamp() - make_interval(secs => esl.refresh_seconds(r.store_code))
        or coalesce(coalesce(r.claimed_rise_since, r.rise_since)
               <= clock_timestamp() - make_interval(secs => p_rise_seconds), false)
        or not esl.has_push(r.store_code)
$$;

-- Whether one of the live mappings of a store wants its labels refreshed; or what they have left there, when none names
-- the store any more.
create or replace function esl.wants_refresh(p_store text) returns boolean
language sql stable set search_path = '' as $$
    select coalesce(bool_or((m.is_active or m.leaving is not null) and not m.is_dry_run
                            and esl.policy_text(m.settings, 'refresh') <> 'never'), true)
    from esl.store_mappings m where m.hipoink_store_code = p_store and m.removed_at is null
$$;

-- The marks that a trigger may be begun for now at a label server, also those whose worker was not heard of again.
create or replace function esl.refreshable(p_server text) returns setof esl.refresh_marks
language sql stable set search_path = '' as $$
    select r.* from esl.refresh_marks r
    where case when r.lease_until is null then r.since is not null and r.next_at <= clock_timestamp()
               else r.lease_until < clock_timestamp() end
      and esl.server_of(r.store_code) = p_server
      and esl.wants_refresh(r.store_code)
      and not esl.store_is_paused(r.store_code)
      and not esl.is_down(p_server)
      and not exists (select from esl.label_servers s
                      where s.server = p_server and s.refresh_again_at > clock_timestamp())
$$;

-- Whether a store has as many pushes under way as it may have calls beside others: all but one of `concurrency`, where
-- that is said.
create or replace function esl.has_enough_calls(p jsonb, p_store text) returns boolean
language sql stable set search_path = '' as $$
    select p ->> 'concurrency' is not null and esl.has_company(p_store)
       and (select count(*) from esl.flights f where f.store_code = p_store and f.until > now())
           >= greatest(1, (p ->> 'concurrency')::int - 1)
$$;

-- {claim_id, run_id, lease_seconds, rise_seconds, concurrency?, label_server?, shop?} -> {store_code} (null: nothing is
-- due).
-- One store at a time, first those with prices that rise, then whose labels have waited longest: when its burst has
-- settled (see esl.has_settled), so that a burst is one trigger. With a shop: of the stores that it feeds.
-- The same claim_id again returns the same store.
create or replace function public.esl_refresh_claim(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_claim uuid := (p ->> 'claim_id')::uuid;
    v_now   timestamptz := clock_timestamp();
    v_store text;
    r       esl.refresh_marks;
begin
    select store_code into v_store from esl.refresh_marks where claim_id = v_claim;
    if found then
        return jsonb_build_object('store_code', v_store);
    end if;
    for r in
        select c.* from esl.refreshable(esl.server_in(p)) c
        where p -> 'shop' is null or exists (
            select from esl.store_mappings m where m.hipoink_store_code = c.store_code
              and (m.source_system, m.source_store_id) = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
        order by coalesce(c.claimed_rise_since, c.rise_since) nulls last, coalesce(c.claimed_since, c.since),
                 c.store_code
    loop
        continue when not esl.has_settled(r, (p ->> 'rise_seconds')::float8) or esl.has_enough_calls(p, r.store_code);
        -- Chosen without a lock: somebody else may have been faster.
        select * into r from esl.refresh_marks m
        where m.store_code = r.store_code and (m.lease_until < v_now or (m.lease_until is null and m.since is not null))
        for update;
        continue when not found;
        if r.lease_until is not null then
            insert into esl.refreshes (claim_id, store_code, wanted_since, begun_at, run_id, outcome, message)
            values (r.claim_id, r.store_code, r.claimed_since, r.claimed_at, r.run_id, 'lost',
                    'the run ended before the answer of the label server was recorded');
        end if;
        update esl.refresh_marks
        set claim_id = v_claim, run_id = p ->> 'run_id', claimed_at = v_now, since = null, rise_since = null,
            claimed_since = coalesce(r.claimed_since, r.since),
            claimed_rise_since = coalesce(r.claimed_rise_since, r.rise_since),
            lease_until = v_now + make_interval(secs => (p ->> 'lease_seconds')::float8)
        where store_code = r.store_code;
        return jsonb_build_object('store_code', r.store_code);
    end loop;
    return jsonb_build_object('store_code', null);
end $$;

-- What one answer says of the label server: one that has never accepted a trigger and says that there is no such action
-- is asked again after a minute, an hour, and then once a day.
create or replace function esl.note_refresh(p jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    if p ->> 'label_server' is null then
        return;
    elsif p ->> 'outcome' = 'accepted' then
        insert into esl.label_servers as s (server, knows_refresh_since)
        select p ->> 'label_server', clock_timestamp()
        where not exists (select from esl.label_servers x where x.server = p ->> 'label_server'
                          and x.knows_refresh_since is not null and x.refresh_refusals = 0)
        on conflict (server) do update
        set knows_refresh_since = coalesce(s.knows_refresh_since, excluded.knows_refresh_since), refresh_refusals = 0,
            refresh_again_at = null;
    elsif p ->> 'outcome' = 'not_known' then
        insert into esl.label_servers as s (server) values (p ->> 'label_server') on conflict (server) do nothing;
        update esl.label_servers
        set refresh_refusals = refresh_refusals + 1,
            refresh_again_at = clock_timestamp()
                + least(interval '1 day', interval '1 minute' * power(60, least(refresh_refusals, 9)))
        where server = p ->> 'label_server' and knows_refresh_since is null;
    end if;
end $$;

-- {claim_id, store_code, run_id, outcome, http_status, error_code, message, answer, duration_ms, retry_after_seconds,
--  gap_seconds, initial_delay_seconds, multiplier, max_delay_seconds, label_server?}
-- -> {more}: whether another trigger may be begun now.
-- accepted: the mark goes, unless something was accepted since the trigger was begun. Else it stays, and is tried again
-- with growing delays, or with the next burst. A worker that is late changes nothing: its trigger was one too many.
create or replace function public.esl_refresh_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_claim uuid := (p ->> 'claim_id')::uuid;
    v_now   timestamptz := clock_timestamp();
    v_gap   timestamptz := v_now + make_interval(secs => greatest(
        (p ->> 'gap_seconds')::float8, coalesce((p ->> 'retry_after_seconds')::float8, 0)));
    r       esl.refresh_marks;
begin
    -- Before the mark, as whoever finishes a push does.
    perform from esl.label_servers s
    where s.server = p ->> 'label_server' and (s.knows_refresh_since is null or s.refresh_refusals > 0) for update;
    select * into r from esl.refresh_marks where store_code = p ->> 'store_code' and claim_id = v_claim for update;
    insert into esl.refreshes (claim_id, store_code, wanted_since, begun_at, run_id, outcome, http_status, error_code,
                               message, answer, duration_ms)
    values (v_claim, p ->> 'store_code', r.claimed_since,
            coalesce(r.claimed_at, v_now - make_interval(secs => (p ->> 'duration_ms')::float8 / 1000)),
            p ->> 'run_id', p ->> 'outcome', (p ->> 'http_status')::int, (p ->> 'error_code')::numeric,
            p ->> 'message', p ->> 'answer', (p ->> 'duration_ms')::int)
    on conflict (claim_id) where outcome <> 'lost' do nothing;
    if found then  -- else a repeated call, whose first answer was lost
        perform esl.note_refresh(p);
        if p ->> 'outcome' = 'accepted' then
            update esl.refresh_marks
            set not_before = v_gap, next_at = v_gap, attempts = 0, last_error = null,
                claim_id = null, claimed_at = null, claimed_since = null, claimed_rise_since = null, lease_until = null
            where store_code = r.store_code;
        else
            update esl.refresh_marks
            set not_before = v_gap, attempts = attempts + 1, last_error = p ->> 'message',
                next_at = greatest(v_gap, v_now + make_interval(secs => esl.backoff(
                    (p ->> 'initial_delay_seconds')::float8, (p ->> 'multiplier')::float8,
                    (p ->> 'max_delay_seconds')::float8, attempts))),
                since = claimed_since, rise_since = coalesce(claimed_rise_since, rise_since), claim_id = null,
                claimed_at = null, claimed_since = null, claimed_rise_since = null, lease_until = null
            where store_code = r.store_code;
        end if;
    end if;
    delete from esl.calls where recorded_as = v_claim;
    return jsonb_build_object('more', exists (select from esl.refreshable(esl.server_in(p))));
end $$;

-- For esl_status: {waiting: [stores whose labels wait for their trigger], unknown: [label servers without the action]}.
create or replace function esl.refresh_state() returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'waiting', (select coalesce(jsonb_agg(jsonb_build_object(
                        'store_code', r.store_code, 'since', coalesce(r.claimed_since, r.since), 'attempts', r.attempts,
                        'next_at', r.next_at, 'last_error', r.last_error) order by r.store_code), '[]')
                    from esl.refresh_marks r
                    where (r.since is not null or r.lease_until is not null) and esl.wants_refresh(r.store_code)),
        'unknown', (select coalesce(jsonb_agg(jsonb_build_object('server', s.server, 'again_at', s.refresh_again_at)
                                              order by s.server), '[]')
                    from esl.label_servers s where s.refresh_again_at is not null))
$$;

-- For esl_trace: {wanted, waiting, triggered}: whether a store is triggered, the mark where it stands, and the first
-- trigger that was accepted after this time.
create or replace function esl.refresh_after(p_store text, p_at timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'wanted', esl.wants_refresh(p_store),
        'waiting', (select jsonb_build_object('since', coalesce(r.claimed_since, r.since), 'attempts', r.attempts,
                                              'next_at', r.next_at, 'last_error', r.last_error)
                    from esl.refresh_marks r
                    where r.store_code = p_store and (r.since is not null or r.lease_until is not null)),
        'triggered', (select to_jsonb(t) from (
                          select x.at, x.begun_at, x.run_id, x.answer, x.duration_ms from esl.refreshes x
                          where x.store_code = p_store and x.outcome = 'accepted' and x.begun_at >= p_at
                          order by x.begun_at limit 1) t))
$$;
