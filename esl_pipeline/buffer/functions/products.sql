-- What sources say of products and their stock, merged by version. (Row sets from JSON are never joined with each
-- other: the planner takes them for 100 rows and would compare all with all.)

-- Content has three values: said, said empty (null), and not said (no key). What a source does not say of a variant
-- stays as it is stored; what nobody has ever said is named in esl.products.unsaid, and fetched. So what only some
-- sources ever say (origin) is not named here.
create or replace function esl.content_columns() returns text[]
language sql immutable as $$
    select array['inventory_item_id', 'title', 'variant_title', 'barcode', 'sku', 'price', 'compare_at_price',
                 'image_url', 'status', 'published_at', 'vendor', 'product_type', 'tags', 'handle', 'option1',
                 'option2', 'option3', 'source_created_at']
$$;

-- A variant's content, to be compared: "10.0" and "10.00" are the same price.
create or replace function esl.content(o esl.products) returns text[]
language sql immutable as $$  -- without a search_path of its own, so that it is inlined
    select array[o.product_id, o.inventory_item_id, o.title, o.variant_title, o.barcode, o.sku,
                 esl.plain_price(o.price), esl.plain_price(o.compare_at_price), o.image_url, o.status, o.published_at,
                 o.vendor, o.product_type, o.tags, o.handle, o.option1, o.option2, o.option3, o.source_created_at,
                 o.origin]
$$;

create or replace function esl.plain_price(p_price text) returns text
language sql immutable as $$
    select case when p_price ~ '^[0-9]{1,12}([.][0-9]{1,6})?$' then trim_scale(p_price::numeric)::text else p_price end
$$;

-- What is still not said of a variant (null: not stored yet) when a source says this.
create or replace function esl.unsaid(p_said jsonb, o esl.products) returns text[]
language sql immutable as $$
    select case when o.unsaid = '{}' or p_said ?& esl.content_columns() then '{}'
                else esl.still_unsaid(p_said, coalesce(o.unsaid, esl.content_columns())) end
$$;

create or replace function esl.still_unsaid(p_said jsonb, p_unsaid text[]) returns text[]
language sql immutable set search_path = '' as $$
    select coalesce(array_agg(c order by c), '{}') from unnest(p_unsaid) c where not p_said ? c
$$;

create or replace function esl.product_key(p_row jsonb) returns text
language sql stable as $$
    select concat_ws(' ', p_row ->> 'source_system', p_row ->> 'source_store_id', p_row ->> 'product_id')
$$;

-- What all variants of a product say alike stands in its row, once: by esl.product_key.
create or replace function esl.told(p_products jsonb) returns jsonb
language sql immutable set search_path = '' as $$
    select jsonb_object_agg(esl.product_key(e), e - array['variant_ids', 'deleted', 'missing_variants', 'step'])
    from jsonb_array_elements(p_products) e
$$;

-- All that a variant's row says: with what its product's row says for it (esl.told), unless it has a version of its
-- own.
create or replace function esl.said(p_own jsonb, p_told jsonb) returns jsonb
language sql stable as $$
    select case when p_own ? 'version_at' then p_own else (p_told -> esl.product_key(p_own)) || p_own end
$$;

-- When the last complete read of each shop began, and that of its stock.
create or replace function esl.last_reads()
returns table (source_system text, source_store_id text, as_of timestamptz, stock_as_of timestamptz)
language sql stable as $$  -- inlined as well
    select s.source_system, s.source_store_id, max(s.as_of), max(s.stock_as_of) from esl.snapshots s
    where s.state = 'finished' group by 1, 2
$$;

-- A complete read buries what it does not find (esl_snapshot_finish). A product that was not known then, and of which
-- only now something older is told, is as gone: the order of the two makes no difference.
create or replace function esl.bury_unread_products(p_products jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.product_versions (source_system, source_store_id, product_id, version_at, triggered_at, body_sha256,
                                      deleted)
    select distinct d.source_system, d.source_store_id, d.product_id, r.as_of, r.as_of, '', true
    from jsonb_populate_recordset(null::esl.product_row, p_products) d
    join esl.last_reads() r on r.source_system = d.source_system and r.source_store_id = d.source_store_id
    where greatest(d.version_at, d.triggered_at) < r.as_of
    on conflict do nothing;
end $$;

-- The versions that are newer than the stored ones; how many. One is applied only when (version_at, triggered_at,
-- body_sha256) is not older than the stored one; whether a row belongs to the version that stands is looked up there.
create or replace function esl.merge_versions(p_products jsonb) returns int
language plpgsql volatile set search_path = '' as $$
declare v_applied int;
begin
    insert into esl.product_versions as v (source_system, source_store_id, product_id, version_at, triggered_at,
                                           body_sha256, deleted, missing_variants)
    select distinct on (source_system, source_store_id, product_id)
           source_system, source_store_id, product_id, version_at, triggered_at, body_sha256, deleted, missing_variants
    from jsonb_populate_recordset(null::esl.product_row, p_products) d
    where not exists (
        select from esl.product_versions o
        where o.source_system = d.source_system and o.source_store_id = d.source_store_id
          and o.product_id = d.product_id
          and (o.version_at, o.triggered_at, o.body_sha256) >= (d.version_at, d.triggered_at, d.body_sha256))
    order by source_system, source_store_id, product_id, version_at desc, triggered_at desc,
             body_sha256 collate "C" desc
    on conflict (source_system, source_store_id, product_id) do update
    set version_at = excluded.version_at, triggered_at = excluded.triggered_at, body_sha256 = excluded.body_sha256,
        deleted = excluded.deleted, missing_variants = excluded.missing_variants
    where (excluded.version_at, excluded.triggered_at, excluded.body_sha256)
        > (v.version_at, v.triggered_at, v.body_sha256);
    get diagnostics v_applied = row_count;
    return v_applied;
end $$;

-- Why a variant is evaluated of which something new is known: it was in deliveries, or a read has found it.
create or replace function esl.cause_of_news(p_events bigint[]) returns text
language sql immutable as $$
    select case when p_events <> '{}' then 'new version' else 'read' end
$$;

-- The variants of versions that stand, with what their products' rows tell; how many have changed. Unchanged rows are
-- left out before the upsert: it would lock and log each of them.
create or replace function esl.merge_variants(p_variants jsonb, p_told jsonb) returns int
language plpgsql volatile set search_path = '' as $$
declare v_changed int;
begin
    insert into esl.products as o (source_system, source_store_id, variant_id, product_id, inventory_item_id, title,
        variant_title, barcode, sku, price, compare_at_price, image_url, status, published_at, vendor, product_type,
        tags, handle, option1, option2, option3, source_created_at, origin, source_updated_at, unsaid, event_ids,
        cause)
    select distinct on (d.source_system, d.source_store_id, d.variant_id)
           d.source_system, d.source_store_id, d.variant_id, d.product_id, n.inventory_item_id, n.title,
           n.variant_title, n.barcode, n.sku, n.price, n.compare_at_price, n.image_url, n.status, n.published_at,
           n.vendor, n.product_type, n.tags, n.handle, n.option1, n.option2, n.option3, n.source_created_at,
           n.origin, d.version_at, esl.unsaid(e.said, b), n.event_ids, esl.cause_of_news(n.event_ids)
    from jsonb_array_elements(p_variants) as w (own)
    cross join lateral (select esl.said(w.own, p_told) as said offset 0) e  -- said once a row, not at each use
    cross join lateral jsonb_populate_record(null::esl.variant_row, e.said) d
    join esl.product_versions v
      on v.source_system = d.source_system and v.source_store_id = d.source_store_id and v.product_id = d.product_id
     and (v.version_at, v.triggered_at, v.body_sha256) = (d.version_at, d.triggered_at, d.body_sha256)
    left join esl.products b
      on b.source_system = d.source_system and b.source_store_id = d.source_store_id and b.variant_id = d.variant_id
    cross join lateral jsonb_populate_record(b, e.said) n
    where b.variant_id is null or b.removed or esl.content(n) is distinct from esl.content(b)
       or esl.unsaid(e.said, b) <> b.unsaid
    order by d.source_system, d.source_store_id, d.variant_id, d.version_at desc
    on conflict (source_system, source_store_id, variant_id) do update
    set product_id = excluded.product_id, inventory_item_id = excluded.inventory_item_id, title = excluded.title,
        variant_title = excluded.variant_title, barcode = excluded.barcode, sku = excluded.sku,
        price = excluded.price, compare_at_price = excluded.compare_at_price, image_url = excluded.image_url,
        status = excluded.status, published_at = excluded.published_at, vendor = excluded.vendor,
        product_type = excluded.product_type, tags = excluded.tags, handle = excluded.handle,
        option1 = excluded.option1, option2 = excluded.option2, option3 = excluded.option3,
        source_created_at = excluded.source_created_at, origin = excluded.origin,
        source_updated_at = excluded.source_updated_at,
        unsaid = excluded.unsaid, event_ids = excluded.event_ids, cause = excluded.cause, removed = false,
        revision = nextval('esl.revision'), due = true, changed_at = now()
    where excluded.source_updated_at >= o.source_updated_at;
    get diagnostics v_changed = row_count;
    return v_changed;
end $$;

-- Variants that are not in the body (of Shopify's those beyond the first 100): what they share with their product is,
-- so a draft's labels go, all of them.
create or replace function esl.merge_unnamed(p_products jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    update esl.products o
    set title = n.title, handle = n.handle, status = n.status, published_at = n.published_at, vendor = n.vendor,
        product_type = n.product_type, tags = n.tags, origin = n.origin, unsaid = esl.unsaid(e.said, b),
        source_updated_at = a.version_at, event_ids = n.event_ids, cause = esl.cause_of_news(n.event_ids),
        revision = nextval('esl.revision'), due = true, changed_at = now()
    from jsonb_array_elements(p_products) as e (said)
    cross join lateral jsonb_populate_record(null::esl.product_row, e.said) a
    join esl.product_versions v
      on v.source_system = a.source_system and v.source_store_id = a.source_store_id and v.product_id = a.product_id
     and (v.version_at, v.triggered_at, v.body_sha256) = (a.version_at, a.triggered_at, a.body_sha256)
    join esl.products b
      on b.source_system = a.source_system and b.source_store_id = a.source_store_id and b.product_id = a.product_id
    cross join lateral jsonb_populate_record(b, e.said) n
    where o.source_system = b.source_system and o.source_store_id = b.source_store_id and o.variant_id = b.variant_id
      and not b.removed and not a.deleted and (a.missing_variants > 0 or a.variant_ids is null)
      and (esl.content(n) is distinct from esl.content(b) or esl.unsaid(e.said, b) <> b.unsaid);
end $$;

-- A variant that a version that stands no longer names is gone, all of them when the product is deleted; how many.
create or replace function esl.remove_variants(p_products jsonb) returns int
language plpgsql volatile set search_path = '' as $$
declare v_removed int;
begin
    update esl.products o
    set removed = true, source_updated_at = a.version_at, event_ids = a.event_ids,
        cause = esl.cause_of_news(a.event_ids),
        revision = nextval('esl.revision'), due = true, changed_at = now()
    from jsonb_populate_recordset(null::esl.product_row, p_products) a
    join esl.product_versions v
      on v.source_system = a.source_system and v.source_store_id = a.source_store_id and v.product_id = a.product_id
     and (v.version_at, v.triggered_at, v.body_sha256) = (a.version_at, a.triggered_at, a.body_sha256)
    where o.source_system = a.source_system and o.source_store_id = a.source_store_id
      and o.product_id = a.product_id and not o.removed
      and (a.deleted or o.variant_id <> all (a.variant_ids));
    get diagnostics v_removed = row_count;
    return v_removed;
end $$;

-- Rows of one step (see esl_variants_merge).
create or replace function esl.of_step(p_rows jsonb, p_step int) returns jsonb
language sql immutable set search_path = '' as $$
    select coalesce(jsonb_agg(d), '[]') from jsonb_array_elements(p_rows) d
    where coalesce((d ->> 'step')::int, 0) = p_step
$$;

-- Products and their variants, each at most once a step, as for esl_variants_merge.
create or replace function esl.merge_products(p_products jsonb, p_variants jsonb, out products_applied int,
                                              out variants_changed int, out variants_removed int)
language plpgsql volatile set search_path = '' as $$
declare
    v_last int := (select coalesce(max((d ->> 'step')::int), 0) from jsonb_array_elements(p_products) d);
    v_products jsonb := p_products; v_variants jsonb := p_variants;
begin
    products_applied := 0; variants_changed := 0; variants_removed := 0;
    for v_step in 0 .. v_last loop
        if v_last > 0 then
            v_products := esl.of_step(p_products, v_step);
            v_variants := esl.of_step(p_variants, v_step);
        end if;
        perform esl.bury_unread_products(v_products);
        products_applied := products_applied + esl.merge_versions(v_products);
        variants_changed := variants_changed + esl.merge_variants(v_variants, esl.told(v_products));
        perform esl.merge_unnamed(v_products);
        variants_removed := variants_removed + esl.remove_variants(v_products);
    end loop;
end $$;

-- As with products: what a complete read of the stock did not find stays gone for what is older and comes later.
create or replace function esl.bury_unread_levels(p_levels jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    insert into esl.inventory_levels (source_system, source_store_id, inventory_item_id, location_id, gone, updated_at,
                                      triggered_at)
    select distinct d.source_system, d.source_store_id, d.inventory_item_id, d.location_id, true, r.stock_as_of,
           r.stock_as_of
    from jsonb_populate_recordset(null::esl.inventory_levels, p_levels) d
    join esl.last_reads() r on r.source_system = d.source_system and r.source_store_id = d.source_store_id
    where greatest(d.updated_at, d.triggered_at) < r.stock_as_of
    on conflict do nothing;
end $$;

-- Stock, at most one statement per level after this; how many levels it changed. Their versions are those of products.
-- gone: the item is no longer stocked there.
create or replace function esl.merge_levels(p_levels jsonb, p_events jsonb) returns int
language plpgsql volatile set search_path = '' as $$
declare v_levels int;
begin
    perform esl.bury_unread_levels(p_levels);

    with incoming as (
        select distinct on (source_system, source_store_id, inventory_item_id, location_id)
               source_system, source_store_id, inventory_item_id, location_id, available, updated_at,
               coalesce(triggered_at, updated_at) as triggered_at, coalesce(body_sha256, '') as body_sha256,
               coalesce(gone, false) as gone
        from jsonb_populate_recordset(null::esl.inventory_levels, p_levels) d
        order by source_system, source_store_id, inventory_item_id, location_id, updated_at desc,
                 coalesce(triggered_at, updated_at) desc, d.body_sha256 desc
    ), stored as (
        insert into esl.inventory_levels as o select * from incoming
        on conflict (source_system, source_store_id, inventory_item_id, location_id) do update
        set available = excluded.available, updated_at = excluded.updated_at, triggered_at = excluded.triggered_at,
            body_sha256 = excluded.body_sha256, gone = excluded.gone
        where (excluded.updated_at, excluded.triggered_at, excluded.body_sha256)
            > (o.updated_at, o.triggered_at, o.body_sha256)
        returning source_system, source_store_id, inventory_item_id
    ), marked as (
        update esl.products o
        set due = true, revision = nextval('esl.revision'), stock_event_ids = e.ids, cause = esl.cause_of_news(e.ids)
        from stored s cross join lateral (
            select coalesce(array_agg(e.id order by e.id), '{}') as ids
            from jsonb_populate_recordset(null::esl.event_row, p_events) e
            where e.inventory_item_id = s.inventory_item_id) e
        where o.source_system = s.source_system and o.source_store_id = s.source_store_id
          and o.inventory_item_id = s.inventory_item_id and not o.removed
    )
    select count(*) into v_levels from stored;
    return v_levels;
end $$;

-- What only a source's API says of variants; they are evaluated again where it has changed.
create or replace function esl.merge_details(p_details jsonb) returns void
language plpgsql volatile set search_path = '' as $$
begin
    with stored as (
        insert into esl.variant_details as o
        select distinct on (source_system, source_store_id, variant_id) d.*
        from jsonb_populate_recordset(null::esl.variant_details, p_details) d
        where not exists (
            select from esl.variant_details o
            where o.source_system = d.source_system and o.source_store_id = d.source_store_id
              and o.variant_id = d.variant_id and (o.gift_card, o.unit_price, o.unit_price_measurement)
                  is not distinct from (d.gift_card, d.unit_price, d.unit_price_measurement))
        on conflict (source_system, source_store_id, variant_id) do update
        set gift_card = excluded.gift_card, unit_price = excluded.unit_price,
            unit_price_measurement = excluded.unit_price_measurement
        returning source_system, source_store_id, variant_id
    )
    update esl.products o set due = true, revision = nextval('esl.revision'), cause = 'read'
    from stored s
    where o.source_system = s.source_system and o.source_store_id = s.source_store_id
      and o.variant_id = s.variant_id and not o.due;
end $$;

-- What a shop's prices are. Another currency or tax: every label of the shop is judged again.
create or replace function esl.merge_shops(p_shops jsonb) returns void
language plpgsql volatile set search_path = '' as $$
declare v_shop record;
begin
    for v_shop in
        insert into esl.shops as o
        select d.* from jsonb_populate_recordset(null::esl.shops, p_shops) d
        where not exists (
            select from esl.shops o
            where o.source_system = d.source_system and o.source_store_id = d.source_store_id
              and (o.updated_at > d.updated_at or (o.currency, o.taxes_included, o.time_zone)
                  is not distinct from (d.currency, d.taxes_included, d.time_zone)))
        on conflict (source_system, source_store_id) do update
        set currency = excluded.currency, taxes_included = excluded.taxes_included, time_zone = excluded.time_zone,
            updated_at = excluded.updated_at
        returning source_system, source_store_id
    loop
        perform esl.evaluate_again(v_shop.source_system, v_shop.source_store_id, 'read');
    end loop;
end $$;

-- The claim's events end as they say, or superseded where something newer is stored; how many were superseded.
create or replace function esl.finish_events(p_claim uuid, p_events jsonb) returns int
language plpgsql volatile set search_path = '' as $$
declare v_superseded int;
begin
    with finished as (
        update esl.webhook_inbox i
        set state = case
                when e.state = 'done' and (
                    exists (select from esl.product_versions v
                            where v.source_system = i.source_system and v.source_store_id = i.source_store_id
                              and v.product_id = e.product_id
                              and (v.version_at, v.triggered_at, v.body_sha256)
                                > (e.version_at, e.triggered_at, e.body_sha256))
                    or exists (select from esl.inventory_levels l
                               where l.source_system = i.source_system and l.source_store_id = i.source_store_id
                                 and l.inventory_item_id = e.inventory_item_id and l.location_id = e.location_id
                                 and (l.updated_at, l.triggered_at, l.body_sha256)
                                   > (e.version_at, e.triggered_at, e.body_sha256)))
                then 'superseded' else e.state end,
            reason = e.reason, thing = coalesce('product:' || e.product_id, 'inventory_item:' || e.inventory_item_id),
            finished_at = clock_timestamp(), claim_id = null, lease_until = null
        from jsonb_populate_recordset(null::esl.event_row, p_events) e
        where i.id = e.id and i.claim_id = p_claim
        returning i.state
    )
    select count(*) filter (where state = 'superseded') into v_superseded from finished;
    return v_superseded;
end $$;

-- {claim_id, products: [{source_system, source_store_id, product_id, version_at, triggered_at, body_sha256, deleted,
--   missing_variants, variant_ids: [...], event_ids: [...], title, handle, status, published_at, vendor, product_type,
--   tags, step?}],
--  variants: [{source_system, source_store_id, product_id, variant_id, ..., step?, and unless its product's row says
--   all of this: version_at, triggered_at, body_sha256, event_ids, ...}],
--  levels: [{source_system, source_store_id, inventory_item_id, location_id, available, gone?, updated_at,
--   triggered_at, body_sha256}],
--  details: [{source_system, source_store_id, variant_id, gift_card, unit_price, unit_price_measurement}],
--  shops: [{source_system, source_store_id, currency, taxes_included, time_zone, updated_at}],
--  events: [{id, state, reason, product_id?, inventory_item_id?, location_id?, version_at?, triggered_at?,
--   body_sha256?}]}
-- -> {products_applied, variants_changed, variants_removed, levels_changed, superseded, replays: [{id, reason}]}
-- replays: events that claim what is another shop's; they are unusable, and nothing of them is stored (esl.suspects).
-- Without claim_id: a read of the shop through its own API, which settles what is contested.
-- Content that has no key was not said (see esl.content_columns). step: an older version of the same product that says
-- what a newer one leaves out comes in an earlier step. variant_ids null: the body does not say which variants there
-- are, so none is removed. One transaction: the inbox events are finished exactly when their effect is stored.
create or replace function public.esl_variants_merge(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_generic_plan as $$
declare v_merged record; v_levels int; v_superseded int; v_suspected jsonb;
begin
    perform esl.know_what_grew();
    select a.rest, a.suspected into p, v_suspected from esl.set_aside(p) a;
    v_merged := esl.merge_products(p -> 'products', p -> 'variants');
    v_levels := esl.merge_levels(p -> 'levels', p -> 'events');
    if p ->> 'claim_id' is null then
        perform esl.settle_by_read(p);
    end if;
    perform esl.merge_details(p -> 'details');
    perform esl.merge_shops(p -> 'shops');
    v_superseded := esl.finish_events((p ->> 'claim_id')::uuid, p -> 'events');
    if p ->> 'claim_id' is not null then
        perform esl.measure_unchanged(p -> 'variants');
    end if;
    return to_jsonb(v_merged) || jsonb_build_object(
        'levels_changed', v_levels, 'superseded', v_superseded, 'replays', coalesce(v_suspected, '[]'));
end $$;
