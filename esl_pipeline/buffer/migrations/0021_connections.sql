-- How each shop is connected: who makes its webhook subscriptions, since when, and what its deliveries tell of them.

-- subscriptions: made per shop through the Admin API ('api'), or by the app for all of its shops ('toml'). first_webhook_at:
-- of the first delivery since connected_at that is finished. A connection that has ended keeps its row until it is made anew.
create table if not exists esl.connections (
    source_system    text not null,
    source_store_id  text not null,
    subscriptions    text not null check (subscriptions in ('api', 'toml')),
    connected_at     timestamptz not null default clock_timestamp(),
    connected_by     text not null,
    first_webhook_at timestamptz,
    ended_at         timestamptz,
    ended_by         text,
    db_user          text not null default session_user,
    primary key (source_store_id, source_system)
);
alter table esl.connections enable row level security;

-- Webhooks whose signature was wrong, by the shop that they name without proof. receiver: a process, which counts for itself
-- and tells what it has counted since its series began, so that the same word twice counts once.
create table if not exists esl.refused_signatures (
    source_system   text not null,
    source_store_id text not null,
    receiver        text not null,
    refused         bigint not null,
    since           timestamptz not null,
    last_at         timestamptz not null,
    primary key (source_store_id, source_system, receiver)
);
create index if not exists refused_signatures_last on esl.refused_signatures (last_at);
alter table esl.refused_signatures enable row level security;

-- The version of the Webhooks API that the newest finished delivery was of.
alter table esl.shop_deliveries add column if not exists last_api_version text;
