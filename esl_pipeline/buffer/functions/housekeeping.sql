-- What is not kept for ever: webhook bodies, and everything of a shop that has left.

-- The newest time that a shop's own words are of: those of its signed bodies, and a whole read of it. Null: none is
-- known.
create or replace function esl.last_said(p_system text, p_shop text) returns timestamptz
language sql stable set search_path = '' as $$
    select greatest(
        (select max(i.said_at) from esl.webhook_inbox i
         where i.source_store_id = p_shop and i.source_system = p_system and i.said_at is not null
           and i.topic <> 'app/uninstalled' and i.state <> 'unusable'),
        (select max(s.as_of) from esl.snapshots s
         where s.source_store_id = p_shop and s.source_system = p_system and s.state = 'finished'))
$$;

create or replace function esl.utc(p_at timestamptz) returns text
language sql stable set search_path = '' as $$
    select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')
$$;

-- Why an uninstallation is void, or null: it is of before the shop's last word, or before it was connected or its
-- mapping activated, for a message may come late, or again.
create or replace function esl.uninstalled_void(i esl.webhook_inbox) returns text
language plpgsql stable set search_path = '' as $$
declare
    v_said timestamptz := esl.last_said(i.source_system, i.source_store_id);
    v_activated timestamptz := (
        select max(m.activated_at) from esl.store_mappings m
        where m.source_system = i.source_system and m.source_store_id = i.source_store_id and m.is_active);
    v_connected timestamptz := (
        select c.connected_at from esl.connections c
        where c.source_system = i.source_system and c.source_store_id = i.source_store_id and c.ended_at is null);
begin
    return case
        when i.said_at is null then 'void: it has no time of its own'
        when v_said > i.said_at then
            format('void: of %s, and the shop has said something of %s', esl.utc(i.said_at), esl.utc(v_said))
        when date_trunc('second', v_activated) > i.said_at then
            format('void: of %s, and its mapping was activated at %s', esl.utc(i.said_at), esl.utc(v_activated))
        when date_trunc('second', v_connected) > i.said_at then
            format('void: of %s, and the shop was connected at %s', esl.utc(i.said_at), esl.utc(v_connected)) end;
end $$;

-- A shop has uninstalled the app, and its subscriptions have gone with it: its mappings are switched off.
create or replace function esl.switch_off(p_system text, p_shop text, p_by text, p_message text) returns void
language plpgsql set search_path = '' as $$
declare v_mapping uuid;
begin
    perform esl.lock_mappings();
    perform esl.lock_stores(esl.stores_of_shop(p_system, p_shop));
    for v_mapping in
        select m.id from esl.store_mappings m
        where m.source_system = p_system and m.source_store_id = p_shop and m.is_active
    loop
        perform public.esl_mapping_update(jsonb_build_object('id', v_mapping, 'is_active', false, 'by', p_by));
        update esl.store_mappings set switched_off = p_message where id = v_mapping;
    end loop;
    perform esl.end_connection(p_system, p_shop, p_message);
end $$;

-- Of deliveries that were just kept, as these rows, those that say that a shop has left take effect. Uninstalling has a
-- time of its own, which is signed; an order to erase has none: see esl_redaction_list.
create or replace function esl.shops_left(p_deliveries jsonb, p_ids bigint[]) returns void
language plpgsql set search_path = '' as $$
declare i esl.webhook_inbox; v_void text;
begin
    if not p_deliveries @? '$[*].topic ? (@ == "app/uninstalled" || @ == "shop/redact")' then
        return;  -- as nearly always: without a look into the table
    end if;
    for i in
        select * from esl.webhook_inbox w
        where w.id = any (p_ids) and w.topic in ('app/uninstalled', 'shop/redact') and w.state = 'done' order by w.id
    loop
        if i.topic = 'shop/redact' then
            insert into esl.redactions (source_system, source_store_id, inbox_id)
            values (i.source_system, i.source_store_id, i.id);
            continue;
        end if;
        v_void := esl.uninstalled_void(i);
        if v_void is null then
            perform esl.switch_off(i.source_system, i.source_store_id, i.topic,
                                   format('%s of %s', i.topic, esl.utc(i.said_at)));
        else
            update esl.webhook_inbox set state = 'superseded', reason = v_void where id = i.id;
        end if;
    end loop;
end $$;

-- What speaks against an order to erase a shop, or null: the shop was activated or connected after it, or has said
-- something after it uninstalled the app. Where that is not known: in the 48 h before the order, for Shopify sends it
-- no earlier.
create or replace function esl.redaction_void(r esl.redactions) returns text
language sql stable set search_path = '' as $$
    select case
        when exists (select from esl.store_mappings m
                     where m.source_system = r.source_system and m.source_store_id = r.source_store_id
                       and m.activated_at > r.requested_at)
            then 'void: a mapping of the shop was activated after it'
        when exists (select from esl.connections c
                     where c.source_system = r.source_system and c.source_store_id = r.source_store_id
                       and c.ended_at is null and c.connected_at > r.requested_at)
            then 'void: the shop was connected after it'
        when said.last > coalesce(said.goodbye, r.requested_at - interval '48 hours')
            then format('void: the shop has said something of %s, after it left', esl.utc(said.last)) end
    from (select esl.last_said(r.source_system, r.source_store_id) as last,
                 (select max(i.said_at) from esl.webhook_inbox i
                  where i.source_store_id = r.source_store_id and i.source_system = r.source_system
                    and i.topic = 'app/uninstalled' and i.state = 'done') as goodbye) said
$$;

create or replace function esl.redaction_close(p_id bigint, p_void text) returns void
language sql volatile set search_path = '' as $$
    with closed as (
        update esl.redactions set void = p_void, finished_at = clock_timestamp()
        where id = p_id and finished_at is null returning inbox_id
    )
    update esl.webhook_inbox i set state = 'superseded', reason = p_void from closed c where i.id = c.inbox_id
$$;

-- {} -> {redactions: [{id, source_system, source_store_id, requested_at}]}: orders to erase a shop that wait for the
-- answer of esl_redaction_decide. Void ones are closed with their reason; while a mapping of the shop is active, its
-- order waits, and for its first two days (not_before): the lie of a stolen receiver login is seen meanwhile, a shop
-- that returns is back.
create or replace function public.esl_redaction_list(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    perform esl.redaction_close(r.id, esl.redaction_void(r)) from esl.redactions r
    where r.finished_at is null and esl.redaction_void(r) is not null;
    return (select jsonb_build_object('redactions', coalesce(jsonb_agg(jsonb_build_object(
                'id', r.id, 'source_system', r.source_system, 'source_store_id', r.source_store_id,
                'requested_at', r.requested_at) order by r.id), '[]'))
            from esl.redactions r
            where r.finished_at is null and r.confirmed_at is null and r.not_before <= now()
              and not esl.has_active_mapping(r.source_system, r.source_store_id));
end $$;

-- Whether a shop may be erased now.
create or replace function esl.may_redact(r esl.redactions) returns boolean
language sql stable set search_path = '' as $$
    select r.finished_at is null and r.confirmed_at is not null and r.not_before <= now()
           and not esl.has_active_mapping(r.source_system, r.source_store_id) and esl.redaction_void(r) is null
$$;

-- {id, token_works} -> {confirmed}: whether the shop still takes our Admin token (false too where there is none). If it
-- does, the shop has not left, and the order is void.
create or replace function public.esl_redaction_decide(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    if (p ->> 'token_works')::boolean then
        perform esl.redaction_close((p ->> 'id')::bigint, 'void: the shop still takes our Admin token');
    else
        update esl.redactions r set confirmed_at = coalesce(r.confirmed_at, clock_timestamp())
        where r.id = (p ->> 'id')::bigint and r.finished_at is null and r.not_before <= now()
          and not esl.has_active_mapping(r.source_system, r.source_store_id);
    end if;
    return (select jsonb_build_object('confirmed', coalesce(bool_or(r.confirmed_at is not null), false))
            from esl.redactions r where r.id = (p ->> 'id')::bigint);
end $$;

-- The tables that are about a shop by its name, of which nothing stays.
create or replace function esl.forget_shop(p_system text, p_shop text, p_limit int) returns int
language plpgsql set search_path = '' as $$
declare v_table text; v_rows int; v_all int;
begin
    delete from esl.webhook_inbox where id in (
        select id from esl.webhook_inbox
        where source_system = p_system and source_store_id = p_shop and topic not in ('app/uninstalled', 'shop/redact')
        limit p_limit);
    get diagnostics v_all = row_count;
    delete from esl.shop_waiting w
    where w.source_system = p_system and w.source_store_id = p_shop and not exists (
        select from esl.webhook_inbox i where i.source_system = p_system and i.source_store_id = p_shop
          and i.state in ('ready', 'leased'));
    foreach v_table in array array['product_versions', 'products', 'inventory_levels', 'variant_details', 'shops',
                                   'watermarks', 'snapshots', 'shop_deliveries', 'connections',
                                   'refused_signatures', 'source_files', 'row_problems'] loop
        execute format('delete from esl.%I where ctid = any (array(
                            select ctid from esl.%I where source_system = $1 and source_store_id = $2 limit $3))',
                       v_table, v_table) using p_system, p_shop, p_limit;
        get diagnostics v_rows = row_count;
        v_all := v_all + v_rows;
    end loop;
    delete from esl.snapshot_variants n where not exists (select from esl.snapshots s where s.id = n.snapshot_id);
    delete from esl.snapshot_levels n where not exists (select from esl.snapshots s where s.id = n.snapshot_id);
    return v_all;
end $$;

-- What was made of a shop's products for its mappings. A label that still hangs keeps a row without content, so that it
-- can leave if the mapping is ever used again.
create or replace function esl.forget_labels(p_mappings uuid[]) returns int
language sql volatile set search_path = '' as $$
    with emptied as (
        update esl.labels l
        set state = 'withdrawn', code = null, label = null, label_hash = null, precedence = null, event_ids = '{}'
        where l.mapping_id = any (p_mappings) and (l.state <> 'withdrawn' or l.code is not null)
          and exists (select from esl.hipoink_products s
                      where s.mapping_id = l.mapping_id and s.variant_id = l.variant_id)
        returning 1
    ), labels as (
        delete from esl.labels l
        where l.mapping_id = any (p_mappings)
          and not exists (select from esl.hipoink_products s
                          where s.mapping_id = l.mapping_id and s.variant_id = l.variant_id)
        returning 1
    ), findings as (
        delete from esl.findings where mapping_id = any (p_mappings) returning 1
    ), waits as (
        delete from esl.graces g using esl.hipoink_products s
        where s.mapping_id = any (p_mappings) and g.code = s.code and g.store_code = s.store_code
    ), queue as (
        delete from esl.sync_queue where mapping_id = any (p_mappings) and state <> 'leased' returning 1
    )
    select (select count(*) from emptied)::int + (select count(*) from labels)::int
           + (select count(*) from findings)::int + (select count(*) from queue)::int
$$;

-- Deletes up to p_limit rows per table of what a shop has told us, and what was made of it; how many went. What stays
-- is about labels and about us, not about people: the mappings (inactive), the audit of what labels showed (sync_log,
-- approvals, drift, price_history), the ledger of what the label server still holds, and, without their bodies, the
-- deliveries that ended the relation, so that they cannot be replayed.
create or replace function esl.redact(p_system text, p_shop text, p_limit int) returns int
language plpgsql set search_path = '' as $$
declare
    v_mappings uuid[] := array(select id from esl.store_mappings
                               where source_system = p_system and source_store_id = p_shop);
begin
    delete from esl.turns where party = p_system || ':' || p_shop or party = any (v_mappings::text[]);
    delete from esl.measures where party = p_system || ':' || p_shop;
    delete from esl.accuracies where mapping_id = any (v_mappings);
    delete from esl.number_answers;
    return esl.forget_shop(p_system, p_shop, p_limit) + esl.forget_labels(v_mappings);
end $$;

-- Deletes what has waited p_days for a store to be mapped (see esl_inbox_add), and counts it; how many.
create or replace function esl.expire_unmapped(p_days int, p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_expired int;
begin
    with gone as (
        delete from esl.webhook_inbox where id in (
            select i.id
            from (select distinct w.source_system, w.source_store_id from esl.shop_waiting w) s
            cross join lateral (
                select e.id, e.received_at from esl.webhook_inbox e
                where e.source_system = s.source_system and e.source_store_id = s.source_store_id and e.state = 'ready'
                order by e.id limit p_limit for update skip locked) i
            where not esl.is_mapped(s.source_system, s.source_store_id)
              and i.received_at < now() - make_interval(days => p_days)
            limit p_limit)
        returning source_system, source_store_id
    ), counted as (
        insert into esl.shop_deliveries as o (source_system, source_store_id, expired)
        select source_system, source_store_id, count(*) from gone group by 1, 2 order by 1, 2
        on conflict (source_store_id, source_system) do update set expired = o.expired + excluded.expired
    )
    select count(*) into v_expired from gone;
    return v_expired;
end $$;

-- Nulls the bodies of deliveries that were finished p_days ago (their hashes stay, so that copies are still known).
create or replace function esl.drop_bodies(p_days int, p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_bodies int;
begin
    update esl.webhook_inbox set body = null
    where id in (
        select id from esl.webhook_inbox
        where body is not null and finished_at < now() - make_interval(days => p_days)
        order by finished_at limit p_limit for update skip locked);
    get diagnostics v_bodies = row_count;
    return v_bodies;
end $$;

-- Deletes deliveries that were finished p_days ago and protect nothing any more: of bodies that carry a signed time of
-- their own, a copy that is no longer known is older than what is stored, and so superseded (see esl_variants_merge);
-- and what could not be used. The others (of deleted products, orders to erase) are known by their hash alone.
create or replace function esl.forget_deliveries(p_days int, p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_deliveries int;
begin
    delete from esl.webhook_inbox
    where id in (
        select id from esl.webhook_inbox
        where (said_at is not null or state = 'unusable') and finished_at < now() - make_interval(days => p_days)
        order by finished_at limit p_limit for update skip locked);
    get diagnostics v_deliveries = row_count;
    return v_deliveries;
end $$;

-- Deletes passes over labels that began p_days ago, but the newest complete one of each store at each server.
create or replace function esl.forget_passes(p_days int, p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_passes int;
begin
    delete from esl.device_passes
    where id in (
        select o.id from esl.device_passes o
        where o.started_at < now() - make_interval(days => p_days) and (o.state <> 'complete' or exists (
            select from esl.device_passes n
            where n.store_code = o.store_code and n.label_server = o.label_server and n.state = 'complete'
              and n.started_at > o.started_at))
        order by o.started_at limit p_limit for update skip locked);
    get diagnostics v_passes = row_count;
    return v_passes;
end $$;

-- Deletes what was told p_days ago of how labels could be reached; what they were bound to and their batteries stay.
create or replace function esl.forget_reach(p_days int, p_limit int) returns int
language plpgsql volatile set search_path = '' as $$
declare v_changes int;
begin
    delete from esl.device_changes
    where id in (
        select c.id from esl.device_changes c
        where c.what in ('online', 'ap') and c.at < now() - make_interval(days => p_days) order by c.at limit p_limit);
    get diagnostics v_changes = row_count;
    return v_changes;
end $$;

-- {keep_bodies_days, keep_deliveries_days?, limit} -> {bodies, deliveries, unmapped, passes, reach, redacted, more}:
-- one batch; call again while more. Deletes what has waited keep_bodies_days for a store to be mapped, the bodies of
-- finished deliveries, later the deliveries that protect nothing, and what shops have asked to be forgotten, once that
-- is confirmed (esl_redaction_decide) and for as long as nothing speaks against it.
create or replace function public.esl_housekeep(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
declare
    r esl.redactions; v_limit int := (p ->> 'limit')::int;
    v_unmapped int; v_bodies int; v_deliveries int; v_passes int; v_reach int; v_hours int;
    v_redacted int := 0;
begin
    v_unmapped := esl.expire_unmapped((p ->> 'keep_bodies_days')::int, v_limit);
    v_bodies := esl.drop_bodies((p ->> 'keep_bodies_days')::int, v_limit);
    v_deliveries := esl.forget_deliveries((p ->> 'keep_deliveries_days')::int, v_limit);
    v_passes := esl.forget_passes((p ->> 'keep_bodies_days')::int, v_limit);
    v_reach := esl.forget_reach((p ->> 'keep_deliveries_days')::int, v_limit);
    v_hours := esl.forget_hours(v_limit);
    select * into r from esl.redactions o
    where o.finished_at is null and esl.may_redact(o) order by o.id limit 1 for update skip locked;
    if found then
        v_redacted := esl.redact(r.source_system, r.source_store_id, v_limit);
        update esl.redactions
        set removed = removed + v_redacted, finished_at = case when v_redacted = 0 then clock_timestamp() end
        where id = r.id;
    end if;
    return jsonb_build_object('bodies', v_bodies, 'deliveries', v_deliveries, 'unmapped', v_unmapped,
        'redacted', v_redacted, 'passes', v_passes, 'reach', v_reach,
        'more', v_limit in (v_bodies, v_deliveries, v_unmapped, v_passes, v_reach, v_hours)
            or (r.id is not null and exists (
            select from esl.redactions o where o.finished_at is null and esl.may_redact(o))));
end $$;
