-- Snapshots: complete reads of a shop, page by page. A page is merged where it differs and noted; the end concludes.

-- {snapshot_id, shop, run_id} -> {snapshot_id}. Other open snapshots of the shop are of runs that died, or are
-- overtaken now: they can conclude nothing any more, and what they had noted is thrown away.
create or replace function public.esl_snapshot_begin(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = ''
set plan_cache_mode = force_custom_plan set statement_timeout = '55s' as $$
begin
    perform pg_advisory_xact_lock(hashtextextended('esl.snapshots', 0));
    if not exists (select from esl.snapshots where id = (p ->> 'snapshot_id')::uuid) then
        update esl.snapshots
        set state = 'abandoned', finished_at = clock_timestamp(), reason = 'a newer snapshot of the shop has begun'
        where state = 'open' and source_system = p #>> '{shop,source_system}'
          and source_store_id = p #>> '{shop,source_store_id}';
        delete from esl.snapshot_variants v
        where not exists (select from esl.snapshots s where s.id = v.snapshot_id and s.state = 'open');
        delete from esl.snapshot_levels v
        where not exists (select from esl.snapshots s where s.id = v.snapshot_id and s.state = 'open');
        insert into esl.snapshots (id, source_system, source_store_id, run_id)
        values ((p ->> 'snapshot_id')::uuid, p #>> '{shop,source_system}', p #>> '{shop,source_store_id}',
                p ->> 'run_id');
    end if;
    return jsonb_build_object('snapshot_id', p ->> 'snapshot_id');
end $$;

-- Whether a read of a variant or product contradicts a tombstone that rests on absence alone: it began later, and ids
-- are never used again. A deletion that the source told us of stands.
create or replace function esl.is_revived(v esl.product_versions, p_read jsonb) returns boolean
language sql stable as $$  -- without a search_path of its own, so that it is inlined
    select coalesce(v.deleted and v.body_sha256 = '' and v.version_at < (p_read ->> 'triggered_at')::timestamptz, false)
$$;

-- What was read of variants, against what is stored. changed: the variants that differ, with the version of the
-- tombstone where they contradict one; products: theirs; newer: ids of those that differ, but of whose product
-- something newer is stored; unchanged: how many.
create or replace function esl.compare_variants(p_variants jsonb, out changed jsonb, out products text[],
                                                out newer text[], out unchanged int)
language plpgsql stable set search_path = '' as $$
begin
    with incoming as materialized (
        select e ->> 'variant_id' as variant_id, e ->> 'product_id' as product_id,
               case when r.revived then e || jsonb_build_object(
                   'version_at', greatest(v.version_at, (e ->> 'version_at')::timestamptz)) else e end as variant,
               coalesce(not o.removed and esl.unsaid(e, o) = o.unsaid
                        and esl.content(n) is not distinct from esl.content(o), false) as is_same,
               not r.revived and coalesce((v.version_at, v.triggered_at, v.body_sha256)
                   > ((e ->> 'version_at')::timestamptz, (e ->> 'triggered_at')::timestamptz, e ->> 'body_sha256'),
                   false) as is_older
        from jsonb_array_elements(p_variants) e
        left join esl.products o
          on o.variant_id = e ->> 'variant_id' and o.source_store_id = e ->> 'source_store_id'
         and o.source_system = e ->> 'source_system'
        left join esl.product_versions v
          on v.product_id = e ->> 'product_id' and v.source_store_id = e ->> 'source_store_id'
         and v.source_system = e ->> 'source_system'
        cross join lateral (select esl.is_revived(v, e) as revived) r
        cross join lateral jsonb_populate_record(o, e) n
    )
    select jsonb_agg(variant) filter (where not is_same and not is_older),
           coalesce(array_agg(product_id) filter (where not is_same and not is_older), '{}'),
           coalesce(array_agg(variant_id) filter (where not is_same and is_older), '{}'),
           count(*) filter (where is_same)
    into changed, products, newer, unchanged from incoming;
end $$;

-- The products to merge; null: none. One is stored when its version is newer although no variant differs, so that a
-- webhook from in between cannot come later and win. Which variants are still to be fetched is settled by
-- esl_snapshot_finish: other pages may hold them.
create or replace function esl.changed_products(p_products jsonb, p_changed text[]) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
    return (
        select jsonb_agg(e || jsonb_build_object('missing_variants', coalesce(v.missing_variants, 0), 'version_at',
                   case when esl.is_revived(v, e) then greatest(v.version_at, (e ->> 'version_at')::timestamptz)
                        else (e ->> 'version_at')::timestamptz end))
        from jsonb_array_elements(p_products) e
        left join esl.product_versions v
          on v.product_id = e ->> 'product_id' and v.source_store_id = e ->> 'source_store_id'
         and v.source_system = e ->> 'source_system'
        where e ->> 'product_id' = any (p_changed) or (e ->> 'version_at')::timestamptz > v.version_at);
end $$;

-- The levels to merge; null: none. An unchanged one is written for a newer time only. A tombstone has no time that the
-- source signed, or none at all: a read that began later and finds the level knows better.
create or replace function esl.changed_levels(p_levels jsonb) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
    return (
        select jsonb_agg(to_jsonb(d) || jsonb_build_object(
                   'updated_at', case when l.gone then greatest(d.updated_at, l.updated_at) else d.updated_at end))
        from jsonb_populate_recordset(null::esl.inventory_levels, p_levels) d
        left join esl.inventory_levels l
          on l.inventory_item_id = d.inventory_item_id and l.location_id = d.location_id
         and l.source_store_id = d.source_store_id and l.source_system = d.source_system
        where l.inventory_item_id is null
           or (l.gone and d.triggered_at > l.triggered_at)
           or (not l.gone and (d.updated_at > l.updated_at or (
               l.available is distinct from d.available and d.updated_at = l.updated_at
               and (d.triggered_at, d.body_sha256) > (l.triggered_at, l.body_sha256)))));
end $$;

-- The details to merge; null: none. They have no version of their own; those of an older variant (p_older) only serve
-- where there are none.
create or replace function esl.changed_details(p_details jsonb, p_older text[]) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
    return (
        select jsonb_agg(to_jsonb(d))
        from jsonb_populate_recordset(null::esl.variant_details, p_details) d
        left join esl.variant_details o
          on o.variant_id = d.variant_id and o.source_store_id = d.source_store_id and o.source_system = d.source_system
        where o.variant_id is null
           or (d.variant_id <> all (p_older) and (o.gift_card, o.unit_price, o.unit_price_measurement)
               is distinct from (d.gift_card, d.unit_price, d.unit_price_measurement)));
end $$;

-- Notes what was read, each variant and level once, and how many of each.
create or replace function esl.note_read(p_snapshot uuid, p_variants jsonb, p_levels jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare v_noted int;
begin
    insert into esl.snapshot_variants (variant_id, snapshot_id)
    select e ->> 'variant_id', p_snapshot from jsonb_array_elements(p_variants) e
    on conflict do nothing;
    get diagnostics v_noted = row_count;
    update esl.snapshots set seen = seen + v_noted where id = p_snapshot and v_noted > 0;
    insert into esl.snapshot_levels (inventory_item_id, location_id, snapshot_id)
    select e ->> 'inventory_item_id', e ->> 'location_id', p_snapshot from jsonb_array_elements(p_levels) e
    on conflict do nothing;
    get diagnostics v_noted = row_count;
    update esl.snapshots set levels_seen = levels_seen + v_noted where id = p_snapshot and v_noted > 0;
end $$;

-- {snapshot_id, products, variants, levels, details, shops: as for esl_variants_merge}
-- -> {open, changed, unchanged, newer}; open false: the snapshot has been overtaken, nothing was done.
-- Merges what differs and notes what was read. What is stored already, or something newer, is left out before
-- esl_variants_merge: an unchanged variant writes nothing at all.
-- newer: variants that differ, but of whose product something newer is stored.
create or replace function public.esl_snapshot_merge(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_id uuid := (p ->> 'snapshot_id')::uuid; v_read record; v_products jsonb; v_levels jsonb; v_details jsonb;
    v_written int := 0;
begin
    perform from esl.snapshots where id = v_id and state = 'open' for no key update;
    if not found then
        return jsonb_build_object('open', false, 'changed', 0, 'unchanged', 0, 'newer', 0);
    end if;
    perform esl.settle_by_read(p);

    v_read := esl.compare_variants(p -> 'variants');
    v_products := esl.changed_products(p -> 'products', v_read.products);
    v_levels := esl.changed_levels(p -> 'levels');
    v_details := esl.changed_details(p -> 'details', v_read.newer);
    if coalesce(v_read.changed, v_products, v_levels, v_details) is not null or p -> 'shops' <> '[]' then
        v_written := public.esl_variants_merge(jsonb_build_object(
            'products', coalesce(v_products, '[]'), 'variants', coalesce(v_read.changed, '[]'),
            'levels', coalesce(v_levels, '[]'), 'details', coalesce(v_details, '[]'),
            'shops', coalesce(p -> 'shops', '[]'), 'events', '[]'::jsonb)) ->> 'variants_changed';
    end if;
    perform esl.note_read(v_id, p -> 'variants', p -> 'levels');

    return jsonb_build_object('open', true, 'changed', v_written, 'unchanged', v_read.unchanged, 'newer',
        cardinality(v_read.newer) + jsonb_array_length(coalesce(v_read.changed, '[]')) - v_written);
end $$;

-- Why nothing may be concluded from a snapshot, or null.
create or replace function esl.snapshot_problem(s esl.snapshots) returns text
language plpgsql stable set search_path = '' as $$
begin
    if s.state is distinct from 'open' then
        return coalesce(s.reason, 'there is no such snapshot');
    elsif (s.seen, s.levels_seen) <> (
            (select count(*) from esl.snapshot_variants where snapshot_id = s.id),
            (select count(*) from esl.snapshot_levels where snapshot_id = s.id)) then
        return 'the database has lost its notes of what was read: it was restarted meanwhile';
    end if;
    return null;
end $$;

-- What was not read is looked up row by row (offset 0): the statistics know the notes of an earlier snapshot and none
-- of this one, so a join would be planned for one row of them and compare all with all.

-- Variants that were not read are gone, and how many those are; a product without any variant left becomes a tombstone
-- (body_sha256 ''), so that a late webhook does not revive it.
create or replace function esl.remove_unread_variants(s esl.snapshots, p_as_of timestamptz) returns int
language plpgsql volatile set search_path = '' as $$
declare v_products text[]; v_removed int;
begin
    -- Locked first: a webhook that is being merged goes before or after all of this, never between.
    select array_agg(product_id) into v_products from (
        select v.product_id from esl.product_versions v
        where v.source_system = s.source_system and v.source_store_id = s.source_store_id and v.version_at < p_as_of
          and v.product_id in (
              select o.product_id from esl.products o
              where o.source_system = s.source_system and o.source_store_id = s.source_store_id and not o.removed
                and not exists (select from esl.snapshot_variants n
                                where n.variant_id = o.variant_id and n.snapshot_id = s.id offset 0))
        order by v.product_id for update) older;

    with gone as (
        update esl.products o
        set removed = true, event_ids = '{}', cause = 'read', revision = nextval('esl.revision'), due = true,
            changed_at = now()
        where o.source_system = s.source_system and o.source_store_id = s.source_store_id and not o.removed
          and o.product_id = any (v_products) and o.source_updated_at < p_as_of
          and not exists (select from esl.snapshot_variants n
                          where n.variant_id = o.variant_id and n.snapshot_id = s.id offset 0)
        returning o.product_id
    ), buried as (
        update esl.product_versions v
        set version_at = p_as_of, triggered_at = p_as_of, body_sha256 = '', deleted = true, missing_variants = 0
        where v.source_system = s.source_system and v.source_store_id = s.source_store_id
          and v.product_id in (select product_id from gone)
          and not exists (
              select from esl.products o
              join esl.snapshot_variants n on n.variant_id = o.variant_id and n.snapshot_id = s.id
              where o.source_system = s.source_system and o.source_store_id = s.source_store_id
                and o.product_id = v.product_id)
    )
    select count(*) into v_removed from gone;
    return v_removed;
end $$;

-- Details of variants that were not read and are not there.
create or replace function esl.remove_unread_details(s esl.snapshots) returns void
language plpgsql volatile set search_path = '' as $$
begin
    delete from esl.variant_details x
    where x.source_system = s.source_system and x.source_store_id = s.source_store_id
      and not exists (select from esl.snapshot_variants n
                      where n.variant_id = x.variant_id and n.snapshot_id = s.id offset 0)
      and not exists (select from esl.products o where o.variant_id = x.variant_id and not o.removed
                      and o.source_store_id = x.source_store_id and o.source_system = x.source_system);
end $$;

-- Levels that were not read become tombstones; how many. Null as of: the stock was not read, nothing is concluded.
create or replace function esl.remove_unread_levels(s esl.snapshots, p_as_of timestamptz) returns int
language plpgsql volatile set search_path = '' as $$
declare v_levels int;
begin
    with gone as (
        update esl.inventory_levels l
        set gone = true, available = null, updated_at = p_as_of, triggered_at = p_as_of, body_sha256 = ''
        where l.source_system = s.source_system and l.source_store_id = s.source_store_id and not l.gone
          and greatest(l.updated_at, l.triggered_at) < p_as_of
          and not exists (select from esl.snapshot_levels n
                          where n.inventory_item_id = l.inventory_item_id and n.location_id = l.location_id
                            and n.snapshot_id = s.id offset 0)
        returning l.inventory_item_id
    ), marked as (
        update esl.products o
        set due = true, revision = nextval('esl.revision'), stock_event_ids = '{}', cause = 'read'
        where o.source_system = s.source_system and o.source_store_id = s.source_store_id and not o.removed
          and o.inventory_item_id in (select inventory_item_id from gone)
    )
    select count(*) into v_levels from gone;
    return v_levels;
end $$;

-- {snapshot_id, as_of, stock_as_of, counts} -> {finished, removed, levels_gone, reason}: everything was read, so what
-- was not there is gone, in every table that a snapshot fills: variants with their details, and levels where the stock
-- was read (stock_as_of: when that began; null: nothing is concluded about stock). Only what is older than the read: a
-- variant that changed since may have been made since.
create or replace function public.esl_snapshot_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = ''
set plan_cache_mode = force_custom_plan set statement_timeout = '55s'
set plan_cache_mode = force_custom_plan as $$
declare
    s esl.snapshots; v_as_of timestamptz := (p ->> 'as_of')::timestamptz;
    v_stock_as_of timestamptz := (p ->> 'stock_as_of')::timestamptz; v_removed int; v_levels int; v_reason text;
begin
    select * into s from esl.snapshots where id = (p ->> 'snapshot_id')::uuid for update;
    if s.state = 'finished' then
        return jsonb_build_object('finished', true, 'removed', s.counts -> 'removed', 'levels_gone',
                                  s.counts -> 'levels_gone', 'reason', null);
    end if;
    v_reason := esl.snapshot_problem(s);
    if v_reason is not null then
        perform public.esl_snapshot_abandon(jsonb_build_object('snapshot_id', s.id, 'reason', v_reason));
        return jsonb_build_object('finished', false, 'removed', 0, 'levels_gone', 0, 'reason', v_reason);
    end if;

    perform esl.shop_was_read(s.source_system, s.source_store_id);
    v_removed := esl.remove_unread_variants(s, v_as_of);
    update esl.product_versions v set missing_variants = 0
    where v.missing_variants > 0 and not v.deleted and v.triggered_at <= v_as_of
      and v.source_system = s.source_system and v.source_store_id = s.source_store_id;
    perform esl.remove_unread_details(s);
    v_levels := esl.remove_unread_levels(s, v_stock_as_of);
    perform esl.settle_by_absence(s.source_system, s.source_store_id, v_as_of);
    perform esl.end_cuts(s.source_system, s.source_store_id);

    delete from esl.snapshot_variants where snapshot_id = s.id;
    delete from esl.snapshot_levels where snapshot_id = s.id;
    update esl.snapshots
    set state = 'finished', finished_at = clock_timestamp(), as_of = v_as_of, stock_as_of = v_stock_as_of,
        counts = coalesce(p -> 'counts', '{}') || jsonb_build_object('removed', v_removed, 'levels_gone', v_levels)
    where id = s.id;
    return jsonb_build_object('finished', true, 'removed', v_removed, 'levels_gone', v_levels, 'reason', null);
end $$;

-- {snapshot_id, reason} -> {abandoned}: it was not read to its end, so nothing is concluded from it.
create or replace function public.esl_snapshot_abandon(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = ''
set plan_cache_mode = force_custom_plan set statement_timeout = '55s' as $$
declare v_id uuid := (p ->> 'snapshot_id')::uuid; v_abandoned boolean;
begin
    update esl.snapshots set state = 'abandoned', finished_at = clock_timestamp(), reason = p ->> 'reason'
    where id = v_id and state = 'open';
    v_abandoned := found;
    delete from esl.snapshot_variants where snapshot_id = v_id;
    delete from esl.snapshot_levels where snapshot_id = v_id;
    return jsonb_build_object('abandoned', v_abandoned);
end $$;
