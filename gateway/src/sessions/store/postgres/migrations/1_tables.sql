-- What is kept. Rows refer to each other without foreign keys: the functions of the later migrations are all that writes here,
-- and each is one step that leaves them whole.

-- Who may run turns: a gateway, as long as its row is there. Time is this database's alone.
CREATE TABLE gateways (
    id uuid PRIMARY KEY,
    lease_until timestamptz NOT NULL,
    -- Since when it never was over.
    since timestamptz NOT NULL
);

CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    tenant text NOT NULL,
    version bigint NOT NULL,
    -- How many turns it has, the one that runs included.
    turns bigint NOT NULL,
    running uuid,
    updated_ms bigint NOT NULL,
    settings bytea NOT NULL,
    -- Bytes, as a key may hold any character.
    key bytea,
    -- Of which session it was made, and with how many turns.
    source uuid,
    source_turns bigint,
    UNIQUE (tenant, key)
);
CREATE INDEX sessions_of_a_tenant ON sessions (tenant, id);
CREATE INDEX sessions_that_expire ON sessions (updated_ms, id) WHERE running IS NULL;

CREATE TABLE turns (
    id uuid PRIMARY KEY,
    tenant text NOT NULL,
    -- Where it was begun.
    session uuid NOT NULL,
    place bigint NOT NULL,
    accepted bytea NOT NULL,
    answer bytea,
    -- How many sessions have it.
    shared bigint NOT NULL
);

CREATE TABLE session_turns (
    session uuid NOT NULL,
    place bigint NOT NULL,
    turn uuid NOT NULL,
    key bytea,
    PRIMARY KEY (session, place),
    UNIQUE (session, key)
);

-- The turns that run, and under whom. Apart from `turns`, whose rows are wide.
CREATE TABLE running (
    turn uuid PRIMARY KEY,
    gateway uuid NOT NULL,
    stop boolean NOT NULL
);
CREATE INDEX running_under ON running (gateway);

-- The journal of the answers of running turns. Of two rows of a turn the later attempt counts; one that begins at 0 has all
-- tokens until then, and takes the place of what came before it.
CREATE TABLE tokens (
    turn uuid NOT NULL,
    attempt bigint NOT NULL,
    first bigint NOT NULL,
    ids integer[] NOT NULL,
    PRIMARY KEY (turn, attempt)
);

-- What a tenant keeps, as the sum of several rows, so that its steps do not wait for each other.
CREATE TABLE usage (
    tenant text NOT NULL,
    part smallint NOT NULL,
    sessions bigint NOT NULL,
    bytes bigint NOT NULL,
    PRIMARY KEY (tenant, part)
);
