-- Who may do what, and which build this is.

-- Called at the end of every migration: tables are for their owner alone, the functions for service_role (where that
-- role exists).
create or replace function esl.restrict_functions() returns void language plpgsql set search_path = '' as $$
declare t regclass; f regprocedure; r text;
begin
    for t in select c.oid from pg_catalog.pg_class c
             where c.relnamespace = 'esl'::regnamespace and c.relkind = 'r' and not c.relrowsecurity loop
        execute format('alter table %s enable row level security', t);
    end loop;
    for f in select p.oid from pg_catalog.pg_proc p
             where p.pronamespace = 'public'::regnamespace and p.proname like 'esl\_%' loop
        execute format('revoke all on function %s from public', f);
        foreach r in array array['anon', 'authenticated'] loop
            if exists (select from pg_catalog.pg_roles where rolname = r) then
                execute format('revoke all on function %s from %I', f, r);
            end if;
        end loop;
        if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
            execute format('grant execute on function %s to service_role', f);
        end if;
    end loop;
    notify pgrst, 'reload schema';
end $$;

-- {} -> {"version": n, "functions": digest}: the handshake at start, and the receiver's health check. The digest of
-- these files is kept as the schema's comment, so that code and functions of different builds never work together.
create or replace function public.esl_version(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('version', coalesce(max(version), 0),
                              'functions', pg_catalog.obj_description('esl'::regnamespace, 'pg_namespace'))
    from esl.schema_migrations
$$;
