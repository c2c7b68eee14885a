-- What readiness writes to see whether storage takes writes.
CREATE TABLE probe (
    id BIGINT PRIMARY KEY,
    checked_ms BIGINT NOT NULL
);
INSERT INTO probe (id, checked_ms) VALUES (1, 0);
