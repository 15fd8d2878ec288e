-- What is not kept for ever: webhook bodies, and everything of a shop that has left.

-- The newest time that a shop's own words are of: those of its signed bodies, and a whole read of it. Null: none is known.
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

-- A shop says that it has left (p_topic), in the delivery p_id. Uninstalling has a time of its own, the signed p_said_at,
-- and switches the shop's mappings off unless the shop has said something since, or was connected or its mapping activated
-- after it: a message may come late, or again. An order to erase has no time of its own: see esl_redaction_list.
create or replace function esl.shop_left(p_id bigint, p_system text, p_shop text, p_topic text, p_said_at timestamptz)
returns void
language plpgsql set search_path = '' as $$
declare v_void text; v_mapping uuid; v_said timestamptz; v_activated timestamptz; v_connected timestamptz;
begin
    if p_topic = 'shop/redact' then
        insert into esl.redactions (source_system, source_store_id, inbox_id) values (p_system, p_shop, p_id);
        return;
    end if;
    v_said := esl.last_said(p_system, p_shop);
    select max(m.activated_at) into v_activated from esl.store_mappings m
    where m.source_system = p_system and m.source_store_id = p_shop and m.is_active;
    select c.connected_at into v_connected from esl.connections c
    where c.source_system = p_system and c.source_store_id = p_shop and c.ended_at is null;
    if p_said_at is null then
        v_void := 'void: it has no time of its own';
    elsif v_said > p_said_at then
        v_void := format('void: of %s, and the shop has said something of %s', esl.utc(p_said_at), esl.utc(v_said));
    elsif date_trunc('second', v_activated) > p_said_at then
        v_void := format('void: of %s, and its mapping was activated at %s', esl.utc(p_said_at), esl.utc(v_activated));
    elsif date_trunc('second', v_connected) > p_said_at then
        v_void := format('void: of %s, and the shop was connected at %s', esl.utc(p_said_at), esl.utc(v_connected));
    else
        for v_mapping in
            select m.id from esl.store_mappings m
            where m.source_system = p_system and m.source_store_id = p_shop and m.is_active
        loop
            perform public.esl_mapping_update(jsonb_build_object('id', v_mapping, 'is_active', false, 'by', p_topic));
            update esl.store_mappings set switched_off = format('%s of %s', p_topic, esl.utc(p_said_at))
            where id = v_mapping;
        end loop;
        -- Its subscriptions have gone with the app.
        perform esl.end_connection(p_system, p_shop, format('%s of %s', p_topic, esl.utc(p_said_at)));
    end if;
    update esl.webhook_inbox set state = 'superseded', reason = v_void where id = p_id and v_void is not null;
end $$;

-- What speaks against an order to erase a shop, or null: the shop was activated or connected after it, or has said something
-- after it uninstalled the app. Where that is not known: in the 48 h before the order, for Shopify sends it no earlier.
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

-- {} -> {redactions: [{id, source_system, source_store_id, requested_at}]}: orders to erase a shop that wait for the answer
-- of esl_redaction_decide. Void ones are closed with their reason; while a mapping of the shop is active, its order waits,
-- and for its first two days (not_before): the lie of a stolen receiver login is seen meanwhile, a shop that returns is back.
create or replace function public.esl_redaction_list(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
begin
    perform esl.redaction_close(r.id, esl.redaction_void(r)) from esl.redactions r
    where r.finished_at is null and esl.redaction_void(r) is not null;
    return (select jsonb_build_object('redactions', coalesce(jsonb_agg(jsonb_build_object(
                'id', r.id, 'source_system', r.source_system, 'source_store_id', r.source_store_id,
                'requested_at', r.requested_at) order by r.id), '[]'))
            from esl.redactions r
            where r.finished_at is null and r.confirmed_at is null and r.not_before <= now() and not esl.is_active(r));
end $$;

create or replace function esl.is_active(r esl.redactions) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.store_mappings m
                   where m.source_system = r.source_system and m.source_store_id = r.source_store_id and m.is_active)
$$;

-- Whether a shop may be erased now.
create or replace function esl.may_redact(r esl.redactions) returns boolean
language sql stable set search_path = '' as $$
    select r.finished_at is null and r.confirmed_at is not null and r.not_before <= now() and not esl.is_active(r) and esl.redaction_void(r) is null
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
        where r.id = (p ->> 'id')::bigint and r.finished_at is null and r.not_before <= now() and not esl.is_active(r);
    end if;
    return (select jsonb_build_object('confirmed', coalesce(bool_or(r.confirmed_at is not null), false))
            from esl.redactions r where r.id = (p ->> 'id')::bigint);
end $$;

-- Deletes up to p_limit rows per table of what a shop has told us, and what was made of it; how many went. What stays
-- is about labels and about us, not about people: the mappings (inactive), the audit of what labels showed (sync_log,
-- approvals, drift, price_history), the ledger of what the label server still holds, and, without their bodies, the
-- deliveries that ended the relation, so that they cannot be replayed.
create or replace function esl.redact(p_system text, p_shop text, p_limit int) returns int
language plpgsql set search_path = '' as $$
declare v_table text; v_mappings uuid[]; v_rows int; v_all int;
begin
    select coalesce(array_agg(id), '{}') into v_mappings from esl.store_mappings
    where source_system = p_system and source_store_id = p_shop;
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
                                   'refused_signatures'] loop
        execute format('delete from esl.%I where ctid = any (array(
                            select ctid from esl.%I where source_system = $1 and source_store_id = $2 limit $3))',
                       v_table, v_table) using p_system, p_shop, p_limit;
        get diagnostics v_rows = row_count;
        v_all := v_all + v_rows;
    end loop;
    delete from esl.turns where party = p_system || ':' || p_shop or party = any (v_mappings::text[]);
    delete from esl.snapshot_variants n where not exists (select from esl.snapshots s where s.id = n.snapshot_id);
    delete from esl.snapshot_levels n where not exists (select from esl.snapshots s where s.id = n.snapshot_id);

    -- A label that still hangs keeps a row without content, so that it can leave if the mapping is ever used again.
    update esl.labels l
    set state = 'withdrawn', code = null, label = null, label_hash = null, precedence = null, event_ids = '{}'
    where l.mapping_id = any (v_mappings) and (l.state <> 'withdrawn' or l.code is not null)
      and exists (select from esl.hipoink_products s where s.mapping_id = l.mapping_id and s.variant_id = l.variant_id);
    get diagnostics v_rows = row_count;
    v_all := v_all + v_rows;
    delete from esl.labels l
    where l.mapping_id = any (v_mappings)
      and not exists (select from esl.hipoink_products s where s.mapping_id = l.mapping_id and s.variant_id = l.variant_id);
    get diagnostics v_rows = row_count;
    v_all := v_all + v_rows;
    delete from esl.findings where mapping_id = any (v_mappings);
    get diagnostics v_rows = row_count;
    v_all := v_all + v_rows;
    delete from esl.sync_queue where mapping_id = any (v_mappings) and state <> 'leased';
    get diagnostics v_rows = row_count;
    v_all := v_all + v_rows;
    return v_all;
end $$;

-- {keep_bodies_days, keep_deliveries_days?, limit} -> {bodies, deliveries, unmapped, redacted, more}: one batch; call again
-- while more. Deletes what has waited keep_bodies_days for a store to be mapped (see esl_inbox_add), and counts it. Nulls the bodies of finished deliveries (their hashes stay, so that copies are still known), deletes later those
-- that protect nothing any more, and what shops have asked to be forgotten, once that is confirmed
-- (esl_redaction_decide) and for as long as nothing speaks against it.
create or replace function public.esl_housekeep(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
declare
    r esl.redactions; v_bodies int; v_deliveries int; v_unmapped int; v_rows int := 0; v_limit int := (p ->> 'limit')::int;
begin
    with gone as (
        delete from esl.webhook_inbox where id in (
            select i.id
            from (select distinct w.source_system, w.source_store_id from esl.shop_waiting w) s
            cross join lateral (
                select e.id, e.received_at from esl.webhook_inbox e
                where e.source_system = s.source_system and e.source_store_id = s.source_store_id and e.state = 'ready'
                order by e.id limit v_limit for update skip locked) i
            where not esl.is_mapped(s.source_system, s.source_store_id)
              and i.received_at < now() - make_interval(days => (p ->> 'keep_bodies_days')::int)
            limit v_limit)
        returning source_system, source_store_id
    ), counted as (
        insert into esl.shop_deliveries as o (source_system, source_store_id, expired)
        select source_system, source_store_id, count(*) from gone group by 1, 2 order by 1, 2
        on conflict (source_store_id, source_system) do update set expired = o.expired + excluded.expired
    )
    select count(*) into v_unmapped from gone;

    update esl.webhook_inbox set body = null
    where id in (
        select id from esl.webhook_inbox
        where body is not null and finished_at < now() - make_interval(days => (p ->> 'keep_bodies_days')::int)
        order by finished_at limit v_limit for update skip locked);
    get diagnostics v_bodies = row_count;

    -- These bodies carry a signed time of their own: a copy that is no longer known is older than what is stored, and so
    -- superseded (see esl_variants_merge). The others (products/delete, shop/redact, …) are known by their hash alone.
    delete from esl.webhook_inbox
    where id in (
        select id from esl.webhook_inbox
        where (said_at is not null or state = 'unusable')
          and finished_at < now() - make_interval(days => (p ->> 'keep_deliveries_days')::int)
        order by finished_at limit v_limit for update skip locked);
    get diagnostics v_deliveries = row_count;

    select * into r from esl.redactions o
    where o.finished_at is null and esl.may_redact(o) order by o.id limit 1 for update skip locked;
    if found then
        v_rows := esl.redact(r.source_system, r.source_store_id, v_limit);
        update esl.redactions
        set removed = removed + v_rows, finished_at = case when v_rows = 0 then clock_timestamp() end
        where id = r.id;
    end if;
    return jsonb_build_object('bodies', v_bodies, 'deliveries', v_deliveries, 'unmapped', v_unmapped, 'redacted', v_rows,
        'more', v_bodies = v_limit or v_deliveries = v_limit or v_unmapped = v_limit or (r.id is not null and exists (
            select from esl.redactions o where o.finished_at is null and esl.may_redact(o))));
end $$;
