-- The tokens of the store-mapping API.

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
