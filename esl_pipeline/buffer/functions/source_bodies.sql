-- What the signed bodies of known sources must look like, for receivers that cannot judge it: JavaScript rounds ids
-- beyond 2^53. The same rules as in Python (sources/bodies.py and the deliveries of each source), which judges before
-- it calls; a test holds the two against each other. (A number that no float holds is none for Python's parser alone:
-- such a body becomes unusable when it is read.)

-- An object, or why the bytes are none that is of use.
create or replace function esl.parsed_body(p_raw bytea, out body jsonb, out fault text)
language plpgsql immutable set search_path = '' as $$
declare v_text text;
begin
    v_text := convert_from(p_raw, 'UTF8');
    if length(v_text) - length(translate(v_text, '{[', '')) > 100000 then
        fault := 'the body has more than 100,000 objects and lists, as no product has';
        return;
    end if;
    if position('\u0000' in v_text) > 0 then  -- legal JSON, which jsonb cannot hold
        v_text := regexp_replace(v_text, '(?<!\\)((?:\\\\)*)\\u0000', '\1\\ufffd', 'g');
    end if;
    body := v_text::jsonb;
    if jsonb_typeof(body) <> 'object' then
        body := null;
        fault := 'the body is not a JSON object';
    end if;
exception when data_exception or program_limit_exceeded then
    body := null;
    fault := 'the body is not JSON: ' || left(sqlerrm, 100);
end $$;

-- A text that is an ISO 8601 time with its offset; null for anything else.
create or replace function esl.said_instant(p_said jsonb) returns timestamptz
language plpgsql stable set search_path = '' as $$
declare v_text text := p_said #>> '{}';
begin
    if jsonb_typeof(p_said) = 'string'
       and v_text ~ '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.]\d+)?)?(Z|[+-]\d\d(:?\d\d)?)$' then
        return regexp_replace(v_text, '([.]\d{6})\d+', '\1')::timestamptz;
    end if;
    return null;
exception when data_exception then
    return null;
end $$;

create or replace function esl.is_id(p_value jsonb) returns boolean
language sql immutable set search_path = '' as $$
    select coalesce(jsonb_typeof(p_value) = 'number' and p_value::text ~ '^[0-9]{1,19}$'
                    and (p_value #>> '{}')::numeric between 1 and 9223372036854775807, false)
$$;

create or replace function esl.keys(p_object jsonb) returns text[]
language sql immutable set search_path = '' as $$
    select array_agg(k order by k collate "C") from jsonb_object_keys(p_object) k
$$;

-- What the body of a topic of products or stock lacks; null: nothing.
create or replace function esl.shape_fault(p_topic text, p_body jsonb) returns text
language sql immutable set search_path = '' as $$
    select case
        when p_topic like 'inventory\_levels/%' then case
            when not (esl.is_id(p_body -> 'inventory_item_id') and esl.is_id(p_body -> 'location_id'))
                then format('a %s body needs the integers inventory_item_id and location_id', p_topic)
            when p_topic = 'inventory_levels/disconnect' and cardinality(esl.keys(p_body)) <> 2
                then format('a %s body holds inventory_item_id, location_id and nothing else', p_topic) end
        when not esl.is_id(p_body -> 'id') then format('a %s body needs the integer id', p_topic)
        when p_topic = 'products/delete' then case
            when cardinality(esl.keys(p_body)) <> 1 then 'a products/delete body holds the id and nothing else' end
        when jsonb_typeof(p_body -> 'updated_at') is distinct from 'string'
          or jsonb_typeof(p_body -> 'variants') is distinct from 'array'
            then format('a %s body needs the text updated_at and the list variants', p_topic)
        else (
            select format('the body lists %s %s, and a product has at most 2,048 variants',
                          to_char(jsonb_array_length(p_body -> n), 'FM9,999,999'), n)
            from unnest(array['variants', 'variant_gids']) n
            where case jsonb_typeof(p_body -> n) when 'array' then jsonb_array_length(p_body -> n) > 2048 end limit 1)
        end
$$;

-- The same of a topic about the shop itself, or about its customers.
create or replace function esl.lifecycle_fault(p_topic text, p_shop text, p_form text, p_body jsonb, p_said timestamptz)
returns text
language sql immutable set search_path = '' as $$
    select case
        when jsonb_typeof(p_body -> f.name) is distinct from 'string' or f.shop ~ p_form is not true
            then format('a %s body needs the shop''s domain in %s', p_topic, f.name)
        when f.shop <> p_shop then format('replay suspected: %s in the body is another shop''s', f.name)
        when p_topic = 'shop/redact' and esl.keys(p_body) <> array['shop_domain', 'shop_id']
            then 'replay suspected: a shop/redact body holds shop_id, shop_domain and nothing else'
        when p_topic = 'app/uninstalled' and p_said is null
            then 'an app/uninstalled body needs its time, updated_at, which is not ahead of ours' end
    from (select n as name, lower((p_body ->> n) collate "C") as shop
          from (values (case p_topic when 'app/uninstalled' then 'myshopify_domain' else 'shop_domain' end)) v (n)) f
$$;

-- A delivery that came without a state, with the state, the reason and the time of its body; one of the lifecycle
-- without its body, which is about people and kept by nobody.
create or replace function esl.judge(p_delivery jsonb, p_form text, p_topics text[]) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
    v_topic text := p_delivery ->> 'topic'; v_is_of_shop boolean := v_topic <> all (p_topics);
    v_read record := esl.parsed_body(decode(p_delivery ->> 'body_base64', 'base64'));
    v_fault text := v_read.fault; v_other text; v_said timestamptz;
begin
    if v_fault is null then
        v_said := esl.said_instant(v_read.body -> 'updated_at');
        if v_said > now() + interval '10 minutes' then
            v_said := null;
        end if;
        if v_is_of_shop then
            v_fault := esl.lifecycle_fault(v_topic, p_delivery ->> 'source_store_id', p_form, v_read.body, v_said);
        else
            v_fault := esl.shape_fault(v_topic, v_read.body);
            select t into v_other from unnest(p_topics) with ordinality u (t, n)
            where v_fault is not null and esl.shape_fault(t, v_read.body) is null order by n limit 1;
            if v_other is not null then
                v_fault := format('replay suspected: the body is one of %s; %s', v_other, v_fault);
            end if;
        end if;
    end if;
    return p_delivery || jsonb_build_object(
        'state', case when v_fault is not null then 'unusable' when v_is_of_shop then 'done' else 'ready' end,
        'reason', coalesce(v_fault, case
            when v_topic like 'customers/%' then 'no data of customers is held'
            when v_topic = 'shop/redact'
                then 'housekeeping deletes what is held of the shop, once nothing speaks against it'
            when v_topic = 'app/uninstalled' then 'the shop''s mappings are inactive' end),
        'said_at', case when v_fault is null then v_said end)
        || case when v_is_of_shop then '{"body_base64": null}' else '{}' end::jsonb;
end $$;

-- Deliveries as they came; those without a state, of a source whose bodies are known here, are judged.
create or replace function esl.judged(p_deliveries jsonb) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
    if not jsonb_path_exists(p_deliveries, '$[*] ? (!exists(@.state) || @.state == null)') then
        return p_deliveries;
    end if;
    return (
        select jsonb_agg(case when s.shop is null then d else esl.judge(d, s.shop, s.topics) end order by n)
        from jsonb_array_elements(p_deliveries) with ordinality e (d, n)
        left join esl.sources() s on d ->> 'state' is null and s.system = d ->> 'source_system'
                                 and s.lifecycle <> '{}' and d ->> 'topic' = any (s.topics || s.lifecycle));
end $$;
