-- What compose.yaml's Postgres runs once, when its volume is new: the groups, the logins and Dagster's role as
-- deploy/postgres has them, an owner for the migrations, and the passwords that secrets.sh has made. On one machine:
-- sudo ESL_PASSWORDS=… psql -f deploy/compose/init.sql. Again it renews the passwords.
\set ON_ERROR_STOP on
\set owner `cat "${ESL_PASSWORDS:-/run/secrets}/owner_password"`
\set receiver `cat "${ESL_PASSWORDS:-/run/secrets}/receiver_password"`
\set admin `cat "${ESL_PASSWORDS:-/run/secrets}/admin_password"`
\set pipeline `cat "${ESL_PASSWORDS:-/run/secrets}/pipeline_password"`
\set dagster `cat "${ESL_PASSWORDS:-/run/secrets}/dagster_password"`

-- The groups are there before `esl-pipeline migrate`, which gives them their rights.
select format('create role %I nologin', name)
from unnest(array['esl_receiver', 'esl_pipeline', 'esl_admin']) as name
where to_regrole(name) is null \gexec
select 'create role shelf_owner login' where to_regrole('shelf_owner') is null \gexec
select format('alter database %I owner to shelf_owner', current_database()) \gexec

\ir ../postgres/dagster.sql
\ir ../postgres/logins.sql
create schema if not exists pgmq authorization dagster; -- the workers' queue: docs/scale-out.md

alter role shelf_owner password :'owner';
alter role shelf_receiver password :'receiver';
alter role shelf_admin password :'admin';
alter role shelf_pipeline password :'pipeline';
alter role dagster password :'dagster';
