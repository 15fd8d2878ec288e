-- The label server's list against the ledger: what each store's last comparison could not judge, or has given up.

-- skipped: labels of the ledger of which it says nothing. given_up: labels whose repair did not hold three times.
create table if not exists esl.comparisons (
    store_code text primary key,
    at         timestamptz not null,
    run_id     text,
    complete   boolean not null,
    reason     text,
    listed     integer not null,
    ledger     integer not null,
    skipped    integer not null,
    given_up   integer not null
);

-- ours: it was there and in no ledger, but we had written it.
alter table esl.drift drop constraint if exists drift_kind_check;
alter table esl.drift add constraint drift_kind_check check (kind in ('missing', 'different', 'foreign', 'ours'));
