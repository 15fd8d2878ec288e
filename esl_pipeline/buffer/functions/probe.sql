-- The probe: a label that somebody dedicates to it tells what its label server does: whether it refreshes labels by
-- itself, whether a label's row moves when the label does, and how long that takes (stages/probe.py).

-- Whether a product is a probe's: nobody's variant may have such a code, and whatever compares, counts or removes
-- leaves it alone. Whatever the case: a server may change that.
create or replace function esl.is_reserved(p_code text) returns boolean
language sql immutable as $$  -- inlined
    select coalesce(starts_with(upper(p_code), 'ESLPROBE'), false)
$$;

-- The code of the product that a probe label shows.
create or replace function esl.probe_code(p_esl text) returns text
language sql immutable set search_path = '' as $$
    select 'ESLPROBE-' || left(regexp_replace(p_esl, '[^0-9A-Za-z._-]', '', 'g'), 23)
$$;

-- {probe_id, store, esl_code, by, run_id?, seconds, label_server?}
-- -> {outcome, code, rows_move, auto_triggers, error?}: a probe of the store has begun and takes so long at most
-- (outcome open; the same probe_id again returns the same), or why it has not: busy, elsewhere, not_known, down.
-- rows_move, auto_triggers: what is known of the label server so far.
create or replace function public.esl_probe_begin(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare
    v_store text := p ->> 'store'; v_server text := esl.server_in(p);
    v_why jsonb; d esl.probes; s esl.label_servers;
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.probes ' || v_store, 0));
    select * into d from esl.probes where id = (p ->> 'probe_id')::uuid;
    if not found then
        v_why := coalesce(esl.why_no_pass(v_store, v_server), (
            select jsonb_build_object('outcome', 'busy', 'error', format('%s probes the store since %s', o.by,
                                      to_char(o.started_at at time zone 'UTC', 'HH24:MI"Z"')))
            from esl.probes o
            where o.store_code = v_store and o.outcome = 'open' and o.until > clock_timestamp() limit 1));
        if v_why is not null then
            return v_why;
        end if;
        update esl.probes set outcome = 'failed', finished_at = clock_timestamp(), reason = 'it was not ended'
        where store_code = v_store and outcome = 'open';
        insert into esl.probes (id, store_code, label_server, esl_code, code, by, run_id, until)
        values ((p ->> 'probe_id')::uuid, v_store, v_server, p ->> 'esl_code', esl.probe_code(p ->> 'esl_code'),
                p ->> 'by', p ->> 'run_id', clock_timestamp() + make_interval(secs => (p ->> 'seconds')::float8))
        returning * into d;
    end if;
    select * into s from esl.label_servers where server = v_server;
    return jsonb_build_object('outcome', 'open', 'code', d.code, 'rows_move', s.rows_move,
                              'auto_triggers', s.auto_triggers);
end $$;

-- {store, since?} -> {at, triggered}: the time here, and whether anybody of ours may have triggered the store since.
create or replace function public.esl_probe_clock(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('at', clock_timestamp(), 'triggered',
        exists (select from esl.refreshes r where r.store_code = p ->> 'store'
                and r.at >= (p ->> 'since')::timestamptz)
        or exists (select from esl.refresh_marks k where k.store_code = p ->> 'store' and k.lease_until is not null))
$$;

-- Whether a label server's rows are known to move, once a probe of it has ended. A label that was refreshed late, or
-- not at all, is no proof that rows do not move: three in a row are, or one probe that tried all.
create or replace function esl.rows_move_after(p_known boolean, d esl.probes) returns boolean
language sql stable set search_path = '' as $$
    select case d.outcome
        when 'moves' then true
        when 'itself' then false
        when 'silent' then case
            when d.is_full or p_known is null or not exists (
                select from (select o.outcome from esl.probes o
                             where o.label_server = d.label_server and o.finished_at is not null
                               and o.outcome <> 'failed' order by o.finished_at desc limit 3) l
                where l.outcome <> 'silent') then false
            else p_known end
        else p_known end
$$;

-- {probe_id, outcome, is_full, rounds, auto_triggers?, seconds?, reason?} -> {rows_move, auto_triggers, seconds}: the
-- probe has ended, and this is known of its label server.
create or replace function public.esl_probe_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare d esl.probes; s esl.label_servers;
begin
    update esl.probes
    set outcome = p ->> 'outcome', is_full = (p ->> 'is_full')::boolean, rounds = (p ->> 'rounds')::int,
        auto_triggers = (p ->> 'auto_triggers')::boolean, seconds = (p ->> 'seconds')::numeric,
        reason = p ->> 'reason', finished_at = clock_timestamp()
    where id = (p ->> 'probe_id')::uuid and outcome = 'open' returning * into d;
    if found and d.outcome <> 'failed' then
        insert into esl.label_servers (server) values (d.label_server) on conflict do nothing;
        update esl.label_servers l
        set rows_move = esl.rows_move_after(l.rows_move, d), auto_triggers = coalesce(d.auto_triggers, l.auto_triggers),
            probe_seconds = case when esl.rows_move_after(l.rows_move, d) then coalesce(d.seconds, l.probe_seconds) end,
            probed_at = d.finished_at
        where l.server = d.label_server;
    end if;
    select l.* into s from esl.probes o join esl.label_servers l on l.server = o.label_server
    where o.id = (p ->> 'probe_id')::uuid;
    return jsonb_build_object('rows_move', s.rows_move, 'auto_triggers', s.auto_triggers, 'seconds', s.probe_seconds);
end $$;

-- {label_servers} -> {stores: [{store_code, label_server, esl_code}]}: the stores of live mappings at these servers
-- whose policy dedicates a label to probes, as far as their labels can be read now.
create or replace function public.esl_probe_stores(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('stores', coalesce(jsonb_agg(to_jsonb(t) order by t.store_code), '[]')) from (
        select m.hipoink_store_code as store_code, esl.server_of(m.hipoink_store_code) as label_server,
               min(esl.policy_text(m.settings, 'probe_label')) as esl_code
        from esl.store_mappings m where m.is_active and not m.is_dry_run group by 1) t
    where t.esl_code is not null and p -> 'label_servers' ? t.label_server
      and esl.why_no_pass(t.store_code, t.label_server) is null and not esl.store_is_paused(t.store_code)
$$;

-- {} -> {stores: [{store_code, label_server, labels, bound, online, read_at, failed, probe}]}: how the physical labels
-- of each active store were read last (failed: why not, the last time), and the newest probe of it that has ended.
create or replace function public.esl_shelf_state(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('stores', coalesce(jsonb_agg(jsonb_build_object(
               'store_code', k.store_code, 'label_server', esl.server_of(k.store_code), 'labels', d.labels,
               'bound', d.bound, 'online', d.online, 'read_at', (esl.complete_pass(k.store_code)).started_at,
               'failed', f.error, 'probe', b.probe) order by k.store_code), '[]'))
    from (select distinct m.hipoink_store_code as store_code from esl.store_mappings m where m.is_active) k
    left join lateral (
        select count(*) as labels, count(o.product_code) as bound, count(*) filter (where o.online) as online
        from esl.devices o where o.store_code = k.store_code and o.gone_at is null) d on true
    left join lateral (
        select case when o.state = 'failed' then o.error end as error from esl.device_passes o
        where o.store_code = k.store_code and o.state <> 'open' order by o.started_at desc limit 1) f on true
    left join lateral (
        select jsonb_build_object('esl_code', o.esl_code, 'outcome', o.outcome, 'reason', o.reason,
                                  'at', o.finished_at) as probe
        from esl.probes o where o.store_code = k.store_code and o.finished_at is not null
        order by o.finished_at desc limit 1) b on true
$$;
