-- Leases: what one holder at a time may do, and how it is handed over without a gap.

-- {name, holder, seconds, relieve_in?, build?} -> {held, holder, until, successor_is_ready}: takes or renews; refused
-- while another holder's runs. relieve_in: in so many seconds the holder wants a successor. build: of its code.
create or replace function public.esl_lease_take(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_now  timestamptz := clock_timestamp();
    v_held boolean;
begin
    insert into esl.leases as l (name, holder, until, relieve_at, build)
    values (p ->> 'name', p ->> 'holder', v_now + make_interval(secs => (p ->> 'seconds')::float8),
            v_now + make_interval(secs => (p ->> 'relieve_in')::float8), (p ->> 'build')::int)
    on conflict (name) do update
    set holder = excluded.holder, until = excluded.until, relieve_at = excluded.relieve_at,
        build = excluded.build, successor = case when l.successor <> excluded.holder then l.successor end
    where l.holder = excluded.holder or l.until < v_now;
    v_held := found;
    return (select jsonb_build_object('held', v_held, 'holder', l.holder, 'until', l.until,
                                      'successor_is_ready', esl.has_successor(l) and l.successor_is_ready)
            from esl.leases l where l.name = p ->> 'name');
end $$;

-- Whether somebody waits for a lease, or was started to.
create or replace function esl.has_successor(l esl.leases) returns boolean
language sql stable set search_path = '' as $$
    select l.successor is not null and l.successor_until > clock_timestamp()
$$;

-- Whether the holder of a lease wants a successor, or is of older code than this build, and has none.
create or replace function esl.wants_relief(l esl.leases, p_build int) returns boolean
language sql stable set search_path = '' as $$
    select (coalesce(l.relieve_at <= clock_timestamp(), false) or coalesce(l.build < p_build, false))
       and not esl.has_successor(l)
$$;

-- {name, holder, seconds, ready} -> {held, waits}: takes a lease that is free, or is only kept for a holder that has
-- not started (that one named no build yet); else waits so long to be its next holder (ready: there to take over at
-- once), unless somebody else does.
create or replace function public.esl_lease_await(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_held boolean;
begin
    if (p ->> 'ready')::boolean then
        delete from esl.leases where name = p ->> 'name' and holder <> p ->> 'holder' and build is null;
    end if;
    v_held := (public.esl_lease_take(p) ->> 'held')::boolean;
    if not v_held then
        update esl.leases l
        set successor = p ->> 'holder', successor_is_ready = (p ->> 'ready')::boolean,
            successor_until = clock_timestamp() + make_interval(secs => (p ->> 'seconds')::float8)
        where l.name = p ->> 'name' and (l.successor = p ->> 'holder' or not esl.has_successor(l));
    end if;
    return jsonb_build_object('held', v_held, 'waits', not v_held and found);
end $$;

-- {name, holder, seconds} -> {released}: gives a lease back, to the successor that is ready for it.
create or replace function public.esl_lease_release(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare v_released boolean;
begin
    update esl.leases l
    set holder = l.successor, successor = null, relieve_at = null,
        until = clock_timestamp() + make_interval(secs => (p ->> 'seconds')::float8)
    where l.name = p ->> 'name' and l.holder = p ->> 'holder' and l.successor_is_ready and esl.has_successor(l);
    v_released := found;
    if not v_released then
        delete from esl.leases where name = p ->> 'name' and holder = p ->> 'holder';
        v_released := found;
    end if;
    return jsonb_build_object('released', v_released);
end $$;
