-- Catching up without webhooks: up to when a shop's changes have been read, and what webhooks did not tell in full.

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
        values (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}', p ->> 'source',
                (p ->> 'at')::timestamptz)
        on conflict (source_store_id, source_system, source) do update
        set at = case when w.at > clock_timestamp() + interval '10 minutes' then excluded.at
                      else greatest(w.at, excluded.at) end
        returning at
    ) select jsonb_build_object('at', at) from moved
$$;

-- {shop, after?, limit} -> {products: [product ids]}: of which webhooks did not tell all, in order of id: variants that
-- were only named, or a body without any, or content that nobody has said yet; and those that another shop claims too,
-- or whose inventory item it does.
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
