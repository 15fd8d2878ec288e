-- The sources: what each is known for, what its receivers may say, and which of its shops are mapped.

-- What is known of each source that is part of this package. shop: the form of its shops' names, example: one of them.
-- ids_are_global: an id is one thing, whatever shop names it; elsewhere two shops may have the same id for two things.
-- topics: of products and stock; lifecycle: about the shop itself.
create or replace function esl.sources()
returns table (system text, shop text, example text, ids_are_global boolean, topics text[], lifecycle text[])
language sql immutable set search_path = '' as $$
    values
    ('shopify', '^[a-z0-9][a-z0-9-]{0,62}[.]myshopify[.]com$', 'example.myshopify.com', true,
     array['products/create', 'products/update', 'products/delete',
           'inventory_levels/update', 'inventory_levels/connect', 'inventory_levels/disconnect'],
     array['customers/data_request', 'customers/redact', 'shop/redact', 'app/uninstalled']),
    -- The address of its site: host, port and path.
    ('woocommerce', '^(?=.{1,255}$)[a-z0-9][a-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9_~-][a-z0-9._~-]*)*$',
     'shop.example.com or example.com/shop', false,
     array['product.created', 'product.updated', 'product.deleted', 'product.restored'], array[]::text[]),
    ('files', '^[a-z0-9][a-z0-9._-]{0,62}$', 'corner-market', false, array[]::text[], array[]::text[])
$$;

-- What holds for a source: one of those, or one that somebody has added in Python alone, of which only the form of
-- names is known (topics null: any). No row: no source can be called so.
create or replace function esl.source(p_system text)
returns table (system text, shop text, example text, ids_are_global boolean, topics text[], lifecycle text[])
language sql immutable set search_path = '' as $$
    select s.* from esl.sources() s where s.system = p_system
    union all
    select p_system, '^[!-~]{1,255}$', 'corner-market', false, null, array[]::text[]
    where p_system ~ '^[a-z][a-z0-9_]{0,30}$' and p_system not in (select s.system from esl.sources() s)
$$;

-- Refuses what no receiver sends: whoever holds its login can say no more than a receiver could. (Whether a signature
-- was good only the receiver knows.) 22023.
create or replace function esl.check_deliveries(p_deliveries jsonb) returns void
language plpgsql set search_path = '' as $$
declare v_wrong text;
begin
    with d as materialized (
        select * from jsonb_populate_recordset(null::esl.delivery_row, p_deliveries)
    ), s as materialized (
        select s.* from (select distinct source_system from d) named cross join lateral esl.source(source_system) s
    )
    select case
        when s.system is null then format('source_system: no source is called %L', d.source_system)
        when d.source_store_id ~ s.shop is not true
            then format('source_store_id: %L is no shop of %s', d.source_store_id, s.system)
        when s.topics = '{}' and s.lifecycle = '{}' then format('source_system: %s sends no webhooks', s.system)
        when case when s.topics is null then d.topic ~ '^[ -~]{1,64}$'
                  else d.topic = any (s.topics || s.lifecycle) end is not true
            then format('topic: %L is none that %s sends', d.topic, s.system)
        when d.state in ('unusable', case when d.topic = any (s.lifecycle) then 'done' else 'ready' end) is not true
            then format('state: a delivery of %s cannot arrive as %L', d.topic, d.state)
        when d.topic = any (s.lifecycle) and d.body_base64 is not null
            then format('body_base64: none is kept of %s', d.topic)
        when d.said_at > clock_timestamp() + interval '15 minutes' then 'said_at: is ahead of the clock'
        end
    into v_wrong
    from d left join s on s.system = d.source_system
    order by 1 limit 1;  -- nulls, where nothing is wrong, come last
    if v_wrong is not null then
        raise exception '%', left(v_wrong, 500) using errcode = '22023';
    end if;
end $$;

-- Refuses a mapping of what is no shop of its source, for its token would go there. 22023.
create or replace function esl.check_shop(p_system text, p_shop text) returns void
language plpgsql set search_path = '' as $$
declare s record;
begin
    select * into s from esl.source(p_system);
    if s.system is null then
        raise exception 'source_system: no source is called % (small letters, digits and _)',
            coalesce(p_system, 'nothing') using errcode = '22023';
    elsif p_shop ~ s.shop is not true then
        raise exception 'source_store_id: % is no shop of the source %, whose shops are called like %',
            p_shop, p_system, s.example using errcode = '22023';
    end if;
end $$;

create or replace function esl.is_mapped(p_system text, p_shop text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.store_mappings m
                   where m.source_system = p_system and m.source_store_id = p_shop and m.removed_at is null)
$$;

-- Refuses that a shop feeds a store that another shop is mapped to, unless the caller says that this is meant: a code
-- that both publish would be decided between them. 23P01.
create or replace function esl.check_sharing(p_system text, p_shop text, p_store text, p_shared boolean) returns void
language plpgsql set search_path = '' as $$
declare v_others text;
begin
    select string_agg(m.source_store_id || case when m.is_active then '' else ' (inactive)' end, ', '
                      order by m.source_store_id)
    into v_others from esl.store_mappings m
    where m.hipoink_store_code = p_store and (m.source_system, m.source_store_id) <> (p_system, p_shop)
      and m.removed_at is null;
    if v_others is not null and p_shared is not true then
        raise exception 'store % is fed by % already: say "shared": true (stores add or set: --share) if % is to feed '
            'it as well', p_store, v_others, p_shop using errcode = '23P01';
    end if;
end $$;

create or replace function esl.has_active_mapping(p_system text, p_shop text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.store_mappings m
                   where m.source_system = p_system and m.source_store_id = p_shop and m.is_active)
$$;
