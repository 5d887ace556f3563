-- Telemetry added up by time, so that what a dashboard reads does not grow with the fleet.

-- Whether a window has been added to its roll-ups.
ALTER TABLE windows ADD COLUMN rolled BIGINT NOT NULL DEFAULT 0;
CREATE INDEX windows_to_roll ON windows (rolled, received_at_ms);

-- Scope: 'device' or 'class'; subject: which one. Level: 'minute', 'hour' or 'day'; start: the beginning of that span.
CREATE TABLE rollups (
    scope TEXT NOT NULL,
    subject TEXT NOT NULL,
    level TEXT NOT NULL,
    start_ms BIGINT NOT NULL,
    bundle TEXT NOT NULL,
    rung TEXT NOT NULL,
    windows BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    labelled BIGINT NOT NULL,
    correct BIGINT NOT NULL,
    cpu_us BIGINT NOT NULL,
    max_memory_bytes BIGINT NOT NULL,
    histogram BLOB NOT NULL,
    PRIMARY KEY (scope, subject, level, start_ms, bundle, rung)
);
CREATE INDEX rollups_by_age ON rollups (level, start_ms);
