-- What is not kept for ever: webhook bodies, and everything of a shop that has left.

-- A shop has uninstalled the app: nothing of it is pushed any more. With p_redact it has also asked to be forgotten.
create or replace function esl.shop_left(p_system text, p_shop text, p_redact boolean) returns void
language plpgsql set search_path = '' as $$
begin
    perform public.esl_mapping_update(jsonb_build_object('id', m.id, 'is_active', false))
    from esl.store_mappings m
    where m.source_system = p_system and m.source_store_id = p_shop and m.is_active;
    if p_redact then
        insert into esl.redactions (source_system, source_store_id) values (p_system, p_shop);
    end if;
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
    foreach v_table in array array['product_versions', 'products', 'inventory_levels', 'variant_details', 'shops',
                                   'watermarks', 'snapshots', 'shop_deliveries'] loop
        execute format('delete from esl.%I where ctid = any (array(
                            select ctid from esl.%I where source_system = $1 and source_store_id = $2 limit $3))',
                       v_table, v_table) using p_system, p_shop, p_limit;
        get diagnostics v_rows = row_count;
        v_all := v_all + v_rows;
    end loop;
    delete from esl.snapshot_variants n where not exists (select from esl.snapshots s where s.id = n.snapshot_id);

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

-- {keep_bodies_days, keep_deliveries_days?, limit} -> {bodies, deliveries, redacted, more}: one batch; call again while
-- more. Nulls the bodies of finished deliveries (their hashes stay, so that copies are still known), deletes later those
-- that protect nothing any more, and what shops have asked to be forgotten.
create or replace function public.esl_housekeep(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
declare
    r esl.redactions; v_bodies int; v_deliveries int; v_rows int := 0; v_limit int := (p ->> 'limit')::int;
begin
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
        where topic in ('products/create', 'products/update', 'inventory_levels/update', 'app/uninstalled')
          and finished_at < now() - make_interval(days => (p ->> 'keep_deliveries_days')::int)
        order by finished_at limit v_limit for update skip locked);
    get diagnostics v_deliveries = row_count;

    select * into r from esl.redactions where finished_at is null order by id limit 1 for update skip locked;
    if found then
        v_rows := esl.redact(r.source_system, r.source_store_id, v_limit);
        update esl.redactions
        set removed = removed + v_rows, finished_at = case when v_rows = 0 then clock_timestamp() end
        where id = r.id;
    end if;
    return jsonb_build_object('bodies', v_bodies, 'deliveries', v_deliveries, 'redacted', v_rows, 'more',
        v_bodies = v_limit or v_deliveries = v_limit
        or (r.id is not null and exists (select from esl.redactions where finished_at is null)));
end $$;
