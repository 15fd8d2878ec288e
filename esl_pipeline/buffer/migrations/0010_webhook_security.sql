-- Bodies are kept for a while only, those about people not at all; shops that leave are forgotten.

alter table esl.webhook_inbox alter column body drop not null;
create index if not exists webhook_inbox_bodies
    on esl.webhook_inbox (finished_at) where body is not null and finished_at is not null;
-- The few deliveries that a copy may bring back (see esl_inbox_add).
create index if not exists webhook_inbox_revivable
    on esl.webhook_inbox (body_sha256) where state = 'unusable' or topic = 'shop/redact';

-- What Shopify has asked us to delete, and what became of it; esl_housekeep carries it out.
create table if not exists esl.redactions (
    id              bigint generated always as identity primary key,
    source_system   text not null,
    source_store_id text not null,
    requested_at    timestamptz not null default clock_timestamp(),
    finished_at     timestamptz,
    removed         bigint not null default 0
);
create index if not exists redactions_open on esl.redactions (id) where finished_at is null;
