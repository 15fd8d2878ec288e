-- What people are told of: alerts that open once and close once, and their way to each address.

-- One row per trouble, from when it was first seen until it is over; history stays. key: kind and subject, of which one
-- is current. since: when the trouble began, as far as is known. opened_at: when it had lasted long enough to tell
-- people; null: not yet. gone_at: when it was first seen to be over; it closes when that has lasted. shops: by their
-- keys; none: it is nobody's alone. labels: how many wait or are wrong because of it.
create table if not exists esl.alerts (
    id        bigint generated always as identity primary key,
    key       text not null,
    kind      text not null,
    subject   text not null,
    severity  text not null check (severity in ('info', 'warning', 'critical')),
    since     timestamptz not null,
    seen_at   timestamptz not null default clock_timestamp(),
    opened_at timestamptz,
    gone_at   timestamptz,
    closed_at timestamptz,
    says      text not null,
    todo      text not null,
    link      text,
    labels    bigint not null default 0,
    shops     text[] not null default '{}',
    check (closed_at is null or opened_at is not null)
);
create unique index if not exists alerts_current on esl.alerts (key) where closed_at is null;
create index if not exists alerts_closed on esl.alerts (closed_at) where closed_at is not null;

-- What is to be told to whom, once each. id: what the receiver of a message knows it by; the same however often it is
-- sent. recipient: scheme and host of an address, and which of several there; the address itself is a secret and in the
-- settings alone. next_at: not before. claim_id, lease_until: who sends it now. last_error: of the last try.
create table if not exists esl.alert_deliveries (
    id          uuid primary key default gen_random_uuid(),
    alert_id    bigint not null references esl.alerts,
    event       text not null check (event in ('opened', 'closed')),
    recipient   text not null,
    created_at  timestamptz not null default clock_timestamp(),
    next_at     timestamptz not null default clock_timestamp(),
    attempts    integer not null default 0,
    last_error  text,
    claim_id    uuid,
    lease_until timestamptz,
    sent_at     timestamptz,
    unique (alert_id, recipient, event)
);
create index if not exists alert_deliveries_open on esl.alert_deliveries (recipient, created_at) where sent_at is null;

-- Deliveries that were of no use, of which a finished one is looked for every few seconds.
create index if not exists webhook_inbox_useless
    on esl.webhook_inbox (finished_at) where state in ('unusable', 'dead');
