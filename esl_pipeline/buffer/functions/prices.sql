-- The history of prices (esl.price_history; esl_push_finish adds to it what the label server has accepted).

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

-- How many whole days ago the price of a variant's label was cut to this one, 0 where that is still to come; null where
-- its last change was none.
create or replace function esl.days_since_cut(p_mapping uuid, p_variant text, p_price numeric) returns int
language sql stable set search_path = '' as $$
    with shown as (
        select price, since from esl.price_history
        where mapping_id = p_mapping and variant_id = p_variant order by since desc limit 2
    ), changes as (
        select price, since, lead(price) over byage as before, row_number() over byage as n
        from shown window byage as (order by since desc)
    )
    select case when p_price < price then 0
                when p_price = price and price < before then floor(extract(epoch from now() - since) / 86400)::int end
    from changes where n = 1
$$;

-- A shop was read: labels that show a cut for longer than their policy says are evaluated again. (The days end by
-- themselves, without any news of the variant.)
create or replace function esl.end_cuts(p_system text, p_shop text) returns void
language plpgsql volatile set search_path = '' as $$
begin
    update esl.products o set due = true, revision = nextval('esl.revision'), cause = 'plan'
    from esl.store_mappings m
    join esl.labels l on l.mapping_id = m.id and l.state = 'publish'
    where m.source_system = p_system and m.source_store_id = p_shop and m.is_active and esl.shows_cuts(m.settings)
      and l.label ->> 'promotion' = m.settings #>> '{promotion,scene}'
      and l.label ->> 'promotion' <> coalesce(m.settings #>> '{promotion,otherwise}', '1')
      and coalesce(esl.days_since_cut(m.id, l.variant_id, esl.price_of(l.label)) >= esl.cut_days(m.settings), true)
      and o.variant_id = l.variant_id and o.source_store_id = p_shop and o.source_system = p_system and not o.due;
end $$;
