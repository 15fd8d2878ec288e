-- The label server's names of what is on a label, which nothing else in SQL knows: pc the code, pn the name, pp the
-- price (hipoink-api.md section 5). It fills what the ledger says of foreign labels: whatever that is, nothing here
-- raises.

-- The price on a label; null where there is none that can be read.
create or replace function esl.price_of(p_label jsonb) returns numeric
language sql immutable as $$
    select case when p_label ->> 'pp' ~ '^[0-9]{1,12}([.][0-9]{1,6})?$' then (p_label ->> 'pp')::numeric end
$$;

-- A label without its content. The label server demands a name and a price.
create or replace function esl.blanked(p_label jsonb) returns jsonb
language sql immutable strict as $$
    select jsonb_object_agg(f.key, case
        when f.key = 'pc' then f.value
        when f.key = 'pn' then '"-"'
        when f.key = 'pp' then '"0.00"'
        when f.key = 'promotion' then f.value  -- it takes nothing but numbers
        when jsonb_typeof(f.value) = 'object' then (
            select coalesce(jsonb_object_agg(e.key, ''), '{}') from jsonb_each(f.value) e)
        else '""' end)
    from jsonb_each(case when jsonb_typeof(p_label) = 'object' then p_label else '{}' end) f
$$;

-- The hash that goes with a blanked label wherever it goes: into queue, log and ledger. Its first word is the mark by
-- which it is known, because its content is none: a product may be called "-" and cost nothing.
create or replace function esl.blank_hash(p_blank jsonb) returns text
language sql immutable strict as $$
    select 'blank ' || encode(sha256(convert_to(p_blank::text, 'UTF8')), 'hex')
$$;

-- Whether a label of this hash is one that was blanked.
create or replace function esl.is_blanked(p_label_hash text) returns boolean
language sql immutable as $$
    select coalesce(starts_with(p_label_hash, 'blank '), false)
$$;
