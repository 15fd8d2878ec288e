-- What Shopify says: products and stock, merged by version; and what of it still has to become labels.

-- Content has three values: said, said empty (null), and not said (no key). What a source does not say of a variant stays as
-- it is stored; what nobody has ever said is named in esl.products.unsaid.
create or replace function esl.content_columns() returns text[]
language sql immutable as $$
    select array['inventory_item_id', 'title', 'variant_title', 'barcode', 'sku', 'price', 'compare_at_price', 'image_url',
                 'status', 'published_at', 'vendor', 'product_type', 'tags', 'handle', 'option1', 'option2', 'option3',
                 'source_created_at']
$$;

-- A variant's content, to be compared: "10.0" and "10.00" are the same price.
create or replace function esl.content(o esl.products) returns text[]
language sql immutable as $$  -- without a search_path of its own, so that it is inlined
    select array[o.product_id, o.inventory_item_id, o.title, o.variant_title, o.barcode, o.sku, esl.plain_price(o.price),
                 esl.plain_price(o.compare_at_price), o.image_url, o.status, o.published_at, o.vendor, o.product_type,
                 o.tags, o.handle, o.option1, o.option2, o.option3, o.source_created_at]
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

-- All that a variant's row says: with what its product's row (of those by esl.product_key) says for it, unless it has a
-- version of its own.
create or replace function esl.said(p_own jsonb, p_told jsonb) returns jsonb
language sql stable as $$
    select case when p_own ? 'version_at' then p_own else (p_told -> esl.product_key(p_own)) || p_own end
$$;

-- Products and their variants, each at most once, as for esl_variants_merge. A product is applied only when
-- (version_at, triggered_at, body_sha256) is not older than the stored one; whether a row belongs to the version that
-- stands is looked up there. (Row sets from JSON are never joined with each other: the planner takes them for 100 rows and
-- would compare all with all.)
create or replace function esl.merge_products(p_products jsonb, p_variants jsonb, out products_applied int,
                                              out variants_changed int, out variants_removed int)
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    -- What all variants of a product say alike stands in its row, once (see esl.said).
    v_told jsonb := (select jsonb_object_agg(esl.product_key(e), e - array['variant_ids', 'deleted', 'missing_variants', 'step'])
                     from jsonb_array_elements(p_products) e);
begin
    -- A complete read buries what it does not find (esl_snapshot_finish). A product that was not known then, and of which
    -- only now something older is told, is as gone: the order of the two makes no difference.
    insert into esl.product_versions (source_system, source_store_id, product_id, version_at, triggered_at, body_sha256,
                                      deleted)
    select distinct d.source_system, d.source_store_id, d.product_id, r.as_of, r.as_of, '', true
    from jsonb_to_recordset(p_products) as d (
        source_system text, source_store_id text, product_id text, version_at timestamptz, triggered_at timestamptz)
    join (select s.source_system, s.source_store_id, max(s.as_of) as as_of from esl.snapshots s
          where s.state = 'finished' group by 1, 2) r
      on r.source_system = d.source_system and r.source_store_id = d.source_store_id
    where greatest(d.version_at, d.triggered_at) < r.as_of
    on conflict do nothing;

    insert into esl.product_versions as v (source_system, source_store_id, product_id, version_at, triggered_at,
                                           body_sha256, deleted, missing_variants)
    select distinct on (source_system, source_store_id, product_id)
           source_system, source_store_id, product_id, version_at, triggered_at, body_sha256, deleted, missing_variants
    from jsonb_to_recordset(p_products) as d (
        source_system text, source_store_id text, product_id text, version_at timestamptz,
        triggered_at timestamptz, body_sha256 text, deleted boolean, missing_variants int)
    where not exists (
        select from esl.product_versions o
        where o.source_system = d.source_system and o.source_store_id = d.source_store_id
          and o.product_id = d.product_id
          and (o.version_at, o.triggered_at, o.body_sha256) >= (d.version_at, d.triggered_at, d.body_sha256))
    order by source_system, source_store_id, product_id, version_at desc, triggered_at desc,
             body_sha256 collate "C" desc
    on conflict (source_system, source_store_id, product_id) do update
    set version_at = excluded.version_at, triggered_at = excluded.triggered_at,
        body_sha256 = excluded.body_sha256, deleted = excluded.deleted,
        missing_variants = excluded.missing_variants
    where (excluded.version_at, excluded.triggered_at, excluded.body_sha256)
        > (v.version_at, v.triggered_at, v.body_sha256);
    get diagnostics products_applied = row_count;

    -- Unchanged rows are left out before the upsert: it would lock and log each of them.
    insert into esl.products as o (source_system, source_store_id, variant_id, product_id, inventory_item_id, title,
        variant_title, barcode, sku, price, compare_at_price, image_url, status, published_at, vendor, product_type,
        tags, handle, option1, option2, option3, source_created_at, source_updated_at, unsaid, event_ids)
    select distinct on (d.source_system, d.source_store_id, d.variant_id)
           d.source_system, d.source_store_id, d.variant_id, d.product_id, n.inventory_item_id, n.title,
           n.variant_title, n.barcode, n.sku, n.price, n.compare_at_price, n.image_url, n.status, n.published_at,
           n.vendor, n.product_type, n.tags, n.handle, n.option1, n.option2, n.option3, n.source_created_at,
           d.version_at, esl.unsaid(e.said, b), n.event_ids
    from jsonb_array_elements(p_variants) as w (own)
    cross join lateral (select esl.said(w.own, v_told) as said offset 0) e  -- said once a row, not at each use
    cross join lateral jsonb_to_record(e.said) as d (
        source_system text, source_store_id text, product_id text, variant_id text, version_at timestamptz,
        triggered_at timestamptz, body_sha256 text)
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
        source_created_at = excluded.source_created_at, source_updated_at = excluded.source_updated_at,
        unsaid = excluded.unsaid, event_ids = excluded.event_ids, removed = false, revision = nextval('esl.revision'),
        due = true, changed_at = now()
    where excluded.source_updated_at >= o.source_updated_at;
    get diagnostics variants_changed = row_count;

    -- Variants beyond the first 100 are not in the body, but what they share with their product is: a draft's labels
    -- go, all of them.
    update esl.products o
    set title = n.title, handle = n.handle, status = n.status, published_at = n.published_at, vendor = n.vendor,
        product_type = n.product_type, tags = n.tags, unsaid = esl.unsaid(e.said, b), source_updated_at = a.version_at,
        event_ids = n.event_ids, revision = nextval('esl.revision'), due = true, changed_at = now()
    from jsonb_array_elements(p_products) as e (said)
    cross join lateral jsonb_to_record(e.said) as a (
        source_system text, source_store_id text, product_id text, version_at timestamptz,
        triggered_at timestamptz, body_sha256 text, deleted boolean, missing_variants int, variant_ids jsonb)
    join esl.product_versions v
      on v.source_system = a.source_system and v.source_store_id = a.source_store_id and v.product_id = a.product_id
     and (v.version_at, v.triggered_at, v.body_sha256) = (a.version_at, a.triggered_at, a.body_sha256)
    join esl.products b
      on b.source_system = a.source_system and b.source_store_id = a.source_store_id and b.product_id = a.product_id
    cross join lateral jsonb_populate_record(b, e.said) n
    where o.source_system = b.source_system and o.source_store_id = b.source_store_id and o.variant_id = b.variant_id
      and not b.removed and not a.deleted and (a.missing_variants > 0 or a.variant_ids is null)
      and (esl.content(n) is distinct from esl.content(b) or esl.unsaid(e.said, b) <> b.unsaid);

    -- A variant that an applied version no longer names is gone; all of them when the product is deleted.
    update esl.products o
    set removed = true, source_updated_at = a.version_at, event_ids = a.event_ids,
        revision = nextval('esl.revision'), due = true, changed_at = now()
    from jsonb_to_recordset(p_products) as a (
        source_system text, source_store_id text, product_id text, version_at timestamptz,
        triggered_at timestamptz, body_sha256 text, deleted boolean, variant_ids text[], event_ids bigint[])
    join esl.product_versions v
      on v.source_system = a.source_system and v.source_store_id = a.source_store_id and v.product_id = a.product_id
     and (v.version_at, v.triggered_at, v.body_sha256) = (a.version_at, a.triggered_at, a.body_sha256)
    where o.source_system = a.source_system and o.source_store_id = a.source_store_id
      and o.product_id = a.product_id and not o.removed
      and (a.deleted or o.variant_id <> all (a.variant_ids));
    get diagnostics variants_removed = row_count;
end $$;

-- Stock, at most one statement per level after this; how many levels it changed. Their versions are those of products.
-- gone: the item is no longer stocked there.
create or replace function esl.merge_levels(p_levels jsonb) returns int
language plpgsql volatile set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_levels int;
begin
    -- As with products: what a complete read of the stock did not find stays gone for what is older and comes later.
    insert into esl.inventory_levels (source_system, source_store_id, inventory_item_id, location_id, gone, updated_at,
                                      triggered_at)
    select distinct d.source_system, d.source_store_id, d.inventory_item_id, d.location_id, true, r.as_of, r.as_of
    from jsonb_to_recordset(p_levels) as d (
        source_system text, source_store_id text, inventory_item_id text, location_id text, updated_at timestamptz,
        triggered_at timestamptz)
    join (select s.source_system, s.source_store_id, max(s.stock_as_of) as as_of from esl.snapshots s
          where s.state = 'finished' group by 1, 2) r
      on r.source_system = d.source_system and r.source_store_id = d.source_store_id
    where greatest(d.updated_at, d.triggered_at) < r.as_of
    on conflict do nothing;

    with incoming as (
        select distinct on (source_system, source_store_id, inventory_item_id, location_id)
               source_system, source_store_id, inventory_item_id, location_id, available, updated_at,
               coalesce(triggered_at, updated_at) as triggered_at, coalesce(body_sha256, '') as body_sha256,
               coalesce(gone, false) as gone
        from jsonb_to_recordset(p_levels) as d (
            source_system text, source_store_id text, inventory_item_id text, location_id text, available bigint,
            gone boolean, updated_at timestamptz, triggered_at timestamptz, body_sha256 text)
        order by source_system, source_store_id, inventory_item_id, location_id, updated_at desc,
                 coalesce(triggered_at, updated_at) desc, body_sha256 collate "C" desc
    ), stored as (
        insert into esl.inventory_levels as o (source_system, source_store_id, inventory_item_id, location_id, available,
                                               updated_at, triggered_at, body_sha256, gone)
        select * from incoming
        on conflict (source_system, source_store_id, inventory_item_id, location_id) do update
        set available = excluded.available, updated_at = excluded.updated_at, triggered_at = excluded.triggered_at,
            body_sha256 = excluded.body_sha256, gone = excluded.gone
        where (excluded.updated_at, excluded.triggered_at, excluded.body_sha256)
            > (o.updated_at, o.triggered_at, o.body_sha256)
        returning source_system, source_store_id, inventory_item_id
    ), marked as (
        update esl.products o set due = true, revision = nextval('esl.revision')
        from stored s
        where o.source_system = s.source_system and o.source_store_id = s.source_store_id
          and o.inventory_item_id = s.inventory_item_id and not o.removed
    )
    select count(*) into v_levels from stored;
    return v_levels;
end $$;

-- Rows of one step (see esl_variants_merge).
create or replace function esl.of_step(p_rows jsonb, p_step int) returns jsonb
language sql immutable set search_path = '' as $$
    select coalesce(jsonb_agg(d), '[]') from jsonb_array_elements(p_rows) d
    where coalesce((d ->> 'step')::int, 0) = p_step
$$;

-- {claim_id, products: [{source_system, source_store_id, product_id, version_at, triggered_at, body_sha256, deleted,
--   missing_variants, variant_ids: [...], event_ids: [...], title, handle, status, published_at, vendor, product_type, tags,
--   step?}],
--  variants: [{source_system, source_store_id, product_id, variant_id, ..., step?, and unless its product's row says all
--   of this: version_at, triggered_at, body_sha256, event_ids, ...}],
--  levels: [{source_system, source_store_id, inventory_item_id, location_id, available, gone?, updated_at, triggered_at,
--   body_sha256}],
--  details: [{source_system, source_store_id, variant_id, gift_card, unit_price, unit_price_measurement}],
--  shops: [{source_system, source_store_id, currency, taxes_included, time_zone, updated_at}],
--  events: [{id, state, reason, product_id?, inventory_item_id?, location_id?, version_at?, triggered_at?, body_sha256?}]}
-- -> {products_applied, variants_changed, variants_removed, levels_changed, superseded, replays: [{id, reason}]}
-- replays: events that claim what is another shop's; they are unusable, and nothing of them is stored (see esl.suspects).
-- Without claim_id: a read of the shop through its own API, which settles what is contested.
-- Content that has no key was not said (see esl.content_columns). step: an older version of the same product that says what
-- a newer one leaves out comes in an earlier step. variant_ids null: the body does not say which variants there are, so none
-- is removed. One transaction: the inbox events are finished exactly when their effect is stored.
create or replace function public.esl_variants_merge(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_applied int := 0; v_changed int := 0; v_removed int := 0; v_levels int; v_superseded int; v_last int;
    v_shop record;
    v_suspected jsonb;
begin
    select a.rest, a.suspected into p, v_suspected from esl.set_aside(p) a;

    v_last := (select coalesce(max((d ->> 'step')::int), 0) from jsonb_array_elements(p -> 'products') d);
    for v_step in 0 .. v_last loop
        select v_applied + m.products_applied, v_changed + m.variants_changed, v_removed + m.variants_removed
        into v_applied, v_changed, v_removed
        from esl.merge_products(case when v_last = 0 then p -> 'products' else esl.of_step(p -> 'products', v_step) end,
                                case when v_last = 0 then p -> 'variants' else esl.of_step(p -> 'variants', v_step) end) m;
    end loop;
    v_levels := esl.merge_levels(p -> 'levels');
    if p ->> 'claim_id' is null then
        perform esl.settle_by_read(p);
    end if;

    with stored as (
        insert into esl.variant_details as o
        select distinct on (source_system, source_store_id, variant_id)
               source_system, source_store_id, variant_id, gift_card, unit_price, unit_price_measurement
        from jsonb_to_recordset(p -> 'details') as d (
            source_system text, source_store_id text, variant_id text, gift_card boolean, unit_price text,
            unit_price_measurement jsonb)
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
    update esl.products o set due = true, revision = nextval('esl.revision')
    from stored s
    where o.source_system = s.source_system and o.source_store_id = s.source_store_id
      and o.variant_id = s.variant_id and not o.due;

    -- Another currency or tax: every label of the shop is judged again.
    for v_shop in
        insert into esl.shops as o (source_system, source_store_id, currency, taxes_included, time_zone, updated_at)
        select source_system, source_store_id, currency, taxes_included, time_zone, updated_at
        from jsonb_to_recordset(p -> 'shops') as d (
            source_system text, source_store_id text, currency text, taxes_included boolean, time_zone text,
            updated_at timestamptz)
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
        perform esl.evaluate_again(v_shop.source_system, v_shop.source_store_id);
    end loop;

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
            reason = e.reason, finished_at = clock_timestamp(), claim_id = null, lease_until = null
        from jsonb_to_recordset(p -> 'events') as e (
            id bigint, state text, reason text, product_id text, inventory_item_id text, location_id text,
            version_at timestamptz, triggered_at timestamptz, body_sha256 text)
        where i.id = e.id and i.claim_id = (p ->> 'claim_id')::uuid
        returning i.state
    )
    select count(*) filter (where state = 'superseded') into v_superseded from finished;

    return jsonb_build_object('products_applied', v_applied, 'variants_changed', v_changed,
        'variants_removed', v_removed, 'levels_changed', v_levels, 'superseded', v_superseded,
        'replays', coalesce(v_suspected, '[]'));
end $$;

-- The lowest price that a variant's label showed in the 30 days before its present price; null while there are not 30
-- days of prices (Directive 98/6/EC, Art. 6a).
create or replace function esl.prior_price(p_mapping uuid, p_variant text, p_price numeric) returns numeric
language sql stable set search_path = '' as $$
    with shown as (
        select price, since, lead(since) over (order by since) as until from esl.price_history
        where mapping_id = p_mapping and variant_id = p_variant
    ), reduction as (
        select coalesce((select since from shown where until is null and price = p_price), now()) as at
    )
    select min(s.price) from shown s, reduction r
    -- In hours: a day of a session in another time zone has 23 or 25 where its clocks change.
    where s.since < r.at and coalesce(s.until, r.at) > r.at - interval '720 hours'
      and exists (select from shown o where o.since <= r.at - interval '720 hours')
$$;

-- About how long a variant's row is as text. (Long texts stand apart from their row: their length is known unread.)
create or replace function esl.text_bytes(o esl.products) returns bigint
language sql stable as $$
    select 1000 + octet_length(concat(o.title, o.variant_title, o.barcode, o.sku, o.vendor, o.product_type, o.handle,
                                      o.option1, o.option2, o.option3))
           + coalesce(octet_length(o.tags), 0) + coalesce(octet_length(o.image_url), 0)
$$;

-- {limit, after, max_bytes?, shop?} -> {variants: [...], mappings: [...]}: variants that are not evaluated yet, as many of one
-- shop as of another and of each its oldest changes, max_bytes of text together or one variant, with the active mappings of their shops (currency and taxes_included as the shop
-- says). Nothing is claimed: evaluating twice is harmless (see esl_labels_stage). after: a revision, to page through one shop.
-- unsaid: columns with a space between, or null. history: {mapping id: {shown, prior}}, the price on the label and, where the
-- policy asks for it, the lowest of 30 days.
create or replace function public.esl_variants_due(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with shops as (
        select distinct m.source_system, m.source_store_id from esl.store_mappings m
        where m.is_active and (p -> 'shop' is null
           or (m.source_system, m.source_store_id) = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
    ), waiting as materialized (  -- shops where any is, and how many such shops there are
        select s.*, count(*) over () as shops from shops s
        where exists (select from esl.products o
                      where o.source_store_id = s.source_store_id and o.source_system = s.source_system and o.due)
    ), due as (
        select d.* from waiting w cross join lateral (
            select o.*, esl.text_bytes(o) as bytes, row_number() over (order by o.revision) as turn from esl.products o
            where o.source_store_id = w.source_store_id and o.source_system = w.source_system and o.due
              and o.revision > (p ->> 'after')::bigint
            order by o.revision limit (2 * (p ->> 'limit')::int + w.shops - 1) / w.shops) d
        order by d.turn, d.revision limit (p ->> 'limit')::int
    ), page as (
        select * from (select d.*, sum(d.bytes) over (order by d.turn, d.revision) - d.bytes as before from due d) t
        where t.before < coalesce((p ->> 'max_bytes')::bigint, 8000000)
    )
    select jsonb_build_object(
        'variants', coalesce((
            select jsonb_agg(to_jsonb(d) - '{due,turn,bytes,before}'::text[] || jsonb_build_object(
                'unsaid', nullif(array_to_string(d.unsaid, ' '), ''),
                'stock', (
                    select jsonb_object_agg(l.location_id, l.available) from esl.inventory_levels l
                    where l.source_system = d.source_system and l.source_store_id = d.source_store_id
                      and l.inventory_item_id = d.inventory_item_id and not l.gone),
                'problem', r.problem,
                'gift_card', coalesce(x.gift_card, false),
                'unit_price', x.unit_price,
                'unit_price_measurement', x.unit_price_measurement,
                'history', (
                    select jsonb_object_agg(m.id, jsonb_build_object(
                        'shown', s.label ->> 'pp',
                        'prior', case when m.settings ->> 'show_compare_at' = 'if_prior_30d_ok'
                                       and d.compare_at_price is not null and d.price ~ '^[0-9]{1,9}([.][0-9]{1,4})?$'
                                 then esl.prior_price(m.id, d.variant_id, d.price::numeric)::text end))
                    from esl.store_mappings m
                    left join lateral (select h.label from esl.hipoink_products h
                                       where h.variant_id = d.variant_id and h.mapping_id = m.id
                                       order by h.accepted_at desc limit 1) s on true
                    where m.is_active and m.source_system = d.source_system
                      and m.source_store_id = d.source_store_id
                      and (s.label is not null or m.settings ->> 'show_compare_at' = 'if_prior_30d_ok')))
                order by d.revision)
            from page d
            left join esl.variant_details x
              on x.source_system = d.source_system and x.source_store_id = d.source_store_id
             and x.variant_id = d.variant_id
            left join esl.row_problems r
              on r.source_system = d.source_system and r.source_store_id = d.source_store_id
             and r.variant_id = d.variant_id), '[]'),
        'mappings', coalesce((
            select jsonb_agg(to_jsonb(m) || jsonb_build_object(
                       'currency', s.currency, 'taxes_included', s.taxes_included) order by m.created_at, m.id)
            from esl.store_mappings m
            left join esl.shops s
              on s.source_system = m.source_system and s.source_store_id = m.source_store_id
            where m.is_active and exists (select from page d
                where d.source_system = m.source_system and d.source_store_id = m.source_store_id)), '[]'))
$$;
