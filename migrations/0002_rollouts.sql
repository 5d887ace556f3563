-- How a rollout spreads: its rules, wave by wave, over the devices that its selector picked.

ALTER TABLE policies ADD COLUMN applied_by TEXT NOT NULL DEFAULT '';

-- The rules as they stood when it began, who began and approved it, how far it is, and what its gates said last.
ALTER TABLE rollouts ADD COLUMN rules TEXT NOT NULL DEFAULT '{}';
ALTER TABLE rollouts ADD COLUMN begun_by TEXT NOT NULL DEFAULT '';
ALTER TABLE rollouts ADD COLUMN approved_by TEXT NOT NULL DEFAULT '';
ALTER TABLE rollouts ADD COLUMN wave BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN since_ms BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rollouts ADD COLUMN reason TEXT NOT NULL DEFAULT '';
ALTER TABLE rollouts ADD COLUMN readings TEXT NOT NULL DEFAULT '[]';
UPDATE rollouts SET since_ms = changed_at_ms;

-- The newest rollout of its class that a device was considered for; empty after a change that may decide otherwise.
ALTER TABLE devices ADD COLUMN considered TEXT NOT NULL DEFAULT '';
CREATE INDEX devices_by_consideration ON devices (class, considered);

-- Place: the order in which devices get it, drawn from both identifiers.
CREATE TABLE rollout_members (
    rollout TEXT NOT NULL REFERENCES rollouts (id),
    device TEXT NOT NULL REFERENCES devices (id),
    place BIGINT NOT NULL,
    given BIGINT NOT NULL,
    PRIMARY KEY (rollout, device)
);
CREATE INDEX rollout_members_by_place ON rollout_members (rollout, given, place);
INSERT INTO rollout_members (rollout, device, place, given) SELECT DISTINCT rollout, device, 0, 1 FROM assignments;

-- When the device proved it; stays when a newer assignment takes its place, so that there is something to go back to.
ALTER TABLE assignments ADD COLUMN proven_at_ms BIGINT;
CREATE INDEX assignments_by_bundle ON assignments (bundle, state);
UPDATE assignments SET proven_at_ms = changed_at_ms WHERE state = 'proven';

-- What gates compare, so that the database can add it up.
ALTER TABLE windows ADD COLUMN labelled BIGINT NOT NULL DEFAULT 0;
ALTER TABLE windows ADD COLUMN correct BIGINT NOT NULL DEFAULT 0;
