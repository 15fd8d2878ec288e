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
