-- A login for each process, with no more than it needs (SECURITY.md). Run it after `esl-pipeline migrate`, which makes the
-- groups; running it again changes nothing. Then give each a password (psql: \password shelf_receiver, and so on).
do $$
declare l record;
begin
    for l in select * from (values
        ('shelf_receiver', 'esl_receiver'),  -- ESL_DATABASE_URL of the receiver
        ('shelf_admin',    'esl_admin'),     -- of the admin part and the console; ESL_OPERATOR_DATABASE_URL of the runs
        ('shelf_pipeline', 'esl_pipeline')   -- of the code server and the runs
    ) as t (login, in_group) loop
        if not exists (select from pg_catalog.pg_roles where rolname = l.login) then
            execute pg_catalog.format('create role %I login', l.login);
        end if;
        execute pg_catalog.format('grant %I to %I', l.in_group, l.login);
    end loop;
end $$;
