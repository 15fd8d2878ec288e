-- Grace: a removal unbinds physical labels, and to bind each again is a person's work. So a removal that would unbind
-- any waits unbind_grace_hours, with the label blanked meanwhile (during_grace), and is forgotten when somebody wants
-- the place again. What is not known counts as bound. Level-triggered as everything here: a place waits as long as
-- esl.what_is_due says so; esl.graces remembers since when, and when it is to be looked at again.

-- How many physical labels are bound to a product, as far as is known.
create or replace function esl.bound_labels(p_store text, p_code text) returns int
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return (select count(*) from esl.devices d
            where d.product_code = p_code and d.store_code = p_store and d.gone_at is null);
end $$;

-- Whether no physical label is bound to a product: a complete pass that began after this time, at the server where the
-- store is, has shown none.
create or replace function esl.is_unbound(p_store text, p_code text, p_after timestamptz) returns boolean
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return coalesce((esl.complete_pass(p_store)).started_at > greatest(
               p_after, (select s.placed_at from esl.stores s where s.store_code = p_store)), false)
       and esl.bound_labels(p_store, p_code) = 0;
end $$;

-- Whether a label server is known to know no devices: there removals go as they always did.
create or replace function esl.knows_no_devices(p_server text) returns boolean
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return exists (select from esl.label_servers s where s.server = p_server and not s.knows_devices);
end $$;

-- When a wait is over that began then. Of a mapping that was paused it begins anew: nobody looked at it meanwhile; of
-- one that is being removed nothing waits.
create or replace function esl.grace_until(p_mapping uuid, p_since timestamptz) returns timestamptz
language plpgsql stable strict set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return (select greatest(p_since, m.activated_at) + make_interval(
                hours => case when m.leaving is null then esl.policy_number(m.settings, 'unbind_grace_hours')
                              else 0 end)
            from esl.store_mappings m where m.id = p_mapping);
end $$;

-- Whether a removal is to wait. What is in no ledger was never accepted, so nothing of ours can be bound to it.
create or replace function esl.removal_waits(p esl.place_row) returns boolean
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return p.is_shown
       and esl.grace_until(p.owner_mapping, coalesce(p.waits_since, clock_timestamp())) > clock_timestamp()
       and not esl.knows_no_devices(esl.server_of(p.store_code))
       and not esl.is_unbound(p.store_code, p.code, coalesce(p.decided_at, 'infinity'));
end $$;

-- What a place needs while it waits: to be blanked, or what one needs that stays as it is. A label of nobody's is not
-- written at all: it may turn out to be somebody's.
create or replace function esl.during_grace(p esl.place_row) returns text
language plpgsql stable set search_path = '' set plan_cache_mode = force_generic_plan as $$
begin
    return case
        when p.owner_variant = '' then 'nothing'
        when (select esl.policy_text(m.settings, 'during_grace') from esl.store_mappings m where m.id = p.owner_mapping)
             <> 'blank' then esl.as_it_is(p)
        when p.in_doubt or not esl.is_blanked(p.shown_hash) then 'blank'
        else 'nothing' end;
end $$;

-- Since when the time of a place counts that waits: since it needs no blanking any more; the guard may hold that up.
create or replace function esl.wait_of(p_since timestamptz, p_what text) returns table (since timestamptz)
language sql volatile as $$
    select coalesce(p_since, case when p_what <> 'blank' then clock_timestamp() end)
$$;

-- Whether the guard has let a removal go already: it is approved, or the label was blanked for it.
create or replace function esl.has_passed(g esl.graces, p_shown_hash text) returns boolean
language sql immutable as $$
    select coalesce(g.approved or (not esl.is_blanked(g.label_hash) and esl.is_blanked(p_shown_hash)), false)
$$;

-- {label_server?, shop?, limit} -> {places}: places of a server (of the stores that a shop feeds) whose wait is over
-- are decided again; how many were. To be called until there are none.
create or replace function public.esl_graces_end(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_stores text[]; v_codes text[];
begin
    perform esl.lock_stores(array(select distinct d.store_code from esl.due_graces(p) d));
    select array_agg(d.store_code), array_agg(d.code) into v_stores, v_codes from esl.due_graces(p) d;
    perform esl.requeue(v_stores, v_codes);
    -- Whatever was decided, nobody turns in circles.
    update esl.graces g set until = clock_timestamp() + interval '1 minute'
    from unnest(v_stores, v_codes) as k (store_code, code)
    where g.store_code = k.store_code and g.code = k.code and g.until <= clock_timestamp();
    return jsonb_build_object('places', coalesce(cardinality(v_codes), 0));
end $$;

-- The places whose wait is over (p: as for esl_graces_end), of one store alone, so that no others wait for its locks.
create or replace function esl.due_graces(p jsonb) returns setof esl.graces
language sql volatile set search_path = '' as $$
    with first as (
        select g.store_code from esl.graces g
        where g.until <= clock_timestamp() and esl.server_of(g.store_code) = esl.server_in(p)
          and (p -> 'shop' is null or g.store_code = any (esl.stores_of_shop(
               p #>> '{shop,source_system}', p #>> '{shop,source_store_id}')))
        order by g.until limit 1
    )
    select g.* from first f join esl.graces g on g.store_code = f.store_code
    where g.until <= clock_timestamp() order by g.until limit (p ->> 'limit')::int
$$;

-- A pass over the devices of a store has ended, whatever it came to: what waits and need not any more is looked at
-- again. What is queued already is not; nor what somebody decides now, until the next pass: nobody is waited for.
create or replace function esl.graces_after_pass(p_store text) returns void
language plpgsql volatile set search_path = '' as $$
declare v_server text := esl.server_of(p_store); v_all boolean := esl.knows_no_devices(v_server);
begin
    update esl.graces set until = clock_timestamp() where ctid = any (array(
        select g.ctid from esl.graces g
        where (v_all and esl.server_of(g.store_code) = v_server
               or g.store_code = p_store and esl.is_unbound(g.store_code, g.code, g.decided_at))
          and not exists (select from esl.sync_queue q
                          where q.code = g.code and q.store_code = g.store_code and q.operation = 'delete')
        for update skip locked));
end $$;

-- What waits of a mapping: {places, bound, next_at}: bound: physical labels that are known to be bound to it, next_at:
-- when the first of them is removed.
create or replace function esl.grace_state(p_mapping uuid) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('places', count(*), 'next_at', min(g.until),
                              'bound', coalesce(sum(esl.bound_labels(g.store_code, g.code)), 0))
    from esl.graces g join esl.hipoink_products s on s.code = g.code and s.store_code = g.store_code
    where s.mapping_id = p_mapping and not exists (
        select from esl.sync_queue q where q.code = g.code and q.store_code = g.store_code)
$$;
