-- For staff at a shelf: what somebody means who types or scans a code, a SKU or words of a title.

-- Each word, and the beginning of each word, as to_tsquery reads it; null: there is none.
create or replace function esl.words_of(p_text text) returns tsquery
language sql immutable set search_path = '' as $$
    select to_tsquery('simple', string_agg('''' || w.word || ''':*', ' & '))
    from regexp_split_to_table(translate(left(p_text, 200), '''\', '  '), '\s+') w (word) where w.word <> ''
$$;

-- Of an earlier build.
drop function if exists esl.meant(text[], text, int);

-- Whether a shop feeds this store, or has left labels there; of any store: whether it is mapped.
create or replace function esl.feeds(p_system text, p_shop text, p_store text) returns boolean
language sql stable set search_path = '' as $$
    select exists (
        select from esl.store_mappings m left join esl.left_stores l on l.mapping_id = m.id
        where m.source_store_id = p_shop and m.source_system = p_system and m.removed_at is null
          and (p_store is null or p_store in (m.hipoink_store_code, l.store_code)))
$$;

-- Variants that a search may mean, of each kind no more than p_limit: 1 by code, also of labels whose product has left,
-- 2 by the beginning of barcode or SKU, 3 by words. p_codes: all forms of the code, p_text: as it was typed; p_store:
-- of that store alone, or null.
create or replace function esl.meant(p_codes text[], p_text text, p_limit int, p_store text)
returns table (how int, mapping_id uuid, variant_id text, code text)
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    return query
    (select 1, b.mapping_id, b.variant_id, b.code from esl.labels b
     where b.code = any (p_codes) and (p_store is null or b.store_code = p_store) limit p_limit)
    union
    (select 1, h.mapping_id, h.variant_id, h.code from esl.hipoink_products h
     where h.code = any (p_codes) and (p_store is null or h.store_code = p_store) limit p_limit)
    union
    select o.how, m.id, o.variant_id, null from (
        (select 2 as how, o.source_system, o.source_store_id, o.variant_id from esl.products o
         where o.barcode ~>=~ p_text and o.barcode ~<~ (p_text || chr(1114111)) and o.barcode <> ''
           and esl.feeds(o.source_system, o.source_store_id, p_store) limit p_limit)
        union
        (select 2, o.source_system, o.source_store_id, o.variant_id from esl.products o
         where lower(o.sku) ~>=~ lower(p_text) and lower(o.sku) ~<~ (lower(p_text) || chr(1114111)) and o.sku <> ''
           and esl.feeds(o.source_system, o.source_store_id, p_store) limit p_limit)
        union
        (select 3, o.source_system, o.source_store_id, o.variant_id from esl.products o
         where to_tsvector('simple', coalesce(o.title, '') || ' ' || coalesce(o.variant_title, ''))
               @@ esl.words_of(p_text) and esl.feeds(o.source_system, o.source_store_id, p_store) limit p_limit)) o
    join esl.store_mappings m on m.source_system = o.source_system and m.source_store_id = o.source_store_id
                             and m.removed_at is null;
end $$;

-- {codes, text, store?, limit} -> {found: [{store_code, code, mapping_id, variant_id, source_store_id, title,
-- variant_title, sku, barcode, price, removed, shown, accepted_at, state, wanted, operation, last_error, label_state,
-- collides, held: {reason, action}}]}: the places of what is meant, the surest first. shown: the price that the label
-- server has accepted; state: of what waits there, null: nothing does; held: why there is no label, or no new one.
create or replace function public.esl_console_search(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    with meant as (
        select distinct on (f.mapping_id, f.variant_id, coalesce(f.code, b.code))
               f.how, f.mapping_id, f.variant_id, coalesce(f.code, b.code) as code, b.state as label_state, b.collides
        from esl.meant(array(select jsonb_array_elements_text(p -> 'codes')), p ->> 'text', (p ->> 'limit')::int,
                       p ->> 'store') f
        left join esl.labels b on b.variant_id = f.variant_id and b.mapping_id = f.mapping_id
        order by f.mapping_id, f.variant_id, coalesce(f.code, b.code), f.how
    )
    select jsonb_build_object('found', coalesce(jsonb_agg(to_jsonb(t) - 'how'), '[]')) from (
        select f.how, coalesce(h.store_code, m.hipoink_store_code) as store_code, f.code, f.mapping_id, f.variant_id,
               m.source_store_id, o.title, o.variant_title, o.sku, o.barcode, o.price, o.removed,
               esl.price_of(h.label)::text as shown, h.accepted_at, q.state, esl.price_of(q.label)::text as wanted,
               q.operation, q.last_error, f.label_state, f.collides, (
                   select jsonb_build_object('reason', e.reason, 'action', e.action) from esl.findings e
                   where e.variant_id = f.variant_id and e.mapping_id = f.mapping_id and e.level = 'error'
                     and e.resolved_at is null order by e.check_name limit 1) as held
        from meant f
        join esl.store_mappings m on m.id = f.mapping_id
        left join esl.products o on o.variant_id = f.variant_id and o.source_store_id = m.source_store_id
                                and o.source_system = m.source_system
        left join esl.hipoink_products h on h.code = f.code and h.mapping_id = f.mapping_id
        left join esl.sync_queue q on q.code = f.code
                                  and q.store_code = coalesce(h.store_code, m.hipoink_store_code)
        where (h.code is not null or q.code is not null or not coalesce(o.removed, true))
          and (p ->> 'store' is null or coalesce(h.store_code, m.hipoink_store_code) = p ->> 'store')
        order by f.how, o.title, o.variant_title, store_code, f.code limit (p ->> 'limit')::int) t
$$;
