-- Administrators: the tokens of the store-mapping API, and who changed which mapping.

-- What is known of a token, without its hash.
create or replace function esl.token_described(t esl.admin_tokens) returns jsonb
language sql stable set search_path = '' as $$
    select to_jsonb(t) - 'sha256' || jsonb_build_object('state', case
        when t.revoked_at is not null then 'revoked' when t.expires_at <= now() then 'expired' else 'valid' end)
$$;

-- {name, sha256, scope, days?} -> the token's description. sha256: of the token, in hex. 23505: the name is taken, and
-- stays so.
create or replace function public.esl_token_add(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare t esl.admin_tokens;
begin
    insert into esl.admin_tokens (name, sha256, scope, expires_at)
    values (p ->> 'name', p ->> 'sha256', p ->> 'scope', now() + make_interval(days => (p ->> 'days')::int))
    on conflict (name) do nothing;
    select * into t from esl.admin_tokens where name = p ->> 'name' and sha256 = p ->> 'sha256';
    if not found then
        raise exception 'a token of this name exists already' using errcode = '23505';
    end if;
    return esl.token_described(t);
end $$;

-- {} -> {tokens: [{name, scope, state, created_at, expires_at, revoked_at}]}
create or replace function public.esl_token_list(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('tokens', coalesce(jsonb_agg(esl.token_described(t) order by t.created_at, t.name), '[]'))
    from esl.admin_tokens t
$$;

-- {name} -> the token's description, or null. It is refused from now on.
create or replace function public.esl_token_revoke(p jsonb) returns jsonb
language plpgsql volatile security definer set search_path = '' as $$
declare t esl.admin_tokens;
begin
    update esl.admin_tokens set revoked_at = coalesce(revoked_at, now()) where name = p ->> 'name' returning * into t;
    return case when found then esl.token_described(t) end;
end $$;

-- {sha256} -> {any, token}: whether there is any valid token, and the description of the one with this hash, or null.
-- Looking the hash up need not take constant time: nobody can choose a token by the beginning of its hash.
create or replace function public.esl_token_check(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object(
        'any', exists (select from esl.admin_tokens t where t.revoked_at is null
                       and (t.expires_at is null or t.expires_at > now())),
        'token', (select esl.token_described(t) from esl.admin_tokens t where t.sha256 = p ->> 'sha256'))
$$;

-- Kept with each change of a mapping, in its transaction. A call that changes nothing leaves no row.
create or replace function esl.note_change(p_by text, p_old esl.store_mappings, p_new esl.store_mappings) returns void
language sql set search_path = '' as $$
    insert into esl.mapping_changes (by, mapping_id, old, new)
    select coalesce(p_by, 'role:' || session_user), p_new.id, to_jsonb(p_old), to_jsonb(p_new)
    where p_old is null or to_jsonb(p_old) - 'updated_at' <> to_jsonb(p_new) - 'updated_at'
$$;

-- {store?, limit} -> {changes: [{at, by, mapping_id, old, new}]}: who made and changed the mappings, newest first.
create or replace function public.esl_mapping_history(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('changes', coalesce(jsonb_agg(to_jsonb(c) - 'id' order by c.id desc), '[]')) from (
        select * from esl.mapping_changes
        where p ->> 'store' is null
           or p ->> 'store' in (old ->> 'hipoink_store_code', new ->> 'hipoink_store_code')
        order by id desc limit (p ->> 'limit')::int) c
$$;

-- The trigger function of every append-only table.
create or replace function esl.refuse_change() returns trigger language plpgsql set search_path = '' as $$
begin
    raise exception '%.% is append-only', tg_table_schema, tg_table_name using errcode = '42501';
end $$;
