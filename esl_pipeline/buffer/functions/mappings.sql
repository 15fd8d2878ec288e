-- Store mappings: made, changed, listed, and what follows for their labels.

-- A shop's variants are evaluated again: its labels follow the mapping, no webhook needed. Whatever is due already has
-- its own cause.
create or replace function esl.evaluate_again(p_source_system text, p_source_store_id text, p_cause text) returns void
language sql set search_path = '' as $$
    update esl.products
    set due = true, revision = nextval('esl.revision'), cause = case when due then cause else p_cause end
    where source_system = p_source_system and source_store_id = p_source_store_id
$$;

-- A mapping as callers see it.
create or replace function esl.shown_mapping(m esl.store_mappings) returns jsonb
language sql stable set search_path = '' as $$
    select to_jsonb(m) || jsonb_build_object('label_server', esl.server_of(m.hipoink_store_code))
$$;

-- {source_system, source_store_id, hipoink_store_code, label_server?, is_active?, is_dry_run?, settings?, shared?, by?}
-- -> the mapping, with a remark where there is something to know. label_server: where the store is (see
-- esl.place_store). shared: it is meant that other shops feed the store as well (else 23P01). by: who makes it, for
-- esl.mapping_changes. One that was removed lives again. 23505: exists already. 22023: settings that this database
-- cannot carry out, or no shop.
create or replace function public.esl_mapping_create(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare m esl.store_mappings; v_remark text;
begin
    perform esl.lock_mappings();
    perform esl.lock_stores(esl.stores_of_shop(p ->> 'source_system', p ->> 'source_store_id')
                            || (p ->> 'hipoink_store_code'));
    perform esl.check_settings(p -> 'settings');
    perform esl.check_shop(p ->> 'source_system', p ->> 'source_store_id');
    perform esl.check_sharing(p ->> 'source_system', p ->> 'source_store_id', p ->> 'hipoink_store_code',
                              (p ->> 'shared')::boolean);
    v_remark := esl.place_store(p ->> 'hipoink_store_code', p ->> 'label_server', null);
    insert into esl.store_mappings as o (source_system, source_store_id, hipoink_store_code, is_active, is_dry_run,
                                         settings)
    values (p ->> 'source_system', p ->> 'source_store_id', p ->> 'hipoink_store_code',
            coalesce((p ->> 'is_active')::boolean, true), coalesce((p ->> 'is_dry_run')::boolean, false),
            coalesce(p -> 'settings', '{}'))
    on conflict (source_system, source_store_id, hipoink_store_code) do update
    set is_active = excluded.is_active, is_dry_run = excluded.is_dry_run, settings = excluded.settings, problem = null,
        removed_at = null, activated_at = excluded.activated_at, updated_at = now()
    where o.removed_at is not null
    returning * into m;
    if not found then
        raise exception 'this shop is mapped to this store already' using errcode = '23505';
    end if;
    perform esl.note_change(p ->> 'by', null, esl.shown_mapping(m));
    perform esl.contest_again(m.source_system, m.source_store_id);
    perform esl.evaluate_again(m.source_system, m.source_store_id, 'policy');
    return esl.shown_mapping(m) || jsonb_strip_nulls(jsonb_build_object('remark', v_remark));
end $$;

-- The places of a mapping that no evaluation of its shop comes to: of foreign labels, also those that other mappings of
-- its store have adopted, and of variants that the shop does not have (while it awaits its first read they stay as
-- they are).
create or replace function esl.strays(m esl.store_mappings) returns table (store_code text, code text)
language sql stable set search_path = '' as $$
    select k.store_code, k.code
    from (select s.store_code, s.code, s.mapping_id, s.variant_id from esl.hipoink_products s
          union select q.store_code, q.code, q.mapping_id, q.variant_id from esl.sync_queue q) k
    where case when k.variant_id = '' then k.mapping_id = m.id or k.store_code = m.hipoink_store_code
               else k.mapping_id = m.id and m.awaits_read_since is null and not exists (
                   select from esl.products o where o.variant_id = k.variant_id
                     and o.source_store_id = m.source_store_id and o.source_system = m.source_system) end
$$;

-- What these fields make of a mapping (p: as for esl_mapping_update).
create or replace function esl.patch_mapping(p jsonb) returns esl.store_mappings
language plpgsql volatile set search_path = '' as $$
declare m esl.store_mappings;
begin
    insert into esl.left_stores (mapping_id, store_code)
    select o.id, o.hipoink_store_code from esl.store_mappings o
    where o.id = (p ->> 'id')::uuid and o.hipoink_store_code <> p ->> 'hipoink_store_code'
    on conflict do nothing;
    update esl.store_mappings o set
        source_system = coalesce(p ->> 'source_system', source_system),
        source_store_id = coalesce(p ->> 'source_store_id', source_store_id),
        hipoink_store_code = coalesce(p ->> 'hipoink_store_code', hipoink_store_code),
        is_active = coalesce((p ->> 'is_active')::boolean, is_active),
        activated_at = case when (p ->> 'is_active')::boolean and not is_active
                              or p ->> 'source_store_id' <> source_store_id
                            then clock_timestamp() else activated_at end,
        switched_off = case when p ->> 'is_active' is null then switched_off end,
        leaving = case when (p ->> 'is_active')::boolean then null else leaving end,
        is_dry_run = coalesce((p ->> 'is_dry_run')::boolean, is_dry_run),
        settings = coalesce(p -> 'settings', settings),
        -- As long as it is not evaluated again, nothing is pushed anyway.
        problem = case when p -> 'settings' <> settings then null else problem end,
        awaits_read_since = case
            when (coalesce(p ->> 'source_system', source_system), coalesce(p ->> 'source_store_id', source_store_id))
                 = (source_system, source_store_id) then awaits_read_since
            when exists (select from esl.labels l where l.mapping_id = o.id)
              or exists (select from esl.hipoink_products s where s.mapping_id = o.id) then now() end,
        updated_at = now()
    where id = (p ->> 'id')::uuid
    returning * into m;
    return m;
end $$;

-- Decides and judges again what a changed mapping touches: places of variants when they are evaluated, the others now.
create or replace function esl.follow_mapping(p_before esl.store_mappings, m esl.store_mappings) returns void
language plpgsql volatile set search_path = '' as $$
declare v_stores text[]; v_codes text[];
begin
    if (p_before.is_active, p_before.source_system, p_before.source_store_id)
       <> (m.is_active, m.source_system, m.source_store_id) then
        perform esl.contest_again(p_before.source_system, p_before.source_store_id);
        perform esl.contest_again(m.source_system, m.source_store_id);
    end if;
    if p_before.is_active and not m.is_active then
        -- Its own labels are not evaluated while it is paused, but those they collided with are free now.
        select array_agg(store_code), array_agg(code) into v_stores, v_codes
        from esl.labels where mapping_id = m.id and collides;
        perform esl.requeue(v_stores, v_codes, 'policy');
    end if;
    select array_agg(k.store_code), array_agg(k.code) into v_stores, v_codes
    from (select * from esl.strays(p_before) union select * from esl.strays(m)) k;
    perform esl.requeue(v_stores, v_codes, 'policy');
    if m.is_active then
        perform esl.evaluate_again(m.source_system, m.source_store_id, 'policy');
    end if;
end $$;

-- {id, source_system?, source_store_id?, hipoink_store_code?, label_server?, is_active?, is_dry_run?, settings?,
-- shared?, by?} -> the mapping, with a remark where there is something to know, or null. label_server: as for
-- esl_mapping_create, of the store that it names then. shared: as there, asked for where the store changes. Another
-- store: its labels are written there, then removed from the one before (see esl.guard). Another shop: it may be the
-- same under another name, so the labels stay until it has been read completely (see esl.shop_was_read). Whoever says
-- is_active ends the alarm that a message had switched it off. 22023: settings that this database cannot carry out.
create or replace function public.esl_mapping_update(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    m esl.store_mappings; v_before esl.store_mappings; v_shown_before jsonb; v_system text; v_shop text; v_remark text;
begin
    perform esl.lock_mappings();
    perform esl.check_settings(p -> 'settings');
    select * into v_before from esl.store_mappings where id = (p ->> 'id')::uuid and removed_at is null;
    if not found then
        return null;
    end if;
    v_system := coalesce(p ->> 'source_system', v_before.source_system);
    v_shop := coalesce(p ->> 'source_store_id', v_before.source_store_id);
    perform esl.lock_stores(esl.stores_of_shop(v_before.source_system, v_before.source_store_id)
                            || esl.stores_of_shop(v_system, v_shop) || (p ->> 'hipoink_store_code'));
    perform esl.check_shop(v_system, v_shop);
    if p ->> 'hipoink_store_code' <> v_before.hipoink_store_code then
        perform esl.check_sharing(v_system, v_shop, p ->> 'hipoink_store_code', (p ->> 'shared')::boolean);
    end if;
    v_shown_before := esl.shown_mapping(v_before);
    v_remark := esl.place_store(coalesce(p ->> 'hipoink_store_code', v_before.hipoink_store_code), p ->> 'label_server',
                                v_before.id);
    m := esl.patch_mapping(p);
    perform esl.note_change(p ->> 'by', v_shown_before, esl.shown_mapping(m));
    perform esl.follow_mapping(v_before, m);
    return esl.shown_mapping(m) || jsonb_strip_nulls(jsonb_build_object('remark', v_remark));
end $$;

-- Withdraws the labels of variants that the mapping's shop does not have, and decides their places and all strays'.
create or replace function esl.withdraw_absent(m esl.store_mappings) returns void
language plpgsql set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_stores text[]; v_codes text[];
begin
    with gone as materialized (
        select l.variant_id, l.store_code, l.code from esl.labels l
        where l.mapping_id = m.id and not exists (
            select from esl.products o where o.variant_id = l.variant_id
              and o.source_store_id = m.source_store_id and o.source_system = m.source_system)
    ), withdrawn as (
        update esl.labels l
        set state = 'withdrawn', code = null, label = null, label_hash = null, precedence = null, collides = false
        from gone g where l.mapping_id = m.id and l.variant_id = g.variant_id
    ), resolved as (
        update esl.findings f set resolved_at = now() from gone g
        where f.mapping_id = m.id and f.variant_id = g.variant_id and f.resolved_at is null
    ), places as (
        select g.store_code, g.code from gone g where g.code is not null
        union select * from esl.strays(m)
    )
    select array_agg(store_code), array_agg(code) into v_stores, v_codes from places;
    perform esl.requeue(v_stores, v_codes, 'policy');
end $$;

-- A shop has just been read completely. Mappings that were given its name withdraw the labels of variants that it does
-- not have; and drastic changes of its stores are counted again, of which some may have left the guard's hours.
-- Takes the locks of their stores, so it comes before any row of products is locked.
create or replace function esl.shop_was_read(p_source_system text, p_source_store_id text) returns void
language plpgsql set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare m esl.store_mappings; v_guarded text[];
begin
    select array_agg(distinct o.hipoink_store_code) into v_guarded
    from esl.store_mappings o join esl.sync_queue q on q.store_code = o.hipoink_store_code
    where o.source_system = p_source_system and o.source_store_id = p_source_store_id and q.drastic is not null
      and q.state = 'guarded';
    if v_guarded is null and not exists (
            select from esl.store_mappings o where o.source_system = p_source_system
              and o.source_store_id = p_source_store_id and o.awaits_read_since is not null) then
        return;
    end if;
    perform esl.lock_stores(esl.stores_of_shop(p_source_system, p_source_store_id));
    for m in
        update esl.store_mappings set awaits_read_since = null
        where source_system = p_source_system and source_store_id = p_source_store_id and awaits_read_since is not null
        returning *
    loop
        perform esl.withdraw_absent(m);
    end loop;
    perform esl.guard(store_code) from unnest(v_guarded) as g (store_code);
end $$;

-- {id?} -> {mappings: [...]}, with currency and taxes_included as the shop says, where that is known.
create or replace function public.esl_mapping_list(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('mappings', coalesce(jsonb_agg(esl.shown_mapping(m) || jsonb_build_object(
               'currency', s.currency, 'taxes_included', s.taxes_included) order by m.created_at, m.id), '[]'))
    from esl.store_mappings m
    left join esl.shops s on s.source_system = m.source_system and s.source_store_id = m.source_store_id
    where m.removed_at is null and (p ->> 'id' is null or m.id = (p ->> 'id')::uuid)
$$;

-- Of which mappings something is asked: {store?, shop?, shops?}, all of them where nothing is said.
create or replace function esl.chosen_mappings(p jsonb) returns setof esl.store_mappings
language sql stable set search_path = '' as $$
    select m.* from esl.store_mappings m
    where m.removed_at is null and (p ->> 'store' is null or m.hipoink_store_code = p ->> 'store')
      and (p -> 'shop' is null
           or (m.source_system, m.source_store_id) = (p #>> '{shop,source_system}', p #>> '{shop,source_store_id}'))
      and (p -> 'shops' is null or (m.source_system, m.source_store_id) in (
           select * from jsonb_populate_recordset(null::esl.shop_row, p -> 'shops')))
$$;
