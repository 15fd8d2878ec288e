-- Calls at a label server: how many at a time and how fast, over all runs, and which batches are under way.

-- Whether a call of the background ({background: {share, patient}}, and as for esl_rate_take) has to wait, without a
-- place in line: for its share of the pace, for another one, and while it is patient for whoever pushes prices: it
-- needs the pace free, and leaves a call free beside it.
create or replace function esl.must_yield(p jsonb) returns boolean
language sql stable set search_path = '' as $$
    select not exists (select from esl.calls o where o.call_id = (p ->> 'call_id')::uuid)
       and (coalesce(s.background_at > clock_timestamp(), false)
            or exists (select from esl.calls c where c.server = s.server and c.is_background)
            or ((p #>> '{background,patient}')::boolean
                and (coalesce(s.next_slot > clock_timestamp(), false)
                     or (select count(*) from esl.calls c where c.server = s.server)
                        >= greatest(1, (p ->> 'concurrency')::int - 1))))
    from esl.label_servers s where s.server = p ->> 'server'
$$;

-- {server, rate_per_second, concurrency, call_id, recorded_as?, background?, ended?, seconds} -> {wait_seconds,
-- is_next}: a call of a label server may begin in so many seconds, for at most `seconds`; null: as many as may be are
-- in flight or asked earlier, ask again, soon if it is the next one. Whoever does not ask again for some seconds loses
-- its place. ended: calls that are over.
create or replace function public.esl_rate_take(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_server text := p ->> 'server';
    v_call   uuid := (p ->> 'call_id')::uuid;
    v_step   interval := make_interval(secs => 1 / (p ->> 'rate_per_second')::float8);
    v_asked  timestamptz;
    v_before bigint;
    v_slot   timestamptz;
begin
    insert into esl.label_servers (server) values (v_server) on conflict do nothing;
    perform from esl.label_servers where server = v_server for update;

    perform public.esl_rate_give(p);
    delete from esl.calls where server = v_server and until < clock_timestamp();
    if p -> 'background' is not null and esl.must_yield(p) then
        return '{"wait_seconds": null, "is_next": false}';
    end if;
    insert into esl.calls as c (call_id, recorded_as, server, asked_at, until, is_background)
    values (v_call, (p ->> 'recorded_as')::uuid, v_server, clock_timestamp(), clock_timestamp() + interval '5 seconds',
            p -> 'background' is not null)
    on conflict (call_id) do update set until = excluded.until
    returning c.asked_at into v_asked;
    select count(*) into v_before from esl.calls c
    where c.server = v_server and (c.asked_at, c.call_id) < (v_asked, v_call);
    if v_before >= (p ->> 'concurrency')::int then
        return jsonb_build_object('wait_seconds', null, 'is_next', v_before = (p ->> 'concurrency')::int);
    end if;

    update esl.label_servers
    set next_slot = greatest(next_slot, clock_timestamp()) + v_step,
        background_at = case when p -> 'background' is null then background_at
            else greatest(next_slot, clock_timestamp()) + v_step / (p #>> '{background,share}')::float8 end
    where server = v_server returning next_slot - v_step into v_slot;
    update esl.calls set until = v_slot + make_interval(secs => (p ->> 'seconds')::float8) where call_id = v_call;
    update esl.flights set begun_at = v_slot where push_id = (p ->> 'recorded_as')::uuid and begun_at is null;
    return jsonb_build_object('wait_seconds', greatest(0, extract(epoch from v_slot - clock_timestamp())::float8),
                              'is_next', true);
end $$;

-- {ended?} -> {}: these calls are over.
create or replace function public.esl_rate_give(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    delete from esl.calls where call_id in (
        select e.id::uuid from jsonb_array_elements_text(coalesce(p -> 'ended', '[]')) as e (id));
    return '{}';
end $$;

-- Whether other stores of its label server have had a turn lately: then one keeps a call free for them.
create or replace function esl.has_company(p_store text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.turns t join esl.store_mappings m on m.id::text = t.party
                   where t.queue = 'push' and t.taken_at > now() - interval '30 seconds'
                     and m.hipoink_store_code <> p_store
                     and esl.server_of(m.hipoink_store_code) = esl.server_of(p_store))
$$;

-- What is under way of a store keeps it from another batch, and how much. p: as for esl_push_claim; without concurrency
-- nothing does.
--   2  none now: a call of it takes longer than a second and than four usual ones, or its last one got no answer; or
--      enough of its batches wait for their calls; or it has as many as it may beside others: all calls but one
--   1  only after the others, because it has that many, or one that waits
create or replace function esl.crowded(p jsonb) returns table (store_code text, degree int)
language plpgsql stable set search_path = '' as $$
declare v_calls int := (p ->> 'concurrency')::int;
begin
    return query
        with under_way as (
            select f.store_code, count(*) >= greatest(1, v_calls - 1) as is_many,
                   count(*) filter (where coalesce(f.begun_at > clock_timestamp(), true)) as waiting,
                   bool_or(coalesce(h.unanswered, false)) or bool_or(coalesce(
                       clock_timestamp() - f.begun_at
                       > make_interval(secs => greatest(1, 4 * coalesce(h.usual_ms, 0) / 1000)), false)) as hangs
            from (select x.store_code, x.begun_at from esl.flights x
                  where x.label_server = esl.server_in(p) and x.until > now()
                  union all  -- a trigger is a call as well, though no sign of a slow one
                  select r.store_code, clock_timestamp() from esl.refresh_marks r
                  where r.lease_until > now() and esl.server_of(r.store_code) = esl.server_in(p)) f
            left join esl.store_health h on h.store_code = f.store_code
            where v_calls is not null
            group by f.store_code
        )
        select u.store_code, case
            when u.hangs or u.waiting >= greatest(1, v_calls / 2)
                 or (u.is_many and esl.has_company(u.store_code)) then 2
            when u.is_many or u.waiting > 0 then 1
            else 0 end
        from under_way u;
end $$;

-- How long the pace of a label server keeps back a claim for the next call; none where it may be made now.
create or replace function esl.until_next_call(p_server text) returns interval
language sql volatile set search_path = '' as $$
    select s.next_slot - interval '20 milliseconds' - clock_timestamp() from esl.label_servers s
    where s.server = p_server and s.next_slot > clock_timestamp() + interval '20 milliseconds'
$$;

-- The fewest labels that are worth a batch of a store now: one, or as many as a call takes (p_full) where the batch
-- would wait for its call to begin, for until then more may come. p: as for esl_push_claim.
create or replace function esl.fewest_labels(p jsonb, p_store text, p_full int) returns int
language sql volatile set search_path = '' as $$
    select case when count(*) filter (where f.run_id = p ->> 'run_id') >= (p ->> 'concurrency')::int
                  or bool_or(f.store_code = p_store and coalesce(f.begun_at > clock_timestamp(), true))
                  or (p ->> 'concurrency' is not null and esl.until_next_call(esl.server_in(p)) is not null)
                then p_full else 1 end
    from esl.flights f
    where f.label_server = esl.server_in(p) and f.until > now() and p ->> 'concurrency' is not null
$$;
