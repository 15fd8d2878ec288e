-- Duplicate codes: who claims a place, who wins it, and the finding duplicate_code of those who share one.

-- Who claims the given (store, code) places, one row per place and variant, and who of them shows its label there.
-- A variant that is held back claims its place too, as long as its content says the code: it never shows anything, but
-- nobody takes its place meanwhile. Several of one mapping: all win when they publish equal labels, else the first in
-- order of precedence where its policy ranks them (duplicate_rule), if it publishes. A mapping in dry run never stands
-- against a live one. rivals: how many claim the place; place: their order.
create or replace function esl.claims(p_stores text[], p_codes text[])
returns table (store_code text, code text, mapping_id uuid, variant_id text, source_store_id text, publishes boolean,
               collides boolean, rivals int, place int, wins boolean)
language sql stable set search_path = '' as $$
    with claimed as (
        select l.store_code, l.code, l.mapping_id, l.variant_id, m.source_store_id, l.state = 'publish' as publishes,
               l.collides, l.label_hash, l.precedence, m.is_dry_run
        from (select distinct k.store_code, k.code from unnest(p_stores, p_codes) as k (store_code, code)
              where k.code is not null) k
        cross join lateral (
            select * from esl.labels l
            where l.store_code = k.store_code and l.code = k.code and l.state in ('publish', 'held')) l
        join esl.store_mappings m on m.id = l.mapping_id and m.is_active and m.hipoink_store_code = l.store_code
    ), judged as (
        select c.*, count(*) over place as rivals,
               -- Only among the live ones, where there are any.
               min(c.mapping_id::text) over live = max(c.mapping_id::text) over live as one_shop,
               bool_and(c.publishes) over live and min(c.label_hash) over live = max(c.label_hash) over live as equal,
               bool_and(c.precedence is not null) over live as ranked,
               c.is_dry_run = bool_and(c.is_dry_run) over place as takes_part,
               row_number() over (partition by c.store_code, c.code
                                  order by c.is_dry_run, c.precedence collate "C", c.variant_id collate "C") as place
        from claimed c
        window place as (partition by c.store_code, c.code),
               live as (partition by c.store_code, c.code, c.is_dry_run)
    )
    select store_code, code, mapping_id, variant_id, source_store_id, publishes, collides, rivals::int, place::int,
           publishes and takes_part and one_shop and (rivals = 1 or equal or (ranked and place = 1))
    from judged
$$;

-- Notes where claims collide: a finding of every variant that takes part, which ends for all of them. Where a collision
-- begins or ends, the other places of its variants are to be decided again, for a label that was kept may go now: these
-- places come back.
create or replace function esl.note_collisions(p_stores text[], p_codes text[], out stores text[], out codes text[])
language plpgsql set search_path = '' as $$
begin
    with claims as materialized (
        select c.*, c.rivals > 1 and not c.wins as loses from esl.claims(p_stores, p_codes) c
    ), shared as (
        -- A house code of a whole shop may have thousands of rivals.
        select store_code, code, min(rivals) as n,
               string_agg(variant_id || ' of ' || source_store_id, ', ' order by place)
                   filter (where place <= 10) as names,
               min(variant_id) filter (where wins) as winner
        from claims where rivals > 1 group by 1, 2
        having bool_or(loses)  -- equal labels are no conflict
    ), marked as (
        update esl.labels l set collides = c.loses from claims c
        where c.collides <> c.loses and l.mapping_id = c.mapping_id and l.variant_id = c.variant_id
        returning l.mapping_id, l.variant_id
    ), noted as (
        insert into esl.findings as f (mapping_id, variant_id, check_name, level, column_name, value, reason, action)
        select c.mapping_id, c.variant_id, 'duplicate_code', case when c.wins then 'warning' else 'error' end, 'code',
               c.code,
               format('variants %s%s share the code %s', s.names,
                      case when s.n > 10 then format(' and %s more', s.n - 10) else '' end, c.code)
               || case when s.winner is null then '' else format('; the label shows %s', s.winner) end,
               'give each variant a code of its own'
        from claims c join shared s using (store_code, code)
        on conflict (mapping_id, variant_id, check_name) do update
        set level = excluded.level, value = excluded.value, reason = excluded.reason, last_seen_at = now(),
            resolved_at = null
        returning f.mapping_id, f.variant_id
    ), resolved as (
        -- A variant has one place a store: whoever is not noted at its own has no rival left. (Who claims no place at
        -- all is settled by esl.store_findings.)
        update esl.findings f set resolved_at = now()
        from unnest(p_stores, p_codes) as k (store_code, code)
        join esl.labels l on l.code = k.code and l.store_code = k.store_code
        where f.check_name = 'duplicate_code' and f.resolved_at is null
          and f.mapping_id = l.mapping_id and f.variant_id = l.variant_id
          and not exists (select from noted n where n.mapping_id = l.mapping_id and n.variant_id = l.variant_id)
    ), elsewhere as (
        select s.store_code, s.code from marked join esl.hipoink_products s using (mapping_id, variant_id)
        union select q.store_code, q.code from marked join esl.sync_queue q using (mapping_id, variant_id)
    )
    select array_agg(e.store_code), array_agg(e.code) into stores, codes from elsewhere e;
end $$;
