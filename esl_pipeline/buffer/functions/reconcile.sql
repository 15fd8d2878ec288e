-- Reconciliation: a whole shop against the buffer, and the label server's own list against the ledger.

-- {snapshot_id, shop, run_id} -> {snapshot_id}. Other open snapshots of the shop are of runs that died, or are overtaken
-- now: they can conclude nothing any more, and what they had noted is thrown away.
create or replace function public.esl_snapshot_begin(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
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

-- {snapshot_id, products, variants, levels, details, shops: as for esl_variants_merge}
-- -> {open, changed, unchanged, newer}; open false: the snapshot has been overtaken, nothing was done.
-- Merges what differs and notes what was read. What is stored already, or something newer, is left out before
-- esl_variants_merge: an unchanged variant writes nothing at all. A product's version is stored when it is newer
-- although no variant differs, so that a webhook from in between cannot come later and win.
-- newer: variants that differ, but of whose product something newer is stored.
create or replace function public.esl_snapshot_merge(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_id uuid := (p ->> 'snapshot_id')::uuid;
    v_variants jsonb; v_products jsonb; v_levels jsonb; v_details jsonb;
    v_changed text[]; v_newer text[]; v_unchanged int; v_written int := 0; v_noted int;
begin
    perform from esl.snapshots where id = v_id and state = 'open' for no key update;
    if not found then
        return jsonb_build_object('open', false, 'changed', 0, 'unchanged', 0, 'newer', 0);
    end if;
    perform esl.settle_by_read(p);

    -- A product that an earlier snapshot did not find (see esl_snapshot_finish), and that is there after all.
    with incoming as materialized (
        select e ->> 'variant_id' as variant_id, e ->> 'product_id' as product_id,
               case when r.revived then e || jsonb_build_object(
                   'version_at', greatest(v.version_at, (e ->> 'version_at')::timestamptz)) else e end as variant,
               coalesce(not o.removed and esl.unsaid(e, o) = o.unsaid
                        and esl.content(n) is not distinct from esl.content(o), false) as is_same,
               not r.revived and coalesce((v.version_at, v.triggered_at, v.body_sha256)
                   > ((e ->> 'version_at')::timestamptz, (e ->> 'triggered_at')::timestamptz, e ->> 'body_sha256'),
                   false) as is_older
        from jsonb_array_elements(p -> 'variants') e
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
    into v_variants, v_changed, v_newer, v_unchanged from incoming;

    -- Which variants are still to be fetched is settled by esl_snapshot_finish: other parts may hold them.
    select jsonb_agg(e || jsonb_build_object('missing_variants', coalesce(v.missing_variants, 0), 'version_at',
               case when esl.is_revived(v, e) then greatest(v.version_at, (e ->> 'version_at')::timestamptz)
                    else (e ->> 'version_at')::timestamptz end))
    into v_products
    from jsonb_array_elements(p -> 'products') e
    left join esl.product_versions v
      on v.product_id = e ->> 'product_id' and v.source_store_id = e ->> 'source_store_id'
     and v.source_system = e ->> 'source_system'
    where e ->> 'product_id' = any (v_changed) or (e ->> 'version_at')::timestamptz > v.version_at;

    -- An unchanged level is written for a newer time only. A tombstone has no time that Shopify signed, or none at all: a
    -- read that began later and finds the level knows better.
    select jsonb_agg(to_jsonb(d) || jsonb_build_object(
               'updated_at', case when l.gone then greatest(d.updated_at, l.updated_at) else d.updated_at end))
    into v_levels
    from jsonb_to_recordset(p -> 'levels') as d (
        source_system text, source_store_id text, inventory_item_id text, location_id text, available bigint,
        updated_at timestamptz, triggered_at timestamptz, body_sha256 text)
    left join esl.inventory_levels l
      on l.inventory_item_id = d.inventory_item_id and l.location_id = d.location_id
     and l.source_store_id = d.source_store_id and l.source_system = d.source_system
    where l.inventory_item_id is null
       or (l.gone and d.triggered_at > l.triggered_at)
       or (not l.gone and (d.updated_at > l.updated_at or (
           l.available is distinct from d.available and d.updated_at = l.updated_at
           and (d.triggered_at, d.body_sha256) > (l.triggered_at, l.body_sha256))));

    -- Details have no version of their own; those of an older variant only serve where there are none.
    select jsonb_agg(to_jsonb(d)) into v_details
    from jsonb_to_recordset(p -> 'details') as d (
        source_system text, source_store_id text, variant_id text, gift_card boolean, unit_price text,
        unit_price_measurement jsonb)
    left join esl.variant_details o
      on o.variant_id = d.variant_id and o.source_store_id = d.source_store_id and o.source_system = d.source_system
    where o.variant_id is null
       or (d.variant_id <> all (v_newer) and (o.gift_card, o.unit_price, o.unit_price_measurement)
           is distinct from (d.gift_card, d.unit_price, d.unit_price_measurement));

    if coalesce(v_variants, v_products, v_levels, v_details) is not null or p -> 'shops' <> '[]' then
        v_written := public.esl_variants_merge(jsonb_build_object(
            'products', coalesce(v_products, '[]'), 'variants', coalesce(v_variants, '[]'),
            'levels', coalesce(v_levels, '[]'), 'details', coalesce(v_details, '[]'),
            'shops', coalesce(p -> 'shops', '[]'), 'events', '[]'::jsonb)) ->> 'variants_changed';
    end if;

    insert into esl.snapshot_variants (variant_id, snapshot_id)
    select e ->> 'variant_id', v_id from jsonb_array_elements(p -> 'variants') e
    on conflict do nothing;
    get diagnostics v_noted = row_count;
    update esl.snapshots set seen = seen + v_noted where id = v_id and v_noted > 0;
    insert into esl.snapshot_levels (inventory_item_id, location_id, snapshot_id)
    select e ->> 'inventory_item_id', e ->> 'location_id', v_id from jsonb_array_elements(p -> 'levels') e
    on conflict do nothing;
    get diagnostics v_noted = row_count;
    update esl.snapshots set levels_seen = levels_seen + v_noted where id = v_id and v_noted > 0;

    return jsonb_build_object('open', true, 'changed', v_written, 'unchanged', v_unchanged,
        'newer', cardinality(v_newer) + jsonb_array_length(coalesce(v_variants, '[]')) - v_written);
end $$;

-- Whether a read of a variant or product contradicts a tombstone that rests on absence alone: it began later, and ids
-- are never used again. A deletion that Shopify told us of stands.
create or replace function esl.is_revived(v esl.product_versions, p_read jsonb) returns boolean
language sql stable as $$  -- without a search_path of its own, so that it is inlined
    select coalesce(v.deleted and v.body_sha256 = '' and v.version_at < (p_read ->> 'triggered_at')::timestamptz, false)
$$;

-- {snapshot_id, as_of, stock_as_of, counts} -> {finished, removed, levels_gone, reason}: everything was read, so what was
-- not there is gone, in every table that a snapshot fills: variants with their details, and levels where the stock was read
-- (stock_as_of: when that began; null: nothing is concluded about stock). Only what is older than the read: a variant that
-- changed since may have been made since. A product without any variant left becomes a tombstone (body_sha256 ''), so that a
-- late webhook does not revive it, and so does each level.
create or replace function public.esl_snapshot_finish(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s'
set plan_cache_mode = force_custom_plan as $$
declare
    s esl.snapshots; v_as_of timestamptz := (p ->> 'as_of')::timestamptz;
    v_stock_as_of timestamptz := (p ->> 'stock_as_of')::timestamptz; v_products text[]; v_removed int; v_levels int;
    v_reason text;
begin
    select * into s from esl.snapshots where id = (p ->> 'snapshot_id')::uuid for update;
    if s.state = 'finished' then
        return jsonb_build_object('finished', true, 'removed', s.counts -> 'removed', 'levels_gone',
                                  s.counts -> 'levels_gone', 'reason', null);
    elsif s.state = 'open' and (s.seen, s.levels_seen) <> (
            (select count(*) from esl.snapshot_variants where snapshot_id = s.id),
            (select count(*) from esl.snapshot_levels where snapshot_id = s.id)) then
        v_reason := 'the database has lost its notes of what was read: it was restarted meanwhile';
        perform public.esl_snapshot_abandon(jsonb_build_object('snapshot_id', s.id, 'reason', v_reason));
    elsif s.state is distinct from 'open' then
        v_reason := coalesce(s.reason, 'there is no such snapshot');
    end if;
    if v_reason is not null then
        return jsonb_build_object('finished', false, 'removed', 0, 'levels_gone', 0, 'reason', v_reason);
    end if;

    perform esl.shop_was_read(s.source_system, s.source_store_id);

    -- Locked first: a webhook that is being merged goes before or after all of this, never between.
    select array_agg(product_id) into v_products from (
        select v.product_id from esl.product_versions v
        where v.source_system = s.source_system and v.source_store_id = s.source_store_id and v.version_at < v_as_of
          and v.product_id in (
              select o.product_id from esl.products o
              where o.source_system = s.source_system and o.source_store_id = s.source_store_id and not o.removed
                and not exists (select from esl.snapshot_variants n
                                where n.variant_id = o.variant_id and n.snapshot_id = s.id))
        order by v.product_id for update) older;

    with gone as (
        update esl.products o
        set removed = true, event_ids = '{}', revision = nextval('esl.revision'), due = true, changed_at = now()
        where o.source_system = s.source_system and o.source_store_id = s.source_store_id and not o.removed
          and o.product_id = any (v_products) and o.source_updated_at < v_as_of
          and not exists (select from esl.snapshot_variants n
                          where n.variant_id = o.variant_id and n.snapshot_id = s.id)
        returning o.product_id
    ), buried as (
        update esl.product_versions v
        set version_at = v_as_of, triggered_at = v_as_of, body_sha256 = '', deleted = true, missing_variants = 0
        where v.source_system = s.source_system and v.source_store_id = s.source_store_id
          and v.product_id in (select product_id from gone)
          and not exists (
              select from esl.products o
              join esl.snapshot_variants n on n.variant_id = o.variant_id and n.snapshot_id = s.id
              where o.source_system = s.source_system and o.source_store_id = s.source_store_id
                and o.product_id = v.product_id)
    )
    select count(*) into v_removed from gone;

    update esl.product_versions v set missing_variants = 0
    where v.missing_variants > 0 and not v.deleted and v.triggered_at <= v_as_of
      and v.source_system = s.source_system and v.source_store_id = s.source_store_id;

    delete from esl.variant_details x
    where x.source_system = s.source_system and x.source_store_id = s.source_store_id
      and not exists (select from esl.snapshot_variants n where n.variant_id = x.variant_id and n.snapshot_id = s.id)
      and not exists (select from esl.products o where o.variant_id = x.variant_id and not o.removed
                      and o.source_store_id = x.source_store_id and o.source_system = x.source_system);

    with gone as (
        update esl.inventory_levels l
        set gone = true, available = null, updated_at = v_stock_as_of, triggered_at = v_stock_as_of, body_sha256 = ''
        where l.source_system = s.source_system and l.source_store_id = s.source_store_id and not l.gone
          and greatest(l.updated_at, l.triggered_at) < v_stock_as_of
          and not exists (select from esl.snapshot_levels n
                          where n.inventory_item_id = l.inventory_item_id and n.location_id = l.location_id
                            and n.snapshot_id = s.id)
        returning l.inventory_item_id
    ), marked as (
        update esl.products o set due = true, revision = nextval('esl.revision')
        where o.source_system = s.source_system and o.source_store_id = s.source_store_id and not o.removed
          and o.inventory_item_id in (select inventory_item_id from gone)
    )
    select count(*) into v_levels from gone;

    perform esl.settle_by_absence(s.source_system, s.source_store_id, v_as_of);

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
language plpgsql volatile security definer set search_path = '' set statement_timeout = '55s' as $$
declare v_id uuid := (p ->> 'snapshot_id')::uuid; v_abandoned boolean;
begin
    update esl.snapshots set state = 'abandoned', finished_at = clock_timestamp(), reason = p ->> 'reason'
    where id = v_id and state = 'open';
    v_abandoned := found;
    delete from esl.snapshot_variants where snapshot_id = v_id;
    delete from esl.snapshot_levels where snapshot_id = v_id;
    return jsonb_build_object('abandoned', v_abandoned);
end $$;

-- {shop, source} -> {at}: up to when the shop's changes have been read; null: never.
create or replace function public.esl_watermark_get(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('at', (select at from esl.watermarks
        where source_store_id = p #>> '{shop,source_store_id}' and source_system = p #>> '{shop,source_system}'
          and source = p ->> 'source'))
$$;

-- {shop, source, at} -> {at}. It only moves on, but from the future it comes back.
create or replace function public.esl_watermark_move(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with moved as (
        insert into esl.watermarks as w (source_system, source_store_id, source, at)
        values (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}', p ->> 'source', (p ->> 'at')::timestamptz)
        on conflict (source_store_id, source_system, source) do update
        set at = case when w.at > clock_timestamp() + interval '10 minutes' then excluded.at
                      else greatest(w.at, excluded.at) end
        returning at
    ) select jsonb_build_object('at', at) from moved
$$;

-- {shop, after?, limit} -> {products: [product ids]}: of which webhooks did not tell all, in order of id: variants that were
-- only named, or a body without any, or content that nobody has said yet; and those that another shop claims too, or whose
-- inventory item it does.
create or replace function public.esl_missing_variants(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('products', coalesce(jsonb_agg(product_id order by product_id), '[]')) from (
        (select v.product_id from esl.product_versions v
         where v.missing_variants > 0 and not v.deleted and v.product_id > coalesce(p ->> 'after', '')
           and v.source_store_id = p #>> '{shop,source_store_id}' and v.source_system = p #>> '{shop,source_system}'
         order by v.product_id limit (p ->> 'limit')::int)
        union
        (select o.product_id from esl.products o
         where o.unsaid <> '{}' and not o.removed and o.product_id > coalesce(p ->> 'after', '')
           and o.source_store_id = p #>> '{shop,source_store_id}' and o.source_system = p #>> '{shop,source_system}'
         group by o.product_id order by o.product_id limit (p ->> 'limit')::int)
        union
        (select c.product_id from esl.contests k cross join lateral (
             select substring(k.thing from '^product:(.*)$') as product_id
             union
             select o.product_id from esl.products o
             where o.inventory_item_id = substring(k.thing from '^inventory_item:(.*)$') and not o.removed
               and o.source_store_id = p #>> '{shop,source_store_id}' and o.source_system = k.source_system) c
         where k.owner is null and k.source_system = p #>> '{shop,source_system}'
           and p #>> '{shop,source_store_id}' = any (k.shops) and c.product_id > coalesce(p ->> 'after', '')
         order by c.product_id limit (p ->> 'limit')::int)
        order by product_id limit (p ->> 'limit')::int) t
$$;
