-- Outages: what all runs know together of each label server.

-- next_slot: its next free call slot. failures: calls in a row in which it failed. down_since: after too many of those
-- nothing is pushed but one batch to try, from probe_at on.
create table if not exists esl.label_servers (
    server     text primary key,
    next_slot  timestamptz,
    failures   integer not null default 0,
    down_since timestamptz,
    probe_at   timestamptz,
    last_error text
);
drop table if exists esl.rate_limits;
