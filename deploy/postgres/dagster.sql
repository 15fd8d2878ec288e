-- Dagster's storage: a role and a schema of its own, never public, which Supabase exposes. Run it once as whoever may make
-- roles (Supabase: postgres, in the SQL editor), in the database that Dagster shall use; running it again changes nothing.
-- Then give the role a password (psql: \password dagster) and write its address into ESL_DAGSTER_DATABASE_URL:
-- postgresql+psycopg2://dagster:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full
do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'dagster') then
        create role dagster login;
    end if;
    -- Whoever makes a schema for somebody must be able to be that role. (Who made it is not, from Postgres 16 on.)
    if not (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
        execute pg_catalog.format('grant dagster to %I', current_user);
    end if;
end $$;
alter role dagster set search_path = dagster;
create schema if not exists dagster authorization dagster;
