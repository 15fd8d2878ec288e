-- Turns: whose turn it was when, so that the next one is somebody else's; and the due variants of each shop in their order.

-- queue: 'inbox' (party: system:shop), 'push' (party: mapping id), 'bulk' (no party: when somebody was pushed in turn, and
-- not because of its rises).
create table if not exists esl.turns (
    queue    text not null check (queue in ('inbox', 'push', 'bulk')),
    party    text not null,
    taken_at timestamptz not null,
    primary key (party, queue)
) with (fillfactor = 50);
alter table esl.turns enable row level security;

create index if not exists products_turns on esl.products (source_store_id, source_system, revision) where due;
drop index if exists esl.products_due;
drop index if exists esl.products_due_by_shop;

-- What a claim holds is found without walking all that waits.
create index if not exists webhook_inbox_claims on esl.webhook_inbox (claim_id) where claim_id is not null;
