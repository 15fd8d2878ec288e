-- What SQL reads of a mapping's settings and of labels. SQL may write settings too, and the label server fills what the
-- ledger says of foreign labels: whatever they hold, nothing here raises, for it would raise on paths that serve all.

-- A whole number of the settings; the default where there is none from p_least to p_most. (labels/policy.py has the same
-- defaults and bounds.)
create or replace function esl.policy_number(p_settings jsonb, p_name text, p_default int, p_least int, p_most int)
returns int language sql immutable as $$
    select coalesce(case when n between p_least and p_most and n = trunc(n) then n::int end, p_default)
    from (select case when jsonb_typeof(p_settings -> p_name) = 'number' then (p_settings ->> p_name)::numeric end as n) x
$$;

-- What of a window of {opens, closes, time_zone} cannot be carried out here, in words; null: nothing, or there is none.
create or replace function esl.window_problem(p_window jsonb) returns text
language plpgsql stable set search_path = '' as $$
declare v_time text := '^([01][0-9]|2[0-3]):[0-5][0-9]$';
begin
    if p_window is null or p_window = 'null' then
        return null;
    end if;
    if (p_window ->> 'opens' ~ v_time and p_window ->> 'closes' ~ v_time) is not true then
        return 'raise_window: opens and closes must be times of day such as 07:30; until then prices rise at any time';
    end if;
    perform now() at time zone coalesce(p_window ->> 'time_zone', 'UTC');
    return null;
exception when data_exception then
    return format('raise_window: this database knows no time zone %s; until it is corrected prices rise at any time',
                  p_window -> 'time_zone');
end $$;

-- Whether prices may rise now: {opens, closes, time_zone}, past midnight when it closes before it opens. Without a window,
-- or with one that cannot be read: always.
create or replace function esl.window_is_open(p_window jsonb, p_now timestamptz default now()) returns boolean
language plpgsql stable set search_path = '' as $$
declare v_opens time; v_closes time; v_here time;
begin
    if p_window is null or p_window = 'null' or esl.window_problem(p_window) is not null then
        return true;
    end if;
    v_opens := p_window ->> 'opens';
    v_closes := p_window ->> 'closes';
    v_here := p_now at time zone coalesce(p_window ->> 'time_zone', 'UTC');
    return case when v_opens <= v_closes then v_here >= v_opens and v_here < v_closes
                else v_here >= v_opens or v_here < v_closes end;
end $$;

-- Refuses settings that this database could not carry out; all else of them is judged by labels/policy.py.
create or replace function esl.check_settings(p_settings jsonb) returns void
language plpgsql set search_path = '' as $$
declare v_problem text := esl.window_problem(p_settings -> 'raise_window');
begin
    if v_problem is not null then
        raise exception '%', v_problem using errcode = '22023';
    end if;
end $$;

-- Why a mapping's labels may not be what they should be, in words for people; null: nothing is known to be wrong.
create or replace function esl.mapping_problem(m esl.store_mappings) returns text
language sql stable set search_path = '' as $$
    select nullif(concat_ws('; ', m.problem, esl.window_problem(m.settings -> 'raise_window'),
        case when m.awaits_read_since is not null then format(
            'waits for the first complete read of %s: until then labels of variants that it has not told of stay',
            m.source_store_id) end), '')
$$;

-- Whether a policy says that nobody else keeps labels in a store.
create or replace function esl.store_is_owned(p_store text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.store_mappings m where m.hipoink_store_code = p_store and m.is_active
                   and m.settings ->> 'owns_store' = 'true')
$$;

-- The price on a label; null where there is none that can be read.
create or replace function esl.price_of(p_label jsonb) returns numeric
language sql immutable as $$
    select case when p_label ->> 'pp' ~ '^[0-9]{1,12}([.][0-9]{1,6})?$' then (p_label ->> 'pp')::numeric end
$$;

-- A label without content. The label server demands a name and a price (hipoink-api.md section 5).
create or replace function esl.blank_of(p_label jsonb) returns jsonb
language sql immutable strict as $$
    select jsonb_object_agg(f.key, case f.key when 'pc' then f.value when 'pn' then '"-"' when 'pp' then '"0.00"' else
               case when jsonb_typeof(f.value) = 'object'
                    then (select coalesce(jsonb_object_agg(e.key, ''), '{}') from jsonb_each(f.value) e) else '""' end end)
    from jsonb_each(case when jsonb_typeof(p_label) = 'object' then p_label else '{}' end) f
$$;

create or replace function esl.is_blank(p_label jsonb) returns boolean
language sql immutable as $$
    select coalesce(p_label ->> 'pn' = '-' and p_label ->> 'pp' = '0.00', false)
$$;
