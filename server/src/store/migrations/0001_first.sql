-- Portable types only: BIGINT (milliseconds, counts), TEXT (names, JSON).
CREATE TABLE sites (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    added_ms BIGINT NOT NULL
);
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    -- The canonical text, and the base model's files as JSON.
    text TEXT NOT NULL,
    base_model TEXT NOT NULL,
    submitted_ms BIGINT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    -- The round machine as JSON, and the export recipe once a site has made it.
    machine TEXT NOT NULL,
    recipe TEXT
);
CREATE TABLE rounds (
    job TEXT NOT NULL REFERENCES jobs (id),
    round BIGINT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (job, round)
);
