-- What Shopify says: products and stock, merged by version; and what of it still has to become labels.

-- {claim_id, products: [{source_system, source_store_id, product_id, version_at, triggered_at, body_sha256, deleted,
--   missing_variants, variant_ids: [...], event_ids: [...], title, status, published_at, vendor, product_type, tags}],
--  variants: [{source_system, source_store_id, product_id, variant_id, ..., content_hash, version_at, triggered_at,
--   body_sha256, event_ids}],
--  levels: [{source_system, source_store_id, inventory_item_id, location_id, available, updated_at}],
--  events: [{id, state, reason, product_id?, version_at?, triggered_at?, body_sha256?}]}
-- -> {products_applied, variants_changed, variants_removed, levels_changed, superseded}
-- variant_ids null: the body does not say which variants there are, so none is removed.
-- One transaction: the inbox events are finished exactly when their effect is stored.
-- A product is applied only when (version_at, triggered_at, body_sha256) is not older than the stored one; whether a
-- row belongs to the version that stands is looked up there. (Row sets from JSON are never joined with each other:
-- the planner takes them for 100 rows and would compare all with all.)
create or replace function public.esl_variants_merge(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    v_applied int; v_changed int; v_removed int; v_levels int; v_superseded int;
begin
    insert into esl.product_versions as v (source_system, source_store_id, product_id, version_at, triggered_at,
                                           body_sha256, deleted, missing_variants)
    select distinct on (source_system, source_store_id, product_id)
           source_system, source_store_id, product_id, version_at, triggered_at, body_sha256, deleted, missing_variants
    from jsonb_to_recordset(p -> 'products') as d (
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
    get diagnostics v_applied = row_count;

    -- Unchanged rows are left out before the upsert: it would lock and log each of them.
    insert into esl.products as o (source_system, source_store_id, variant_id, product_id, inventory_item_id, title,
        variant_title, barcode, sku, price, compare_at_price, image_url, status, published_at, vendor, product_type,
        tags, source_updated_at, content_hash, event_ids)
    select distinct on (d.source_system, d.source_store_id, d.variant_id)
           d.source_system, d.source_store_id, d.variant_id, d.product_id, d.inventory_item_id, d.title,
           d.variant_title, d.barcode, d.sku, d.price, d.compare_at_price, d.image_url, d.status, d.published_at,
           d.vendor, d.product_type, d.tags, d.version_at, d.content_hash, d.event_ids
    from jsonb_to_recordset(p -> 'variants') as d (
        source_system text, source_store_id text, product_id text, variant_id text, inventory_item_id text,
        title text, variant_title text, barcode text, sku text, price text, compare_at_price text,
        image_url text, status text, published_at text, vendor text, product_type text, tags text,
        content_hash text, version_at timestamptz, triggered_at timestamptz, body_sha256 text, event_ids bigint[])
    join esl.product_versions v
      on v.source_system = d.source_system and v.source_store_id = d.source_store_id and v.product_id = d.product_id
     and (v.version_at, v.triggered_at, v.body_sha256) = (d.version_at, d.triggered_at, d.body_sha256)
    where not exists (
        select from esl.products o
        where o.source_system = d.source_system and o.source_store_id = d.source_store_id
          and o.variant_id = d.variant_id and o.content_hash = d.content_hash and not o.removed)
    order by d.source_system, d.source_store_id, d.variant_id, d.version_at desc
    on conflict (source_system, source_store_id, variant_id) do update
    set product_id = excluded.product_id, inventory_item_id = excluded.inventory_item_id, title = excluded.title,
        variant_title = excluded.variant_title, barcode = excluded.barcode, sku = excluded.sku,
        price = excluded.price, compare_at_price = excluded.compare_at_price, image_url = excluded.image_url,
        status = excluded.status, published_at = excluded.published_at, vendor = excluded.vendor,
        product_type = excluded.product_type, tags = excluded.tags,
        source_updated_at = excluded.source_updated_at, content_hash = excluded.content_hash,
        event_ids = excluded.event_ids, removed = false, revision = nextval('esl.revision'), due = true,
        changed_at = now()
    where excluded.source_updated_at >= o.source_updated_at;
    get diagnostics v_changed = row_count;

    -- Variants beyond the first 100 are not in the body, but what they share with their product is: a draft's labels
    -- go, all of them. The hash no longer fits the row, so that the next full row is never taken for unchanged.
    update esl.products o
    set title = a.title, status = a.status, published_at = a.published_at, vendor = a.vendor,
        product_type = a.product_type, tags = a.tags, content_hash = 'partial', source_updated_at = a.version_at,
        event_ids = a.event_ids, revision = nextval('esl.revision'), due = true, changed_at = now()
    from jsonb_to_recordset(p -> 'products') as a (
        source_system text, source_store_id text, product_id text, version_at timestamptz,
        triggered_at timestamptz, body_sha256 text, deleted boolean, missing_variants int, variant_ids jsonb, event_ids bigint[],
        title text, status text, published_at text, vendor text, product_type text, tags text)
    join esl.product_versions v
      on v.source_system = a.source_system and v.source_store_id = a.source_store_id and v.product_id = a.product_id
     and (v.version_at, v.triggered_at, v.body_sha256) = (a.version_at, a.triggered_at, a.body_sha256)
    where o.source_system = a.source_system and o.source_store_id = a.source_store_id
      and o.product_id = a.product_id and not o.removed and not a.deleted
      and (a.missing_variants > 0 or a.variant_ids is null)
      and (o.title, o.status, o.published_at, o.vendor, o.product_type, o.tags)
          is distinct from (a.title, a.status, a.published_at, a.vendor, a.product_type, a.tags);

    -- A variant that an applied version no longer names is gone; all of them when the product is deleted.
    update esl.products o
    set removed = true, source_updated_at = a.version_at, event_ids = a.event_ids,
        revision = nextval('esl.revision'), due = true, changed_at = now()
    from jsonb_to_recordset(p -> 'products') as a (
        source_system text, source_store_id text, product_id text, version_at timestamptz,
        triggered_at timestamptz, body_sha256 text, deleted boolean, variant_ids text[], event_ids bigint[])
    join esl.product_versions v
      on v.source_system = a.source_system and v.source_store_id = a.source_store_id and v.product_id = a.product_id
     and (v.version_at, v.triggered_at, v.body_sha256) = (a.version_at, a.triggered_at, a.body_sha256)
    where o.source_system = a.source_system and o.source_store_id = a.source_store_id
      and o.product_id = a.product_id and not o.removed
      and (a.deleted or o.variant_id <> all (a.variant_ids));
    get diagnostics v_removed = row_count;

    with incoming as (
        select distinct on (source_system, source_store_id, inventory_item_id, location_id) *
        from jsonb_to_recordset(p -> 'levels') as d (
            source_system text, source_store_id text, inventory_item_id text, location_id text, available bigint,
            updated_at timestamptz)
        order by source_system, source_store_id, inventory_item_id, location_id, updated_at desc
    ), stored as (
        insert into esl.inventory_levels as o
        select source_system, source_store_id, inventory_item_id, location_id, available, updated_at from incoming
        on conflict (source_system, source_store_id, inventory_item_id, location_id) do update
        set available = excluded.available, updated_at = excluded.updated_at
        where excluded.updated_at > o.updated_at
        returning source_system, source_store_id, inventory_item_id
    ), marked as (
        update esl.products o set due = true, revision = nextval('esl.revision')
        from stored s
        where o.source_system = s.source_system and o.source_store_id = s.source_store_id
          and o.inventory_item_id = s.inventory_item_id and not o.removed
    )
    select count(*) into v_levels from stored;

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
                                 and l.updated_at > e.version_at))
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
        'variants_removed', v_removed, 'levels_changed', v_levels, 'superseded', v_superseded);
end $$;

-- {limit, after, shop?} -> {variants: [...], mappings: [...]}: variants that are not evaluated yet, oldest change first,
-- with the active mappings of their shops. Nothing is claimed: evaluating twice is harmless (see esl_labels_stage).
create or replace function public.esl_variants_due(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with shops as (
        select distinct m.source_system, m.source_store_id from esl.store_mappings m
        where m.is_active and (p -> 'shop' is null
           or (m.source_system, m.source_store_id) = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
    ), due as (
        select o.* from esl.products o join shops using (source_system, source_store_id)
        where o.due and o.revision > (p ->> 'after')::bigint order by o.revision limit (p ->> 'limit')::int
    )
    select jsonb_build_object(
        'variants', coalesce((
            select jsonb_agg(to_jsonb(d) - 'due' - 'content_hash' || jsonb_build_object('stock', (
                       select jsonb_object_agg(l.location_id, l.available) from esl.inventory_levels l
                       where l.source_system = d.source_system and l.source_store_id = d.source_store_id
                         and l.inventory_item_id = d.inventory_item_id)) order by d.revision)
            from due d), '[]'),
        'mappings', coalesce((
            select jsonb_agg(to_jsonb(m) order by m.created_at, m.id) from esl.store_mappings m
            where m.is_active and exists (select from due d
                where d.source_system = m.source_system and d.source_store_id = m.source_store_id)), '[]'))
$$;

select esl.restrict_functions();
