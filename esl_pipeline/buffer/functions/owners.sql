-- Whose things are, of sources whose ids are unique over all their shops.

-- Of events that are done (see esl_variants_merge), those that may be another shop's body under this shop's name: only
-- the signature says for which secret a body was made, and only a header says for which shop. So nothing of a shop with
-- a secret of its own is suspected, and nothing that such a shop has counts against others: their signatures differ.
-- Where a secret is shared, a thing is whose it was settled to be (esl.contests); else an active shop that has it keeps
-- it and the other one waits, whatever came first, until it is settled. Concluded absence (body_sha256 '') is no claim.
-- settled: by evidence.
create or replace function esl.suspects(p_events jsonb)
returns table (id bigint, source_system text, source_store_id text, thing text, owner text, is_settled boolean)
language sql stable set search_path = '' as $$
    with claimed as (
        select i.id, i.source_system, i.source_store_id, e.product_id, e.inventory_item_id, e.thing,
               bool_or(i.proven) over (partition by i.source_system, i.source_store_id, e.thing) as proven,
               esl.has_active_mapping(i.source_system, i.source_store_id) as is_active
        from (select x.id, x.product_id, x.inventory_item_id,
                     coalesce('product:' || x.product_id, 'inventory_item:' || x.inventory_item_id) as thing
              from jsonb_populate_recordset(null::esl.event_row, p_events) x
              where x.state = 'done' and num_nonnulls(x.product_id, x.inventory_item_id) > 0) e
        join esl.webhook_inbox i on i.id = e.id
        where i.source_system in (select s.system from esl.sources() s where s.ids_are_global)
    ), met as (
        select c.*, (array_agg(c.source_store_id) filter (where c.is_active and not c.proven) over (
                         partition by c.source_system, c.thing order by c.id
                         rows between unbounded preceding and unbounded following))[1] as first_shop
        from claimed c
    ), judged as (
        select m.*, k.owner as settled, case when k.owner is not null then k.owner
                    when m.source_store_id <> all (o.shops) then coalesce(
                        (select min(s.shop) from unnest(o.shops) as s (shop)
                         where esl.has_active_mapping(m.source_system, s.shop) and not exists (
                             select from esl.shop_deliveries d where d.source_store_id = s.shop
                               and d.source_system = m.source_system and d.own_secret)),
                        m.first_shop) end as owner
        from met m
        -- An owner without any mapping is a shop that was renamed, or that nobody knows any more.
        left join esl.contests k on k.thing = m.thing and k.source_system = m.source_system
            and exists (select from esl.store_mappings o
                        where o.source_system = k.source_system and o.source_store_id = k.owner)
        cross join lateral (
            select coalesce(array_agg(h.source_store_id), '{}') as shops from (
                select v.source_store_id from esl.product_versions v
                where v.product_id = m.product_id and v.source_system = m.source_system
                  and not (v.deleted and v.body_sha256 = '')
                union all
                select p.source_store_id from esl.products p
                where p.inventory_item_id = m.inventory_item_id and p.source_system = m.source_system and not p.removed
                union all
                select l.source_store_id from esl.inventory_levels l
                where l.inventory_item_id = m.inventory_item_id and l.source_system = m.source_system
                  and not (l.gone and l.body_sha256 = '')) h) o
        where not m.proven
    )
    select j.id, j.source_system, j.source_store_id, j.thing, j.owner, j.settled is not null
    from judged j where j.owner <> j.source_store_id
$$;

-- What esl_variants_merge is given, without what is suspected: those events become unusable, and are read again when it
-- is settled; the contest is kept for people. suspected: [{id, reason}].
create or replace function esl.set_aside(p jsonb, out rest jsonb, out suspected jsonb)
language plpgsql set search_path = '' as $$
declare v_reasons jsonb; v_foreign text[];
begin
    rest := p;
    with suspects as materialized (
        select * from esl.suspects(p -> 'events')
    ), waiting as (
        update esl.webhook_inbox i set contested = s.thing from suspects s where i.id = s.id
    ), contests as (
        insert into esl.contests as k (source_system, thing, shops)
        select s.source_system, s.thing, array_agg(distinct x.shop order by x.shop)
        from suspects s cross join lateral (values (s.owner), (s.source_store_id)) x (shop)
        where not s.is_settled and esl.has_active_mapping(s.source_system, s.source_store_id)
        group by 1, 2 order by 1, 2
        on conflict (thing, source_system) do update set
            shops = (select array_agg(distinct x order by x) from unnest(k.shops || excluded.shops) x),
            owner = null, settled_at = null, settled_by = null, db_user = null,
            since = case when k.owner is null then k.since else clock_timestamp() end
    )
    select jsonb_object_agg(s.id, format(
               'replay suspected: %s %s shop %s''s', replace(replace(s.thing, ':', ' '), '_', ' '),
               case when s.is_settled then 'is' else 'is known as' end, s.owner)),
           array_agg(concat_ws(' ', s.source_system, s.source_store_id, s.thing))
    into v_reasons, v_foreign from suspects s;
    if v_reasons is null then
        return;
    end if;
    rest := p || jsonb_build_object(
        'events', (select jsonb_agg(case when v_reasons ? (e ->> 'id') then
                       e || jsonb_build_object('state', 'unusable', 'reason', v_reasons ->> (e ->> 'id')) else e end)
                   from jsonb_array_elements(p -> 'events') e),
        'products', esl.without(p -> 'products', 'product_id', 'product:', v_foreign),
        'variants', esl.without(p -> 'variants', 'product_id', 'product:', v_foreign),
        'levels', esl.without(p -> 'levels', 'inventory_item_id', 'inventory_item:', v_foreign));
    suspected := (select jsonb_agg(jsonb_build_object('id', r.key::bigint, 'reason', r.value))
                  from jsonb_each_text(v_reasons) r);
end $$;

create or replace function esl.without(p_rows jsonb, p_column text, p_kind text, p_foreign text[]) returns jsonb
language sql immutable set search_path = '' as $$
    select coalesce(jsonb_agg(d), '[]') from jsonb_array_elements(p_rows) d
    where concat_ws(' ', d ->> 'source_system', d ->> 'source_store_id', p_kind || (d ->> p_column)) <> all (p_foreign)
$$;

-- A thing is p_owner's. What the other claimants have stored of it goes (it is not theirs, so their labels of it leave
-- under the guard of mass changes), and what p_owner said of it is read again, also what an earlier word had put out of
-- use.
create or replace function esl.settle(p_system text, p_thing text, p_owner text, p_by text) returns void
language plpgsql set search_path = '' as $$
declare k esl.contests; v_product text := substring(p_thing from '^product:(.*)$'); v_redo boolean;
begin
    update esl.contests set owner = p_owner, settled_at = clock_timestamp(), settled_by = p_by, db_user = session_user
    where thing = p_thing and source_system = p_system returning * into k;
    update esl.product_versions v set deleted = true, body_sha256 = '', missing_variants = 0
    where v.product_id = v_product and v.source_system = p_system and v.source_store_id = any (k.shops)
      and v.source_store_id <> p_owner and not v.deleted;
    update esl.products o
    set removed = true, event_ids = '{}', cause = 'read', revision = nextval('esl.revision'), due = true,
        changed_at = now()
    where o.product_id = v_product and o.source_system = p_system and o.source_store_id = any (k.shops)
      and o.source_store_id <> p_owner and not o.removed;
    v_redo := exists (select from esl.product_versions v where v.product_id = v_product and v.source_store_id = p_owner
                      and v.source_system = p_system and v.deleted and v.body_sha256 = '');
    perform esl.read_again(array(
        select i.id from esl.webhook_inbox i
        where i.contested = p_thing and i.source_store_id = p_owner and i.source_system = p_system
          and i.state = 'unusable'
        union all
        select i.id from esl.webhook_inbox i
        where v_redo and i.thing = p_thing and i.source_store_id = p_owner and i.source_system = p_system
          and i.state in ('done', 'superseded')));
end $$;

create or replace function esl.read_again(p_ids bigint[]) returns void
language sql set search_path = '' as $$
    update esl.webhook_inbox set state = 'ready', attempts = 0, reason = null, finished_at = null, contested = null
    where id = any (p_ids) and body is not null
$$;

-- A shop's own Admin API does not know the thing, so it is not the shop's; of one claimant that is left, it is.
create or replace function esl.give_up_claim(p_system text, p_thing text, p_shop text) returns void
language plpgsql set search_path = '' as $$
declare v_left text[];
begin
    update esl.contests set shops = array_remove(shops, p_shop)
    where thing = p_thing and source_system = p_system and owner is null returning shops into v_left;
    if cardinality(v_left) = 1 then
        perform esl.settle(p_system, p_thing, v_left[1], format('the Admin API of %s does not know it', p_shop));
    end if;
end $$;

-- What a read of a shop says of things that are contested (arguments as of esl_variants_merge): the Admin API answers
-- for its shop alone, so what it names is the shop's, and what it does not find when asked for it is not. What it names
-- stands above every other evidence, a person's word too.
create or replace function esl.settle_by_read(p jsonb) returns void
language plpgsql set search_path = '' as $$
declare r record;
begin
    if not exists (select from esl.contests) then
        return;
    end if;
    for r in
        select k.source_system, k.thing, s.source_store_id, bool_and(s.is_absent) as is_absent
        from esl.contests k join (
            select d.source_system, d.source_store_id, 'product:' || d.product_id as thing, d.deleted as is_absent
            from jsonb_populate_recordset(null::esl.product_row, p -> 'products') d
            union all
            select d.source_system, d.source_store_id, 'inventory_item:' || d.inventory_item_id, false
            from jsonb_populate_recordset(null::esl.item_row, (p -> 'variants') || (p -> 'levels')) d
        ) s on s.thing = k.thing and s.source_system = k.source_system
        where k.owner is null or (k.owner <> s.source_store_id and not s.is_absent
                                  and k.settled_by <> 'the Admin API of ' || k.owner)
        group by 1, 2, 3 order by 2, 1
    loop
        if r.is_absent then
            perform esl.give_up_claim(r.source_system, r.thing, r.source_store_id);
        else
            perform esl.settle(r.source_system, r.thing, r.source_store_id, 'the Admin API of ' || r.source_store_id);
        end if;
    end loop;
end $$;

-- All of a shop was read, from p_as_of on: what was contested by then and is not settled by it is not the shop's.
create or replace function esl.settle_by_absence(p_system text, p_shop text, p_as_of timestamptz) returns void
language sql set search_path = '' as $$
    select esl.give_up_claim(k.source_system, k.thing, p_shop) from esl.contests k
    where k.owner is null and k.source_system = p_system and p_shop = any (k.shops) and k.since < p_as_of
$$;

-- A shop's mapping has been made, changed or switched: only active shops contest anything. Where fewer than two are
-- left of them, what waited is read again; so is what waited of this shop.
create or replace function esl.contest_again(p_system text, p_shop text) returns void
language plpgsql set search_path = '' as $$
declare v_over text[];
begin
    with over as (
        delete from esl.contests k
        where k.owner is null and k.source_system = p_system and p_shop = any (k.shops) and 2 > (
            select count(*) from unnest(k.shops) as s (shop) where esl.has_active_mapping(k.source_system, s.shop))
        returning k.thing
    ) select coalesce(array_agg(thing), '{}') into v_over from over;
    perform esl.read_again(array(
        select i.id from esl.webhook_inbox i
        where i.contested is not null and i.state = 'unusable' and i.source_system = p_system
          and (i.source_store_id = p_shop or i.contested = any (v_over))
          and esl.has_active_mapping(i.source_system, i.source_store_id)));
end $$;

-- {source_system, source_store_id, thing?, by} -> {things}: a person says that the thing (product:1, inventory_item:1),
-- or without it all that is open of what this shop claims, is this shop's. things: those that are its own now.
create or replace function public.esl_owner_settle(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    perform esl.settle(k.source_system, k.thing, p ->> 'source_store_id',
                       coalesce(p ->> 'by', 'role:' || session_user))
    from esl.contests k
    where k.source_system = p ->> 'source_system' and p ->> 'source_store_id' = any (k.shops)
      and k.owner is distinct from p ->> 'source_store_id'
      and case when p ->> 'thing' is null then k.owner is null else k.thing = p ->> 'thing' end;
    return jsonb_build_object('things', (
        select coalesce(jsonb_agg(k.thing order by k.thing), '[]') from esl.contests k
        where k.source_system = p ->> 'source_system' and k.owner = p ->> 'source_store_id'
          and (p ->> 'thing' is null or k.thing = p ->> 'thing')));
end $$;
