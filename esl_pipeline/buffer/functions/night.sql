-- A night as a shop manager reads it: what each label was, what it is, and what the label server's own list said.

-- The labels that the label server has taken within {since, until, store?, limit, after?: [store_code, code]}, once
-- each, with what hung before and what its last push then said.
create or replace function esl.night_labels(p jsonb)
returns table (store_code text, code text, mapping_id uuid, variant_id text, at timestamptz, pushes bigint,
               before jsonb, after jsonb)
language sql stable set search_path = '' as $$
    with taken as (
        select l.store_code, l.code, count(*) as pushes, min(l.id) as first, max(l.id) as last
        from esl.sync_log l
        where l.kind = 'result' and l.outcome = 'accepted' and l.at >= (p ->> 'since')::timestamptz
          and l.at < (p ->> 'until')::timestamptz and (p ->> 'store' is null or l.store_code = p ->> 'store')
          and (p -> 'after' is null or (l.store_code collate "C", l.code collate "C")
               > (p #>> '{after,0}', p #>> '{after,1}'))
        group by 1, 2
        order by l.store_code collate "C", l.code collate "C" limit (p ->> 'limit')::int
    )
    select t.store_code, t.code, r.mapping_id, r.variant_id, r.at, t.pushes, esl.said_by(b.id), esl.said_by(t.last)
    from taken t join esl.sync_log r on r.id = t.last
    left join lateral (
        select l.id from esl.sync_log l
        where l.code = t.code and l.store_code = t.store_code and l.kind = 'result' and l.outcome = 'accepted'
          and l.id < t.first order by l.id desc limit 1) b on true
$$;

-- The label that a result of the audit is about, as its intent says it; null: it was taken away.
create or replace function esl.said_by(p_result bigint) returns jsonb
language sql stable set search_path = '' as $$
    select i.label from esl.sync_log r join esl.sync_log i
      on i.code = r.code and i.store_code = r.store_code and i.push_id = r.push_id and i.kind = 'intent' and i.id < r.id
    where r.id = p_result order by i.id desc limit 1
$$;

-- {store?, since, until, limit, after?} -> {labels: [{store_code, code, what, drift, source_store_id, title,
--   variant_title, price_before, price_after, at, pushes}], comparisons: [{store_code, at, complete, reason, listed,
--   given_up}]}: what was done in a night, by store and code.
-- what: new, removed, rise, cut, other or repaired: the label server's list had lost it or said something else (drift:
-- missing, different, foreign or ours; price_before is then what hung there). comparisons: the last one of each store.
create or replace function public.esl_night(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan
set statement_timeout = '55s' as $$
begin
    return jsonb_build_object('comparisons', (
        select coalesce(jsonb_agg(to_jsonb(c) order by c.store_code), '[]') from (
            select x.store_code, x.at, x.complete, x.reason, x.listed, x.given_up from esl.comparisons x
            where p ->> 'store' is null or x.store_code = p ->> 'store') c),
    'labels', (
        select coalesce(jsonb_agg(to_jsonb(t) order by t.store_code collate "C", t.code collate "C"), '[]') from (
        select n.store_code, n.code, m.source_store_id, o.title, o.variant_title, n.at, n.pushes, d.kind as drift,
               esl.price_of(case when d.kind is null then n.before else d.theirs end)::text as price_before,
               esl.price_of(n.after)::text as price_after,
               case when d.kind is not null then 'repaired' when n.after is null then 'removed'
                    when n.before is null then 'new' when esl.price_of(n.after) > esl.price_of(n.before) then 'rise'
                    when esl.price_of(n.after) < esl.price_of(n.before) then 'cut' else 'other' end as what
        from esl.night_labels(p) n
        left join esl.store_mappings m on m.id = n.mapping_id
        left join esl.products o on o.variant_id = n.variant_id and o.source_system = m.source_system
                                and o.source_store_id = m.source_store_id
        left join lateral (
            select x.kind, x.theirs from esl.drift x
            where x.at >= (p ->> 'since')::timestamptz and x.at < (p ->> 'until')::timestamptz
              and x.store_code = n.store_code and x.code = n.code order by x.id desc limit 1) d on true) t));
end $$;
