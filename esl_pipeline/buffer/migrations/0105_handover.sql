-- A lease may be handed over. relieve_at: from then on its holder wants a successor. successor: who waits for it, or
-- was started to, until successor_until; is_ready: is there and asks. build: of the holder's code, so that older code
-- is relieved after an upgrade.
alter table esl.leases add column if not exists relieve_at timestamptz;
alter table esl.leases add column if not exists successor text;
alter table esl.leases add column if not exists successor_until timestamptz;
alter table esl.leases add column if not exists successor_is_ready boolean not null default false;
alter table esl.leases add column if not exists build integer;
