-- What still has to become labels: the variants that changed since they were evaluated last.

-- About how long a variant's row is as text. (Long texts stand apart from their row: their length is known unread.)
create or replace function esl.text_bytes(o esl.products) returns bigint
language sql stable as $$
    select 1000 + octet_length(concat(o.title, o.variant_title, o.barcode, o.sku, o.vendor, o.product_type, o.handle,
                                      o.option1, o.option2, o.option3))
           + coalesce(octet_length(o.tags), 0) + coalesce(octet_length(o.image_url), 0)
$$;

-- A variant's stock by location; null where none is known.
create or replace function esl.stock_of(p_system text, p_shop text, p_item text) returns table (stock jsonb)
language sql stable as $$  -- inlined as well
    select jsonb_object_agg(l.location_id, l.available) from esl.inventory_levels l
    where l.source_system = p_system and l.source_store_id = p_shop and l.inventory_item_id = p_item and not l.gone
$$;

-- {mapping id: {shown, prior, cut_days}} of a variant, for esl_variants_due.
create or replace function esl.history_of(p_system text, p_shop text, p_variant text, p_price text, p_compare_at text)
returns table (history jsonb)
language sql stable as $$  -- inlined as well
    select jsonb_object_agg(m.id, jsonb_build_object(
        'shown', case when not esl.is_blanked(s.label_hash) then esl.price_of(s.label)::text end,
        'prior', case when esl.policy_text(m.settings, 'show_compare_at') = 'if_prior_30d_ok'
                       and p_compare_at is not null and p_price ~ '^[0-9]{1,9}([.][0-9]{1,4})?$'
                 then esl.prior_price(m.id, p_variant, p_price::numeric)::text end,
        'cut_days', case when esl.shows_cuts(m.settings) and p_price ~ '^[0-9]{1,9}([.][0-9]{1,4})?$'
                    then esl.days_since_cut(m.id, p_variant, p_price::numeric) end))
    from esl.store_mappings m
    left join lateral (select h.label, h.label_hash from esl.hipoink_products h
                       where h.variant_id = p_variant and h.mapping_id = m.id
                       order by h.accepted_at desc limit 1) s on true
    where m.is_active and m.source_system = p_system and m.source_store_id = p_shop
      and (s.label is not null or esl.policy_text(m.settings, 'show_compare_at') = 'if_prior_30d_ok'
           or esl.shows_cuts(m.settings))
$$;

-- {limit, after, max_bytes?, shop?, label_server?, label_servers?} -> {variants: [...], mappings: [...]}: variants that
-- are not evaluated yet, of one shop or of those of a server (see esl.shops_to_read), as many of one shop as of another
-- and of each its oldest changes, max_bytes of text together or one variant, with the active mappings of their shops
-- (currency and taxes_included as the shop says).
-- Nothing is claimed: evaluating twice is harmless (see esl_labels_stage). after: a revision, to page through one shop.
-- unsaid: columns with a space between, or null. As JSON text, which is how a frame holds them: stock, as
-- unit_price_measurement; history: {mapping id: {shown, prior, cut_days}}, the price on the label and, where the policy
-- asks for it, the lowest of 30 days, and how many days ago it was cut.
create or replace function public.esl_variants_due(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with shops as (
        select r.source_system, r.source_store_id from esl.shops_to_read(p) r where r.is_active
    ), waiting as materialized (  -- shops where any is, and how many such shops there are
        select s.*, count(*) over () as shops from shops s
        cross join lateral (  -- in this order, so that whatever the planner believes, it asks the index of each shop
            select from esl.products o
            where o.source_store_id = s.source_store_id and o.source_system = s.source_system and o.due
            order by o.revision limit 1) o
    ), due as (
        select d.* from waiting w cross join lateral (
            select o.*, esl.text_bytes(o) as bytes, row_number() over (order by o.revision) as turn from esl.products o
            where o.source_store_id = w.source_store_id and o.source_system = w.source_system and o.due
              and o.revision > (p ->> 'after')::bigint
            order by o.revision
            limit least((p ->> 'limit')::int, (2 * (p ->> 'limit')::int + w.shops - 1) / w.shops)) d
        order by d.turn, d.revision limit (p ->> 'limit')::int
    ), page as (
        select * from (select d.*, sum(d.bytes) over (order by d.turn, d.revision) - d.bytes as before from due d) t
        where t.before < coalesce((p ->> 'max_bytes')::bigint, 8000000)
    )
    select jsonb_build_object(
        'variants', coalesce((
            select jsonb_agg(to_jsonb(d) - '{due,turn,bytes,before,cause,stock_event_ids}'::text[]
                       || jsonb_build_object('event_ids', d.event_ids || d.stock_event_ids,
                       'unsaid', nullif(array_to_string(d.unsaid, ' '), ''), 'stock', k.stock::text,
                       'gift_card', coalesce(x.gift_card, false), 'unit_price', x.unit_price,
                       'unit_price_measurement', x.unit_price_measurement::text,
                       'history', h.history::text, 'problem', r.problem) order by d.revision)
            from page d
            left join esl.variant_details x
              on x.source_system = d.source_system and x.source_store_id = d.source_store_id
             and x.variant_id = d.variant_id
            left join esl.row_problems r
              on r.source_system = d.source_system and r.source_store_id = d.source_store_id
             and r.variant_id = d.variant_id
            cross join lateral esl.stock_of(d.source_system, d.source_store_id, d.inventory_item_id) k
            cross join lateral esl.history_of(d.source_system, d.source_store_id, d.variant_id, d.price,
                                              d.compare_at_price) h), '[]'),
        'mappings', coalesce((
            select jsonb_agg(esl.shown_mapping(m) || jsonb_build_object(
                       'currency', s.currency, 'taxes_included', s.taxes_included) order by m.created_at, m.id)
            from esl.store_mappings m
            left join esl.shops s
              on s.source_system = m.source_system and s.source_store_id = m.source_store_id
            where m.is_active and exists (select from page d
                where d.source_system = m.source_system and d.source_store_id = m.source_store_id)), '[]'))
$$;
