-- Who may do what, and which build this is.

-- Which process calls which function; a name that ends in * stands for all that begin so. Whoever is not named here may
-- call nothing, and nobody may touch a table: the functions run as their owner. service_role may call all of them.
create or replace function esl.callers() returns table (role text, function text)
language sql immutable set search_path = '' as $$
    select c.role, unnest(c.functions) from (values
        ('esl_receiver', array[
            'esl_version', 'esl_inbox_add', 'esl_refusals_note']),
        ('esl_pipeline', array[
            'esl_version', 'esl_mapping_list', 'esl_status', 'esl_preview', 'esl_accuracy', 'esl_due',
            'esl_inbox_claim', 'esl_variants_*', 'esl_missing_variants', 'esl_labels_*', 'esl_push_*', 'esl_rate_*',
            'esl_lease_*', 'esl_claims_*', 'esl_snapshot_*', 'esl_watermark_*', 'esl_drift_*', 'esl_housekeep',
            'esl_redaction_*', 'esl_refresh_*', 'esl_graces_end', 'esl_connection_list', 'esl_files_known',
            'esl_files_note', 'esl_files_finish', 'esl_files_list', 'esl_problems_note', 'esl_device_*', 'esl_shelf*',
            'esl_ladder', 'esl_probe_*', 'esl_alert_*']),
        ('esl_admin', array[
            'esl_version', 'esl_mapping_*', 'esl_token_*', 'esl_status', 'esl_findings', 'esl_preview', 'esl_trace',
            'esl_trace_find', 'esl_story',
            'esl_changes_approve', 'esl_redrive', 'esl_owner_settle', 'esl_connection_*', 'esl_files_list',
            'esl_files_approve', 'esl_shelf*', 'esl_ladder', 'esl_hands_*', 'esl_waiting_*', 'esl_night', 'esl_sizes',
            'esl_numbers', 'esl_stats', 'esl_alert_list', 'esl_operator_*', 'esl_console_*'])
    ) as c (role, functions)
$$;

create or replace function esl.may_call(p_role text, p_function text) returns boolean
language sql immutable set search_path = '' as $$
    select exists (select from esl.callers() c where c.role = p_role and case
        when c.function like '%*' then starts_with(p_function, rtrim(c.function, '*'))
        else c.function = p_function end)
$$;

-- How a door is planned is said by the door, and holds for all that it calls: where tables may grow from nothing within
-- a session, for each call, by what is there. (A plan that was made for an empty queue reads all of a long one.)

-- At the beginning of a door that is called for each change of a price, whose plans are kept: to plan it anew takes
-- longer than all else. A table is analysed, one a call, that is more than twice as large as when it was last, or in
-- which more than twice as many rows have been written since as it had then (a queue that was known to be empty is as
-- large as when it was full): that makes the plans anew. Autovacuum would, a minute later; in that a new store is
-- filled, and a plan by what was known before it came reads the whole ledger, or queue, for each of its labels.
create or replace function esl.know_what_grew() returns void language plpgsql set search_path = '' as $$
declare t regclass;
begin
    select c.oid into t from pg_catalog.pg_class c
    where c.relnamespace = 'esl'::regnamespace and c.relkind = 'r'
      and pg_catalog.pg_relation_size(c.oid) > 65536
      and (pg_catalog.pg_relation_size(c.oid) > 65536 + 2 * 8192 * c.relpages::bigint
           or pg_catalog.pg_stat_get_mod_since_analyze(c.oid) > 1000 + 2 * c.reltuples)
    order by pg_catalog.pg_relation_size(c.oid) desc limit 1;
    if t is not null then
        begin
            execute format('lock table %s in share update exclusive mode nowait', t);
            execute format('analyze %s', t);
        exception when lock_not_available then
            null;  -- somebody is at it
        end;
    end if;
end $$;

-- Once the functions have been replaced: a function of an older build goes when this build has one of its name with
-- other parameters. Else one call could mean both, and Postgres refuses it. What this transaction has written is new.
create or replace function esl.drop_older_overloads() returns void language plpgsql set search_path = '' as $$
declare f record;
begin
    for f in select o.oid::regprocedure as signature from pg_catalog.pg_proc o
             where o.pronamespace = 'esl'::regnamespace and o.xmin <> pg_current_xact_id()::xid
               and exists (select from pg_catalog.pg_proc n
                           where n.pronamespace = o.pronamespace and n.proname = o.proname
                             and n.xmin = pg_current_xact_id()::xid) loop
        execute format('drop function %s', f.signature);
    end loop;
end $$;

-- Called at the end of every migration: who may call what, and what holds for every call. The roles are groups: each
-- process has a login of its own, a member of one. (A function's own statement_timeout is for PostgREST, which applies
-- it before the call, over the 8 s that a project's role has. Over psycopg it is too late: see PsycopgTransport.)
create or replace function esl.restrict_functions() returns void language plpgsql set search_path = '' as $$
declare t regclass; f record; r text;
begin
    for r in select distinct c.role from esl.callers() c order by 1 loop
        if not exists (select from pg_catalog.pg_roles where rolname = r) then
            begin
                execute format('create role %I nologin', r);
            exception
                when duplicate_object or unique_violation then null;  -- the migration of another database was first
                when insufficient_privilege then
                    raise warning 'role % is missing and % may not create it: let an administrator run "create role % '
                        'nologin" and migrate again, or go on without it', r, current_user, r;
            end;
        end if;
    end loop;
    for t in select c.oid from pg_catalog.pg_class c
             where c.relnamespace = 'esl'::regnamespace and c.relkind = 'r' and not c.relrowsecurity loop
        execute format('alter table %s enable row level security', t);
    end loop;
    for f in select p.oid::regprocedure as signature, p.proname::text as name, p.proconfig as settings
             from pg_catalog.pg_proc p
             where p.pronamespace = 'public'::regnamespace and p.proname like 'esl\_%' loop
        -- A call takes milliseconds, the compilation of its plan a hundred of them, in every session anew.
        if not 'jit=off' = any (coalesce(f.settings, '{}')) then
            execute format('alter function %s set jit = off', f.signature);
        end if;
        execute format('revoke all on function %s from public', f.signature);
        for r in select rolname from pg_catalog.pg_roles
                 where rolname in ('anon', 'authenticated') or rolname in (select c.role from esl.callers() c)
                 order by 1 loop
            if esl.may_call(r, f.name) then
                execute format('grant execute on function %s to %I', f.signature, r);
            else
                execute format('revoke all on function %s from %I', f.signature, r);
            end if;
        end loop;
        if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
            execute format('grant execute on function %s to service_role', f.signature);
        end if;
    end loop;
    notify pgrst, 'reload schema';
end $$;

-- {} -> {"version": n, "build": n, "functions": digest}: the handshake at start, and the receiver's health check.
-- Number and digest of these files are kept as the schema's comment, so that code and functions of different builds
-- never work together, and the older of the two knows it.
create or replace function public.esl_version(p jsonb) returns jsonb
language sql volatile security definer set search_path = '' as $$
    select jsonb_build_object('version', coalesce(max(version), 0),
                              'build', coalesce(substring(n.comment from '^([0-9]{1,9}) ')::int, 0),
                              'functions', substring(n.comment from '[^ ]+$'))
    from (select pg_catalog.obj_description('esl'::regnamespace, 'pg_namespace') as comment) n
    left join esl.schema_migrations on true group by n.comment
$$;
