-- Administrators: the tokens of the store-mapping API, and who changed which mapping.

-- A name is used once, because esl.mapping_changes goes on naming it. The token itself is kept nowhere.
create table if not exists esl.admin_tokens (
    name       text primary key check (name ~ '^[a-z0-9][a-z0-9_.-]{0,63}$'),
    sha256     text not null unique check (sha256 ~ '^[0-9a-f]{64}$'),
    scope      text not null check (scope in ('read', 'write')),  -- write may read too
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
alter table esl.admin_tokens enable row level security;

-- Audit, append-only: old is null for a new mapping.
create table if not exists esl.mapping_changes (
    id         bigint generated always as identity primary key,
    at         timestamptz not null default clock_timestamp(),
    by         text not null,
    mapping_id uuid not null,
    old        jsonb,
    new        jsonb not null
);
alter table esl.mapping_changes enable row level security;
create or replace trigger mapping_changes_append_only before update or delete or truncate on esl.mapping_changes
    for each statement execute function esl.refuse_change();
