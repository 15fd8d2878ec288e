-- By hand: which labels and products people mean, and what they did with them.

-- {names, store?} -> {stores: [{store_code, label_server}], labels: [{store_code, esl_code, product_code, model,
--   online, seen_at}], products: [{store_code, code, label, label_hash, waits}]}: the mapped stores, and what they have
-- of these names: labels that are called so, or show a product called so or were bound to it lately, and products that
-- the label server has accepted. waits: since when the product's label is to go.
create or replace function public.esl_hands_find(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
    with names as (
        select n.name from jsonb_array_elements_text(p -> 'names') as n (name)
    ), stores as (
        select distinct m.hipoink_store_code as store_code, esl.server_of(m.hipoink_store_code) as label_server
        from esl.store_mappings m where m.removed_at is null
    ), here as (
        select s.store_code from stores s where p ->> 'store' is null or s.store_code = p ->> 'store'
    ), bound as (
        select a.esl_code, a.store_code from esl.label_actions a join names n on n.name = a.code
        where a.action = 'bind' and a.at > now() - interval '1 day'
    )
    select jsonb_build_object(
        'stores', (select coalesce(jsonb_agg(to_jsonb(s) order by s.store_code), '[]') from stores s),
        'labels', (select coalesce(jsonb_agg(to_jsonb(t) order by t.store_code, t.esl_code), '[]') from (
            select d.store_code, d.esl_code, d.product_code, d.model, d.online, esl.device_seen_at(d) as seen_at
            from esl.devices d join here h on h.store_code = d.store_code
            where d.gone_at is null and (
                d.esl_code in (select n.name from names n) or d.product_code in (select n.name from names n)
                or (d.esl_code, d.store_code) in (select b.esl_code, b.store_code from bound b)) limit 1000) t),
        'products', (select coalesce(jsonb_agg(to_jsonb(t) order by t.store_code, t.code), '[]') from (
            select s.store_code, s.code, s.label, s.label_hash, g.decided_at as waits
            from esl.hipoink_products s join here h on h.store_code = s.store_code
            left join esl.graces g on g.code = s.code and g.store_code = s.store_code
            where s.code in (select n.name from names n) limit 1000) t))
$$;

-- {action_id, by, store, action, esl_code?, code?, outcome, answer?} -> {}: keeps what somebody does, or how it ended.
-- What was accepted is to be shown.
create or replace function public.esl_hands_note(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
begin
    insert into esl.label_actions (action_id, by, store_code, action, esl_code, code, outcome, answer)
    values ((p ->> 'action_id')::uuid, p ->> 'by', p ->> 'store', p ->> 'action', p ->> 'esl_code', p ->> 'code',
            p ->> 'outcome', p ->> 'answer')
    on conflict (action_id, outcome) do nothing;
    if found and p ->> 'outcome' in ('accepted', 'unknown') and p ->> 'action' in ('bind', 'unbind') then
        perform esl.want_refresh(p ->> 'store');
    end if;
    return '{}';
end $$;

-- {action_id, by, store, code, label_hash, shows?} -> {seen}: somebody has looked at the label of a product, and it
-- shows what the label server accepted as this hash, or another price. Not seen: another hash was accepted by now.
create or replace function public.esl_hands_seen(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare v_is_so boolean;
begin
    select s.label_hash = p ->> 'label_hash' into v_is_so from esl.hipoink_products s
    where s.code = p ->> 'code' and s.store_code = p ->> 'store';
    if v_is_so then
        insert into esl.label_actions (action_id, by, store_code, action, code, outcome, answer)
        values ((p ->> 'action_id')::uuid, p ->> 'by', p ->> 'store', 'seen', p ->> 'code',
                case when p ->> 'shows' is null then 'right' else 'wrong' end, p ->> 'shows')
        on conflict (action_id, outcome) do nothing;
        if found then
            insert into esl.seen_labels (store_code, code, label_hash, by)
            values (p ->> 'store', p ->> 'code', case when p ->> 'shows' is null then p ->> 'label_hash' end,
                    p ->> 'by');
        end if;
    end if;
    return jsonb_build_object('seen', coalesce(v_is_so, false));
end $$;

-- When labels of a store were bound by hand last: that moves their rows as well.
create or replace function esl.bound_by_hand(p_store text) returns table (esl_code text, bound_by_hand_at timestamptz)
language sql stable set search_path = '' as $$
    select a.esl_code, max(a.at) from esl.label_actions a
    where a.store_code = p_store and a.action = 'bind' group by a.esl_code
$$;
