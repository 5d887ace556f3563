-- One text for SQLite and PostgreSQL. Times are milliseconds since 1970 UTC, flags 0 or 1, documents JSON.
-- BLOB is spelt as each database has it (crates/store/src/dialect.rs); everything else is taken as it stands.

CREATE TABLE models (
    name TEXT NOT NULL,
    version BIGINT NOT NULL,
    task TEXT NOT NULL,
    onnx TEXT NOT NULL,
    calibration TEXT NOT NULL,
    validation TEXT NOT NULL,
    macs BIGINT NOT NULL,
    parameters BIGINT NOT NULL,
    size_bytes BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (name, version)
);

CREATE TABLE policies (
    name TEXT NOT NULL,
    revision BIGINT NOT NULL,
    model TEXT NOT NULL,
    document TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (name, revision)
);

CREATE TABLE classes (
    id TEXT PRIMARY KEY,
    architecture TEXT NOT NULL,
    vector TEXT NOT NULL,
    inference_threads BIGINT NOT NULL,
    kernels TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL
);

CREATE TABLE enrolment_tokens (
    id TEXT PRIMARY KEY,
    secret_sha256 TEXT NOT NULL,
    labels TEXT NOT NULL,
    uses_left BIGINT NOT NULL CHECK (uses_left >= 0),
    expires_at_ms BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL
);

CREATE TABLE devices (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    token TEXT NOT NULL REFERENCES enrolment_tokens (id),
    labels TEXT NOT NULL,
    identity_key TEXT NOT NULL UNIQUE,
    sealing_key TEXT NOT NULL,
    certificate_serial TEXT NOT NULL,
    certificate_fingerprint TEXT NOT NULL,
    certificate_expires_at_ms BIGINT NOT NULL,
    boot_id TEXT NOT NULL,
    report_sequence BIGINT NOT NULL,
    assignment_sequence BIGINT NOT NULL,
    profile TEXT,
    class TEXT REFERENCES classes (id),
    class_reason TEXT,
    last_seen_at_ms BIGINT,
    enrolled_at_ms BIGINT NOT NULL,
    changed_at_ms BIGINT NOT NULL
);

CREATE INDEX devices_by_class ON devices (class, state);

CREATE TABLE api_tokens (
    id TEXT PRIMARY KEY,
    secret_sha256 TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT
);

CREATE TABLE measurements (
    id TEXT PRIMARY KEY,
    class TEXT NOT NULL REFERENCES classes (id),
    model TEXT NOT NULL,
    model_version BIGINT NOT NULL,
    batch BIGINT NOT NULL,
    device TEXT NOT NULL REFERENCES devices (id),
    blob TEXT NOT NULL,
    length BIGINT NOT NULL,
    budget_ms BIGINT NOT NULL,
    state TEXT NOT NULL,
    timings TEXT,
    error TEXT,
    created_at_ms BIGINT NOT NULL,
    deadline_at_ms BIGINT NOT NULL
);

CREATE INDEX measurements_by_class ON measurements (class, model, model_version, batch);
CREATE INDEX measurements_by_device ON measurements (device, state);

CREATE TABLE atlases (
    class TEXT NOT NULL REFERENCES classes (id),
    model TEXT NOT NULL,
    model_version BIGINT NOT NULL,
    batch BIGINT NOT NULL,
    device TEXT NOT NULL,
    document TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (class, model, model_version, batch)
);

CREATE TABLE decisions (
    id TEXT PRIMARY KEY,
    class TEXT NOT NULL REFERENCES classes (id),
    model TEXT NOT NULL,
    policy TEXT NOT NULL,
    policy_revision BIGINT NOT NULL,
    bundle TEXT NOT NULL,
    outcome TEXT NOT NULL,
    evidence TEXT NOT NULL,
    budget_revision BIGINT,
    at_ms BIGINT NOT NULL
);

CREATE INDEX decisions_by_class ON decisions (class, policy, at_ms);

CREATE TABLE budgets (
    class TEXT NOT NULL REFERENCES classes (id),
    policy TEXT NOT NULL,
    revision BIGINT NOT NULL,
    policy_revision BIGINT NOT NULL,
    model TEXT NOT NULL,
    model_version BIGINT NOT NULL,
    latency_us DOUBLE PRECISION NOT NULL,
    max_size_bytes BIGINT,
    accuracy_floor DOUBLE PRECISION NOT NULL,
    batch BIGINT NOT NULL,
    criterion TEXT NOT NULL,
    decision TEXT REFERENCES decisions (id),
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (class, policy, revision)
);

CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    payload TEXT NOT NULL,
    state TEXT NOT NULL,
    worker TEXT,
    lease_until_ms BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    stage TEXT NOT NULL,
    progress DOUBLE PRECISION NOT NULL,
    error TEXT,
    created_at_ms BIGINT NOT NULL,
    changed_at_ms BIGINT NOT NULL,
    UNIQUE (kind, subject)
);

CREATE INDEX jobs_by_state ON jobs (kind, state, created_at_ms);

CREATE TABLE variants (
    id TEXT PRIMARY KEY,
    class TEXT NOT NULL,
    policy TEXT NOT NULL,
    budget_revision BIGINT NOT NULL,
    model TEXT NOT NULL,
    model_version BIGINT NOT NULL,
    budget_us DOUBLE PRECISION NOT NULL,
    state TEXT NOT NULL,
    digest TEXT,
    report TEXT NOT NULL,
    rejection TEXT,
    created_at_ms BIGINT NOT NULL,
    UNIQUE (class, policy, budget_revision),
    FOREIGN KEY (class, policy, budget_revision) REFERENCES budgets (class, policy, revision),
    FOREIGN KEY (model, model_version) REFERENCES models (name, version)
);

CREATE TABLE bundles (
    id TEXT PRIMARY KEY,
    variant TEXT NOT NULL UNIQUE REFERENCES variants (id),
    class TEXT NOT NULL REFERENCES classes (id),
    state TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    size_bytes BIGINT NOT NULL,
    tree_root TEXT NOT NULL,
    leaves BLOB NOT NULL,
    suite TEXT NOT NULL,
    content_key BLOB NOT NULL,
    created_at_ms BIGINT NOT NULL
);

CREATE INDEX bundles_by_class ON bundles (class, created_at_ms);

CREATE TABLE trust_metadata (
    role TEXT NOT NULL,
    version BIGINT NOT NULL,
    bytes BLOB NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (role, version)
);

CREATE TABLE rollouts (
    id TEXT PRIMARY KEY,
    class TEXT NOT NULL REFERENCES classes (id),
    bundle TEXT NOT NULL REFERENCES bundles (id),
    state TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    changed_at_ms BIGINT NOT NULL
);

CREATE INDEX rollouts_by_class ON rollouts (class, created_at_ms);

CREATE TABLE assignments (
    device TEXT NOT NULL REFERENCES devices (id),
    sequence BIGINT NOT NULL,
    rollout TEXT NOT NULL REFERENCES rollouts (id),
    bundle TEXT NOT NULL REFERENCES bundles (id),
    metadata BLOB NOT NULL,
    wrap BLOB NOT NULL,
    state TEXT NOT NULL,
    failed_check TEXT,
    detail TEXT,
    expires_at_ms BIGINT NOT NULL,
    assigned_at_ms BIGINT NOT NULL,
    changed_at_ms BIGINT NOT NULL,
    PRIMARY KEY (device, sequence)
);

CREATE INDEX assignments_by_rollout ON assignments (rollout, state);
CREATE INDEX assignments_by_expiry ON assignments (expires_at_ms);

CREATE TABLE windows (
    device TEXT NOT NULL REFERENCES devices (id),
    number BIGINT NOT NULL,
    bundle TEXT NOT NULL,
    rung TEXT NOT NULL,
    start_ms BIGINT NOT NULL,
    duration_ms BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    histogram BLOB NOT NULL,
    confusion TEXT,
    cpu_us BIGINT NOT NULL,
    memory_bytes BIGINT NOT NULL,
    received_at_ms BIGINT NOT NULL,
    PRIMARY KEY (device, number)
);

CREATE INDEX windows_by_start ON windows (start_ms);
CREATE INDEX windows_by_bundle ON windows (bundle, received_at_ms);

CREATE TABLE audit (
    sequence BIGINT PRIMARY KEY,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    before_digest TEXT,
    after_digest TEXT,
    at_ms BIGINT NOT NULL,
    hash TEXT NOT NULL
);
