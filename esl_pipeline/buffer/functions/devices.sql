-- Physical labels: a store's are read in passes, page by page. A page is merged where it differs and noted; the end of
-- a complete pass concludes. Whoever asks what a store has asks its newest complete pass (esl.complete_pass).

-- The newest complete pass of a store at the server where it is now; null: none.
create or replace function esl.complete_pass(p_store text) returns esl.device_passes
language sql stable set search_path = '' as $$
    select d from esl.device_passes d
    where d.store_code = p_store and d.state = 'complete' and d.label_server = esl.server_of(p_store)
    order by d.started_at desc limit 1
$$;

-- When a label was seen last: by the newest complete pass of its store, or the one that wrote its row.
create or replace function esl.device_seen_at(d esl.devices) returns timestamptz
language sql stable set search_path = '' as $$
    select case when d.gone_at is null then greatest(d.last_seen_at, (esl.complete_pass(d.store_code)).started_at)
                else d.last_seen_at end
$$;

-- Why the labels of a store are not read now, or null: {outcome, error, again_at}.
create or replace function esl.why_no_pass(p_store text, p_server text) returns jsonb
language sql stable set search_path = '' as $$
    select case
        when esl.server_of(p_store) <> p_server then
            jsonb_build_object('outcome', 'elsewhere',
                               'error', format('the store is at label server %s', esl.server_of(p_store)))
        when not s.knows_devices and s.devices_again_at > clock_timestamp() then
            jsonb_build_object('outcome', 'not_known', 'error', 'the label server does not know the actions for labels',
                               'again_at', s.devices_again_at)
        when esl.is_down(p_server) then
            jsonb_build_object('outcome', 'down', 'error', 'the label server is down', 'again_at', s.probe_at) end
    from (select p_server as server) n left join esl.label_servers s on s.server = n.server
$$;

-- {pass_id, store, run_id, label_server?, since?} -> {outcome, started_at, zone?, error?, again_at?}
--   open       the pass has begun; the same pass_id again returns the same
--   read       a complete pass that began at `since` or later has read the store: nothing to do
--   busy       somebody else reads it
--   elsewhere, not_known, down   it is not read now
-- A pass that was not heard of for two minutes has died: it concludes nothing any more.
create or replace function public.esl_device_pass_begin(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
declare
    v_store text := p ->> 'store'; v_id uuid := (p ->> 'pass_id')::uuid; v_server text := esl.server_in(p);
    v_why jsonb; d esl.device_passes;
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.device_passes ' || v_store, 0));
    select * into d from esl.device_passes where id = v_id;
    if not found then
        v_why := esl.why_no_pass(v_store, v_server);
        if v_why is not null then
            return v_why;
        end if;
        d := esl.complete_pass(v_store);
        if d.started_at >= (p ->> 'since')::timestamptz then
            return jsonb_build_object('outcome', 'read', 'started_at', d.started_at);
        end if;
        select * into d from esl.device_passes o
        where o.store_code = v_store and o.state = 'open' and o.noted_at > clock_timestamp() - interval '2 minutes'
        limit 1;
        if found then
            return jsonb_build_object('outcome', 'busy', 'started_at', d.started_at);
        end if;
        update esl.device_passes
        set state = 'failed', finished_at = clock_timestamp(), error = 'the run ended before the pass did'
        where store_code = v_store and state = 'open';
        delete from esl.device_sightings n
        where not exists (select from esl.device_passes o where o.id = n.pass_id and o.state = 'open');
        insert into esl.device_passes (id, store_code, label_server, run_id)
        values (v_id, v_store, v_server, p ->> 'run_id') returning * into d;
    end if;
    return jsonb_build_object('outcome', 'open', 'started_at', d.started_at, 'zone',
                              (select s.zone from esl.label_servers s where s.server = v_server));
end $$;

-- What is kept of a battery's voltage: what was kept before, unless it has gone 20 mV from there.
create or replace function esl.battery_kept(p_old int, p_new int) returns int
language sql immutable as $$  -- inlined
    select case when abs(p_new - p_old) < 20 then p_old else coalesce(p_new, p_old) end
$$;

-- What is to be told of a label that differs; o: as it was, null: it is new.
create or replace function esl.device_story(o esl.devices, n esl.devices) returns table (what text, old text, new text)
language sql immutable set search_path = '' as $$
    select t.* from (values
        ('seen', o.esl_code is null, null, n.product_code),
        ('back', o.gone_at is not null, null, null),
        ('binding', o.product_code is distinct from n.product_code, o.product_code, n.product_code),
        ('model', o.model is distinct from n.model, o.model, n.model),
        ('ap', o.ap_code is distinct from n.ap_code, o.ap_code, n.ap_code),
        ('online', o.online is distinct from n.online, o.online::text, n.online::text),
        ('battery', o.battery_mv / 100 is distinct from n.battery_mv / 100, o.battery_mv::text, n.battery_mv::text)
    ) as s (what, is_so, old, new)
    cross join lateral (select s.what, s.old, s.new) t
    where s.is_so and (o.esl_code is not null or s.what = 'seen')
$$;

-- How a label's row is to be after a pass has read this of it; o: as it is, null: it is new. p_before: when the pass
-- before began.
create or replace function esl.device_as_read(o esl.devices, r esl.device_row, d esl.device_passes,
                                              p_before timestamptz) returns esl.devices
language sql immutable set search_path = '' as $$
    select d.store_code, r.esl_code, r.product_code, r.model, r.ap_code,
           esl.battery_kept(o.battery_mv, r.battery_mv), r.online, r.action, r.server_created_at, r.server_updated_at,
           r.server_updated, coalesce(o.first_seen_at, d.started_at), d.started_at,
           case when r.product_code is null then null
                when r.product_code = o.product_code and o.gone_at is null then o.bound_at
                else d.started_at end,
           case when t.has_moved then d.started_at else o.moved_at end,
           case when t.has_moved then greatest(o.last_seen_at, case when o.gone_at is null then p_before end)
                else o.moved_after end,
           null::timestamptz
    from (select o.esl_code is not null and (o.action, o.server_updated) is distinct from (r.action, r.server_updated)
                 as has_moved) t
$$;

-- Writes what differs of labels as a page has them, each once there, and what there is to tell of it; how many.
create or replace function esl.merge_devices(d esl.device_passes, p_devices jsonb) returns int
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_changed int; v_before timestamptz := (esl.complete_pass(d.store_code)).started_at;
begin
    with differing as materialized (
        select o as old, esl.device_as_read(o, r, d, v_before) as new
        from jsonb_populate_recordset(null::esl.device_row, p_devices) r
        left join esl.devices o on o.esl_code = r.esl_code and o.store_code = d.store_code
        where o.esl_code is null or o.gone_at is not null
           or (o.product_code, o.model, o.ap_code, o.online, o.action, o.server_created_at, o.server_updated_at,
               o.server_updated, o.battery_mv)
              is distinct from (r.product_code, r.model, r.ap_code, r.online, r.action, r.server_created_at,
               r.server_updated_at, r.server_updated, esl.battery_kept(o.battery_mv, r.battery_mv))
        order by r.esl_code
    ), told as (
        insert into esl.device_changes (store_code, esl_code, pass_id, what, old, new)
        select d.store_code, (c.new).esl_code, d.id, s.what, s.old, s.new
        from differing c cross join lateral esl.device_story(c.old, c.new) s
    ), written as (
        insert into esl.devices
        select (c.new).* from differing c
        on conflict (esl_code, store_code) do update
        set (product_code, model, ap_code, battery_mv, online, action, server_created_at, server_updated_at,
             server_updated, last_seen_at, bound_at, moved_at, moved_after, gone_at)
            = (excluded.product_code, excluded.model, excluded.ap_code, excluded.battery_mv, excluded.online,
               excluded.action, excluded.server_created_at, excluded.server_updated_at, excluded.server_updated,
               excluded.last_seen_at, excluded.bound_at, excluded.moved_at, excluded.moved_after, excluded.gone_at)
    )
    select count(*) into v_changed from differing;
    return v_changed;
end $$;

-- {pass_id, page, devices: [device_row], malformed} -> {open, changed}: what a page of a store's labels says, each
-- once; malformed: rows of it that name no label. Not open: somebody else has taken over, or the pass has ended.
create or replace function public.esl_device_page(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
declare d esl.device_passes; v_noted int; v_changed int;
begin
    select * into d from esl.device_passes where id = (p ->> 'pass_id')::uuid for update;
    if d.state is distinct from 'open' then
        return '{"open": false, "changed": 0}';
    end if;
    v_changed := esl.merge_devices(d, p -> 'devices');
    insert into esl.device_sightings (esl_code, pass_id)
    select r.esl_code, d.id from jsonb_populate_recordset(null::esl.device_row, p -> 'devices') r
    on conflict do nothing;
    get diagnostics v_noted = row_count;
    update esl.device_passes
    set noted_at = clock_timestamp(), devices = devices + v_noted, changed = changed + v_changed,
        malformed = malformed + case when pages < (p ->> 'page')::int then (p ->> 'malformed')::int else 0 end,
        pages = greatest(pages, (p ->> 'page')::int)
    where id = d.id;
    return jsonb_build_object('open', true, 'changed', v_changed);
end $$;

-- Labels of the store that the pass has not seen.
create or replace function esl.unseen_devices(d esl.device_passes) returns setof esl.devices
language sql stable set search_path = '' as $$
    select o.* from esl.devices o
    where o.store_code = d.store_code and o.gone_at is null
      and not exists (select from esl.device_sightings n where n.pass_id = d.id and n.esl_code = o.esl_code offset 0)
$$;

-- Whether a pass has lost so many labels that it takes another one that says so too: a server that has just started,
-- or has lost its data, has an empty list.
create or replace function esl.is_doubtful(d esl.device_passes) returns boolean
language sql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
    select coalesce(u.n > 20 and u.n > k.n / 2 and not (
        select l.doubts from esl.device_passes l where l.store_code = d.store_code and l.state in ('complete', 'failed')
          and l.id <> d.id order by l.started_at desc limit 1), false)
    from (select count(*) as n from esl.unseen_devices(d)) u,
         (select count(*) as n from esl.devices o where o.store_code = d.store_code and o.gone_at is null) k
$$;

-- Why a pass that was read to its end concludes nothing, or null.
create or replace function esl.pass_problem(d esl.device_passes) returns text
language sql stable set search_path = '' as $$
    select case
        when esl.server_of(d.store_code) <> d.label_server then 'the store has moved to another label server meanwhile'
        when d.devices <> (select count(*) from esl.device_sightings n where n.pass_id = d.id)
            then 'the database has lost what the pass had seen'
        when d.doubts then format('%s of the labels known here are not in the list of %s; it is believed when it is '
            'read so once more', (select count(*) from esl.unseen_devices(d)), d.devices) end
$$;

-- What the complete pass did not see is gone; how many.
create or replace function esl.note_gone(d esl.device_passes) returns int
language plpgsql volatile set search_path = '' as $$
declare v_gone int;
begin
    with gone as (
        update esl.devices o
        set gone_at = d.started_at, last_seen_at = esl.device_seen_at(o)
        where o.store_code = d.store_code and o.esl_code in (select u.esl_code from esl.unseen_devices(d) u)
        returning o.esl_code
    ), told as (
        insert into esl.device_changes (store_code, esl_code, pass_id, what)
        select d.store_code, g.esl_code, d.id, 'gone' from gone g order by g.esl_code
    )
    select count(*) into v_gone from gone;
    return v_gone;
end $$;

-- What a pass says of its label server; whether that is the first time that it does not know the actions for labels.
-- One that never knew them is asked again after a minute, an hour, and then once a day.
create or replace function esl.note_knowledge(d esl.device_passes, p_zone text) returns boolean
language plpgsql volatile set search_path = '' as $$
declare v_refusals int;
begin
    insert into esl.label_servers (server) values (d.label_server) on conflict do nothing;
    if d.state = 'complete' then
        update esl.label_servers
        set knows_devices = true, device_refusals = 0, devices_again_at = null, zone = coalesce(p_zone, zone)
        where server = d.label_server and (knows_devices, zone) is distinct from (true, coalesce(p_zone, zone));
    elsif d.state = 'not_known' then
        update esl.label_servers
        set knows_devices = false, device_refusals = device_refusals + 1,
            devices_again_at = clock_timestamp()
                + least(interval '1 day', interval '1 minute' * power(60, least(device_refusals, 9)))
        where server = d.label_server returning device_refusals into v_refusals;
    end if;
    return coalesce(v_refusals = 1, false);
end $$;

-- {pass_id, state: complete, failed, not_known, error?, zone?, counted_online?, counted_offline?}
-- -> {state, error, devices, changed, gone, is_news}: the pass has ended. complete: what it did not see is gone, unless
-- that is doubtful. is_news: the label server says for the first time that it knows no actions for labels; one that has
-- known them has only failed.
create or replace function public.esl_device_pass_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s'
set plan_cache_mode = force_custom_plan as $$
declare d esl.device_passes; v_is_news boolean := false;
begin
    select * into d from esl.device_passes where id = (p ->> 'pass_id')::uuid for update;
    if d.state = 'open' then
        d.state := p ->> 'state';
        d.error := p ->> 'error';
        if d.state = 'complete' then
            d.doubts := esl.is_doubtful(d);
            d.error := esl.pass_problem(d);
        end if;
        if d.error is not null and (d.state = 'complete' or (d.state = 'not_known' and exists (
                select from esl.label_servers s where s.server = d.label_server and s.knows_devices))) then
            d.state := 'failed';
        end if;
        if d.state = 'complete' then
            d.gone := esl.note_gone(d);
        end if;
        v_is_news := esl.note_knowledge(d, p ->> 'zone');
        delete from esl.device_sightings where pass_id = d.id;
        update esl.device_passes
        set state = d.state, error = d.error, doubts = d.doubts, gone = d.gone, finished_at = clock_timestamp(),
            counted_online = (p ->> 'counted_online')::int, counted_offline = (p ->> 'counted_offline')::int
        where id = d.id;
        perform esl.graces_after_pass(d.store_code);
    end if;
    return jsonb_build_object('state', d.state, 'error', d.error, 'devices', d.devices, 'changed', d.changed,
                              'gone', d.gone, 'is_news', v_is_news);
end $$;

-- {label_servers} -> {stores: [{store_code, label_server, shops: [{source_system, source_store_id}]}]}: stores of
-- active mappings at these servers whose labels can be read now. First those that a night has compared since they were
-- read last, then the one that has waited longest.
create or replace function public.esl_device_stores(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('stores', coalesce(jsonb_agg(jsonb_build_object(
               'store_code', k.store_code, 'label_server', k.server, 'shops', k.shops)
               order by coalesce(c.at > l.started_at, false) desc, l.started_at nulls first, k.store_code), '[]'))
    from (select m.hipoink_store_code as store_code, esl.server_of(m.hipoink_store_code) as server,
                 jsonb_agg(distinct jsonb_build_object('source_system', m.source_system,
                                                       'source_store_id', m.source_store_id)) as shops
          from esl.store_mappings m where m.is_active group by 1) k
    left join esl.comparisons c on c.store_code = k.store_code
    left join lateral (select o.started_at from esl.device_passes o where o.store_code = k.store_code
                       order by o.started_at desc limit 1) l on true
    where p -> 'label_servers' ? k.server
      and coalesce(esl.why_no_pass(k.store_code, k.server) ->> 'outcome', '') not in ('not_known', 'down')
$$;
