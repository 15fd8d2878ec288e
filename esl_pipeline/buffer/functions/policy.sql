-- What SQL reads of a mapping's settings. SQL may write them too: whatever they hold, nothing here raises, for it would
-- raise on paths that serve all.

-- What holds where a mapping's settings say nothing, of all that SQL reads of them. (labels/policy.py has the same.)
create or replace function esl.policy_defaults() returns jsonb
language sql immutable as $$
    select '{"max_change_pct": 80, "guard_labels": 5, "guard_share_pct": 20, "guard_hours": 24,
             "max_held_share_pct": 20, "raise_window": null, "show_compare_at": "never", "refresh": "after_push",
             "refresh_seconds": 20, "refresh_minutes": 15, "sleep_hours": null, "templates_show_price": false,
             "low_battery_mv": 2660, "max_low_battery_pct": 5, "max_unreachable_pct": 5, "max_pass_age_minutes": 60,
             "max_unbound_pct": 10, "max_without_label_pct": 100, "max_late_pct": 5,
             "unbind_grace_hours": 24, "during_grace": "blank", "probe_label": null, "owns_store": false}'::jsonb
$$;

-- The least and the most of each number among them.
create or replace function esl.policy_bounds() returns jsonb
language sql immutable as $$
    select '{"max_change_pct": [1, 1000000000], "guard_labels": [0, 1000000000], "guard_share_pct": [0, 100],
             "guard_hours": [1, 720], "max_held_share_pct": [0, 100], "refresh_seconds": [1, 3600],
             "refresh_minutes": [1, 10080], "low_battery_mv": [1000, 10000], "max_low_battery_pct": [0, 100],
             "max_unreachable_pct": [0, 100], "max_pass_age_minutes": [1, 10080], "max_unbound_pct": [0, 100],
             "max_without_label_pct": [0, 100], "max_late_pct": [0, 100], "unbind_grace_hours": [0, 8760]}'::jsonb
$$;

-- A whole number of the settings; the default where there is none within its bounds.
create or replace function esl.policy_number(p_settings jsonb, p_name text) returns int
language sql immutable as $$  -- without a query in it, so that it is inlined
    select coalesce(
        case when jsonb_typeof(p_settings -> p_name) = 'number' then
            case when (p_settings ->> p_name)::numeric between (esl.policy_bounds() -> p_name ->> 0)::int
                                                           and (esl.policy_bounds() -> p_name ->> 1)::int
                  and (p_settings ->> p_name)::numeric = trunc((p_settings ->> p_name)::numeric)
                 then (p_settings ->> p_name)::numeric::int end end,
        (esl.policy_defaults() ->> p_name)::int)
$$;

-- Any other setting, as text.
create or replace function esl.policy_text(p_settings jsonb, p_name text) returns text
language sql immutable as $$
    select coalesce(p_settings ->> p_name, esl.policy_defaults() ->> p_name)
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

-- Whether prices may rise now: {opens, closes, time_zone}, past midnight when it closes before it opens. Without a
-- window, or with one that cannot be read: always.
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

-- When a closed window opens next; null: it is open, or there is none; infinity: it never does. (On the days on which
-- the clocks change this may be up to an hour late.)
create or replace function esl.window_opens(p_window jsonb, p_now timestamptz default now()) returns timestamptz
language plpgsql stable set search_path = '' as $$
declare v_zone text; v_here timestamp; v_opens timestamp;
begin
    if esl.window_is_open(p_window, p_now) then
        return null;
    end if;
    if p_window ->> 'opens' = p_window ->> 'closes' then
        return 'infinity';
    end if;
    v_zone := coalesce(p_window ->> 'time_zone', 'UTC');
    v_here := p_now at time zone v_zone;
    v_opens := v_here::date + (p_window ->> 'opens')::time;
    return (case when v_opens > v_here then v_opens else v_opens + interval '1 day' end) at time zone v_zone;
end $$;

-- When the labels of a mapping sleep: from and to, in seconds of the day in the shop's zone; nulls: never, or what its
-- settings say cannot be read.
create or replace function esl.sleep_of(m esl.store_mappings, out zone text, out sleeps_from int, out sleeps_to int)
language plpgsql stable set search_path = '' as $$
declare v_hours text := esl.policy_text(m.settings, 'sleep_hours');
begin
    if (v_hours ~ '^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$') is not true then
        return;
    end if;
    select coalesce(s.time_zone, 'UTC') into zone from (select 1) one
    left join esl.shops s on s.source_store_id = m.source_store_id and s.source_system = m.source_system;
    begin
        perform now() at time zone zone;
    exception when data_exception then
        zone := 'UTC';
    end;
    sleeps_from := extract(epoch from left(v_hours, 5)::time);
    sleeps_to := extract(epoch from right(v_hours, 5)::time);
end $$;

-- For how many seconds labels had slept until this time of theirs, since 1970.
create or replace function esl.slept(p_local timestamp, p_from int, p_to int) returns float8
language plpgsql immutable set search_path = '' as $$
declare
    v_days float8 := floor(extract(epoch from p_local) / 86400);
    v_time float8 := extract(epoch from p_local::time);
begin
    return v_days * ((p_to - p_from + 86400) % 86400)
        + case when p_from < p_to then least(greatest(v_time - p_from, 0), p_to - p_from)
               else least(v_time, p_to) + greatest(v_time - p_from, 0) end;
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

-- Whether a policy has labels show for a while that their price was cut.
create or replace function esl.shows_cuts(p_settings jsonb) returns boolean
language sql immutable as $$
    select coalesce(p_settings #>> '{promotion,when}' = 'price_cut', false)
$$;

-- For how many days.
create or replace function esl.cut_days(p_settings jsonb) returns numeric
language sql immutable as $$
    select case when jsonb_typeof(p_settings #> '{promotion,days}') = 'number'
                then (p_settings #>> '{promotion,days}')::numeric else 14 end
$$;

-- Whether a policy says that nobody else keeps labels in a store.
create or replace function esl.store_is_owned(p_store text) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from esl.store_mappings m where m.hipoink_store_code = p_store and m.is_active
                   and esl.policy_text(m.settings, 'owns_store') = 'true')
$$;
