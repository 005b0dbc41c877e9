-- The catalog: shards, keyspaces, tables, the shard map, operations and their history.
-- What must not be is refused here, by constraints, and not only by the program.

CREATE SCHEMA shardwright;
COMMENT ON SCHEMA shardwright IS 'shardwright catalog';

CREATE TABLE shardwright.migrations (
    number      int PRIMARY KEY,
    name        text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE shardwright.cluster (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id          uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO shardwright.cluster DEFAULT VALUES;

CREATE TABLE shardwright.shards (
    name                  text PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_-]{0,30}$'),
    conninfo              text NOT NULL CHECK (conninfo !~* 'password\s*='),
    -- how another shard's apply worker reaches this one; the same as conninfo where NULL
    replication_conninfo  text CHECK (replication_conninfo !~* 'password\s*='),
    region                text NOT NULL DEFAULT '',
    weight                int NOT NULL DEFAULT 1 CHECK (weight >= 0),
    system_identifier     text NOT NULL,
    database_oid          oid NOT NULL,
    server_version        int NOT NULL,
    -- how many connections all applications together may have to it; what max_connections leaves where NULL
    connections           int CHECK (connections > 0),
    added_at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- one database under two names would be its own copy's source
    UNIQUE (system_identifier, database_oid)
);

CREATE TABLE shardwright.keyspaces (
    id        int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name      text NOT NULL UNIQUE CHECK (name ~ '^[a-z][a-z0-9_]{0,30}$'),
    strategy  text NOT NULL CHECK (strategy IN ('hash', 'range')),
    key_type  text NOT NULL CHECK (key_type IN ('int2', 'int4', 'int8', 'text', 'varchar', 'uuid', 'bytea')),
    buckets   int CHECK (buckets BETWEEN 2 AND 65536 AND buckets & (buckets - 1) = 0),
    CHECK ((strategy = 'hash') = (buckets IS NOT NULL)),
    CHECK (strategy = 'hash' OR key_type IN ('int2', 'int4', 'int8'))
);

CREATE TABLE shardwright.tables (
    id           int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    schema_name  text NOT NULL,
    table_name   text NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('sharded', 'reference', 'global', 'local')),
    keyspace     int REFERENCES shardwright.keyspaces,
    key_column   text,
    -- where a reference table is written, or where a global table lives
    home_shard   text REFERENCES shardwright.shards,
    -- DDL that makes the table elsewhere, and its fingerprint
    layout       jsonb NOT NULL,
    -- its windows of time; NULL unless it is partitioned
    policy       jsonb,
    UNIQUE (schema_name, table_name),
    CHECK ((kind = 'sharded') = (keyspace IS NOT NULL AND key_column IS NOT NULL)),
    CHECK ((kind IN ('sharded', 'local')) = (home_shard IS NULL))
);

-- ------------------------------------------------------------------ time partitions

-- The partitions that a table has, the same on every shard that has the table. Shards are brought to agree with this
-- list; what a shard really has is read from it. Bounds are microseconds of the policy's own axis since 1970-01-01.
CREATE TABLE shardwright.windows (
    table_id    int NOT NULL REFERENCES shardwright.tables ON DELETE CASCADE,
    -- the leaf's name on every shard, in the schema of its parent
    name        text NOT NULL CHECK (octet_length(name) <= 63),
    span        int8range NOT NULL CHECK (NOT isempty(span)),
    -- window: as the policy has them; whole: what was there before, of any length; before, after: the guards
    role        text NOT NULL CHECK (role IN ('window', 'whole', 'before', 'after')),
    -- wanted: exists; retired: its time is over, shards detach, archive and drop it; the row goes when all have
    state       text NOT NULL DEFAULT 'wanted' CHECK (state IN ('wanted', 'retired')),
    retired_at  timestamptz,
    -- restored from an archive: not retired before this moment, though its time is over
    kept_until  timestamptz,
    PRIMARY KEY (table_id, name),
    CHECK ((state = 'retired') = (retired_at IS NOT NULL)),
    CONSTRAINT windows_do_not_overlap
        EXCLUDE USING gist (int4range(table_id, table_id, '[]') WITH &&, span WITH &&) WHERE (state = 'wanted')
);

-- What was archived: one row a window and shard, written after the files were read back and found right.
CREATE TABLE shardwright.archives (
    id           int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    table_id     int NOT NULL REFERENCES shardwright.tables ON DELETE CASCADE,
    shard        text NOT NULL,
    name         text NOT NULL,
    span         int8range NOT NULL,
    rows         bigint NOT NULL,
    -- directory or URI, below which the manifest says the file's path
    place        text NOT NULL,
    manifest     jsonb NOT NULL,
    verified_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    restored_at  timestamptz,
    UNIQUE (table_id, shard, name)
);

-- One row for each time that a table's partitions were looked after on a shard; old rows are deleted.
CREATE TABLE shardwright.partition_runs (
    id        bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    table_id  int NOT NULL REFERENCES shardwright.tables ON DELETE CASCADE,
    shard     text NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    plan      text NOT NULL,
    outcome   text NOT NULL CHECK (outcome IN ('done', 'deferred', 'failed')),
    detail    jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX ON shardwright.partition_runs (table_id, shard, at DESC);

-- Long work on one table of one shard (convert, split), so that whoever comes next can go on.
CREATE TABLE shardwright.partition_jobs (
    id        int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    table_id  int NOT NULL REFERENCES shardwright.tables ON DELETE CASCADE,
    shard     text NOT NULL,
    kind      text NOT NULL CHECK (kind IN ('convert', 'split')),
    step      text NOT NULL,
    state     jsonb NOT NULL DEFAULT '{}',
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (table_id, shard)
);

-- ------------------------------------------------------------------ the shard map

CREATE TABLE shardwright.map_versions (
    version      bigint PRIMARY KEY CHECK (version >= 1),
    fingerprint  text NOT NULL,
    map          jsonb NOT NULL,
    reason       text NOT NULL,
    operation    int,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE shardwright.ranges (
    id           int PRIMARY KEY GENERATED ALWAYS AS IDENTITY (MINVALUE 1),
    keyspace     int NOT NULL REFERENCES shardwright.keyspaces,
    points       int8range NOT NULL CHECK (NOT isempty(points)),
    shard        text NOT NULL REFERENCES shardwright.shards,
    CONSTRAINT ranges_do_not_overlap
        EXCLUDE USING gist (int4range(keyspace, keyspace, '[]') WITH &&, points WITH &&)
);

-- All points that a keyspace has.
CREATE FUNCTION shardwright.all_points(keyspace_id int) RETURNS int8multirange
LANGUAGE sql STABLE AS $$
    SELECT CASE strategy WHEN 'hash' THEN int8multirange(int8range(0, buckets))
                         ELSE int8multirange(int8range(NULL, NULL)) END
      FROM shardwright.keyspaces WHERE id = keyspace_id
$$;

CREATE FUNCTION shardwright.refuse_gaps() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    ks     int := coalesce(NEW.keyspace, OLD.keyspace);
    whole  int8multirange := shardwright.all_points(ks);
    found  int8multirange;
BEGIN
    SELECT coalesce(range_agg(points), '{}') INTO found FROM shardwright.ranges WHERE keyspace = ks;
    IF whole IS NOT NULL AND found <> whole THEN
        RAISE EXCEPTION 'the ranges of keyspace % do not cover it: % of %', ks, found, whole
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ranges_leave_no_gap';
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER ranges_leave_no_gap
    AFTER INSERT OR UPDATE OR DELETE ON shardwright.ranges
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION shardwright.refuse_gaps();

-- ------------------------------------------------------------------ operations

-- The legal steps; phases.py is the other source, and a test makes the two agree.
CREATE TABLE shardwright.transitions (
    from_phase  text NOT NULL,
    event       text NOT NULL,
    to_phase    text NOT NULL,
    PRIMARY KEY (from_phase, event),
    UNIQUE (from_phase, event, to_phase)
);
INSERT INTO shardwright.transitions (from_phase, event, to_phase) VALUES
    ('planned',     'prepare',     'prepared'),
    ('prepared',    'copy',        'copying'),
    ('copying',     'catch_up',    'catching_up'),
    ('catching_up', 'copy',        'copying'),
    ('catching_up', 'verify',      'verified'),
    ('verified',    'verify',      'verified'),
    ('verified',    'copy',        'copying'),
    ('verified',    'switch',      'switching'),
    ('switching',   'switch',      'switched'),
    ('switching',   'roll_back',   'reverting'),
    ('switched',    'verify',      'switched'),
    ('switched',    'roll_back',   'reverting'),
    ('reverting',   'roll_back',   'reverted'),
    ('reverting',   'switch',      'switching'),
    ('reverted',    'verify',      'verified'),
    ('reverted',    'copy',        'copying'),
    ('switched',    'finish',      'cleaning'),
    ('cleaning',    'finish',      'done'),
    ('planned',     'abort',       'aborting'),
    ('prepared',    'abort',       'aborting'),
    ('copying',     'abort',       'aborting'),
    ('catching_up', 'abort',       'aborting'),
    ('verified',    'abort',       'aborting'),
    ('reverted',    'abort',       'aborting'),
    ('aborting',    'abort',       'aborted');

CREATE TABLE shardwright.operations (
    id            int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    -- what was asked for: {"add": "s3"}, {"drain": "s1"}, {"weights": {..}}, {"move": ..}
    request       jsonb NOT NULL,
    settings      jsonb NOT NULL DEFAULT '{}',
    phase         text NOT NULL DEFAULT 'planned',
    -- the phase that its operator wants to see reached
    goal          text NOT NULL DEFAULT 'verified'
                  CHECK (goal IN ('verified', 'switched', 'reverted', 'done', 'aborted')),
    -- fencing token: raised by whoever takes the operation over, checked in each change on a shard
    op_epoch      int NOT NULL DEFAULT 0,
    lease_holder  text,
    lease_until   timestamptz,
    -- the last failure: {"code", "message", "fix", "at"}; NULL while all is well
    error         jsonb,
    resumed       int NOT NULL DEFAULT 0,
    started_by    text NOT NULL DEFAULT session_user,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at   timestamptz
);

CREATE TABLE shardwright.phase_events (
    id          bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    operation   int NOT NULL REFERENCES shardwright.operations,
    from_phase  text NOT NULL,
    event       text NOT NULL,
    to_phase    text NOT NULL,
    op_epoch    int NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    detail      jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT phase_event_is_legal
        FOREIGN KEY (from_phase, event, to_phase) REFERENCES shardwright.transitions (from_phase, event, to_phase)
);

CREATE FUNCTION shardwright.refuse_illegal_phase() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.phase <> OLD.phase AND NOT EXISTS (
        SELECT FROM shardwright.transitions WHERE from_phase = OLD.phase AND to_phase = NEW.phase) THEN
        RAISE EXCEPTION 'operation % cannot go from % to %', OLD.id, OLD.phase, NEW.phase
            USING ERRCODE = 'check_violation', CONSTRAINT = 'phase_step_is_legal';
    END IF;
    IF NEW.op_epoch < OLD.op_epoch THEN
        RAISE EXCEPTION 'op_epoch of operation % cannot go down', OLD.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'op_epoch_grows';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER phase_step_is_legal BEFORE UPDATE ON shardwright.operations
    FOR EACH ROW EXECUTE FUNCTION shardwright.refuse_illegal_phase();

-- The points that live operations work on; rows go when an operation ends.
CREATE TABLE shardwright.claims (
    operation  int NOT NULL REFERENCES shardwright.operations,
    keyspace   int NOT NULL REFERENCES shardwright.keyspaces,
    points     int8range NOT NULL CHECK (NOT isempty(points)),
    CONSTRAINT one_live_operation_a_range
        EXCLUDE USING gist (int4range(keyspace, keyspace, '[]') WITH &&, points WITH &&)
);

-- Compare-and-set: the only way in which a phase changes. NULL when the token or the phase is not the caller's any more.
CREATE FUNCTION shardwright.advance(op int, expected_phase text, by_event text, token int, why jsonb)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    next_phase text;
BEGIN
    SELECT to_phase INTO next_phase FROM shardwright.transitions
     WHERE from_phase = expected_phase AND event = by_event;
    IF next_phase IS NULL THEN
        RAISE EXCEPTION 'event % has no meaning in phase %', by_event, expected_phase
            USING ERRCODE = 'check_violation', CONSTRAINT = 'phase_event_is_legal';
    END IF;
    UPDATE shardwright.operations
       SET phase = next_phase, error = NULL,
           finished_at = CASE WHEN next_phase IN ('done', 'aborted') THEN clock_timestamp() END
     WHERE id = op AND phase = expected_phase AND op_epoch = token;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO shardwright.phase_events (operation, from_phase, event, to_phase, op_epoch, detail)
    VALUES (op, expected_phase, by_event, next_phase, token, coalesce(why, '{}'));
    IF next_phase IN ('done', 'aborted') THEN
        DELETE FROM shardwright.claims WHERE operation = op;
    END IF;
    PERFORM pg_notify('shardwright_operation', op::text);
    RETURN next_phase;
END $$;

CREATE TABLE shardwright.moves (
    id           int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    operation    int NOT NULL REFERENCES shardwright.operations,
    keyspace     int NOT NULL REFERENCES shardwright.keyspaces,
    source       text NOT NULL REFERENCES shardwright.shards,
    target       text NOT NULL REFERENCES shardwright.shards,
    points       int8multirange NOT NULL CHECK (NOT isempty(points)),
    -- progress, written about once a second by the worker
    rows_total   bigint NOT NULL DEFAULT 0,
    bytes_total  bigint NOT NULL DEFAULT 0,
    rows_done    bigint NOT NULL DEFAULT 0,
    bytes_done   bigint NOT NULL DEFAULT 0,
    copy_seconds double precision NOT NULL DEFAULT 0,
    lag_bytes    bigint,
    progress_at  timestamptz,
    CHECK (source <> target)
);

CREATE TABLE shardwright.batches (
    move     int NOT NULL REFERENCES shardwright.moves,
    number   int NOT NULL,
    points   int8multirange NOT NULL CHECK (NOT isempty(points)),
    -- who serves these points by the map: the move's source or its target
    served_by text NOT NULL DEFAULT 'source' CHECK (served_by IN ('source', 'target')),
    PRIMARY KEY (move, number)
);

-- One row for each time a batch was handed over, forward or back.
CREATE TABLE shardwright.handovers (
    id           bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    move         int NOT NULL,
    batch        int NOT NULL,
    direction    text NOT NULL CHECK (direction IN ('forward', 'back')),
    attempts     int NOT NULL,
    -- the commit of the map, or NULL when it was not reached
    map_version  bigint REFERENCES shardwright.map_versions,
    -- milliseconds from the request of the locks to the opening of the other side
    pause_ms     double precision,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    FOREIGN KEY (move, batch) REFERENCES shardwright.batches
);

CREATE TABLE shardwright.certificates (
    id         bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    move       int NOT NULL REFERENCES shardwright.moves,
    -- forward: the target was compared with the serving source; back: the other way round
    direction  text NOT NULL CHECK (direction IN ('forward', 'back')),
    points     int8multirange NOT NULL,
    rows       bigint NOT NULL,
    checksum   numeric NOT NULL,
    chunks     int NOT NULL,
    differing  int NOT NULL,
    detail     jsonb NOT NULL DEFAULT '{}',
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Windows of partitioned tables whose time was over when they were copied, compared right after their copy.
CREATE TABLE shardwright.copied_windows (
    move        int NOT NULL REFERENCES shardwright.moves,
    table_name  text NOT NULL,
    name        text NOT NULL,
    rows        bigint NOT NULL,
    checksum    numeric NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (move, table_name, name)
);

-- ------------------------------------------------------------------ routers

CREATE TABLE shardwright.routers (
    id           uuid PRIMARY KEY,
    application  text NOT NULL,
    host         text NOT NULL,
    pid          int NOT NULL,
    map_version  bigint NOT NULL,
    -- connections that it may open to each shard, by driver: {"psycopg": 15}
    connections  jsonb NOT NULL DEFAULT '{}',
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The highest timeline on which a shard's primary was seen: a server on a lower one is a primary of old, and is refused.
CREATE TABLE shardwright.timelines (
    shard     text PRIMARY KEY REFERENCES shardwright.shards ON DELETE CASCADE,
    timeline  int NOT NULL CHECK (timeline > 0),
    seen_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- ------------------------------------------------------------------ transactions that write on several shards

-- One row from before the first PREPARE TRANSACTION on. No shard commits its part before the row says committed, and it says
-- so once: the session and `tx recover` both change it only while it is open, so whoever comes first has decided.
CREATE TABLE shardwright.decisions (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    -- the shards that were written on
    shards       text[] NOT NULL CHECK (cardinality(shards) > 1),
    application  text NOT NULL,
    outcome      text NOT NULL DEFAULT 'open' CHECK (outcome IN ('open', 'committed', 'aborted')),
    begun_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    decided_at   timestamptz,
    -- since when no shard has a prepared transaction of it any more; the row is kept for a while for those who ask
    settled_at   timestamptz,
    CHECK ((outcome = 'open') = (decided_at IS NULL)),
    CHECK (outcome <> 'open' OR settled_at IS NULL)
);
CREATE INDEX ON shardwright.decisions (begun_at) WHERE settled_at IS NULL;

CREATE FUNCTION shardwright.refuse_second_decision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.settled_at IS NULL THEN
            RAISE EXCEPTION 'transaction % is not settled on its shards', OLD.id
                USING ERRCODE = 'check_violation', CONSTRAINT = 'settled_before_forgotten';
        END IF;
        RETURN OLD;
    END IF;
    IF OLD.outcome <> 'open' AND NEW.outcome <> OLD.outcome OR NEW.id <> OLD.id THEN
        RAISE EXCEPTION 'transaction % is % already', OLD.id, OLD.outcome
            USING ERRCODE = 'check_violation', CONSTRAINT = 'decided_once';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER decided_once BEFORE UPDATE OR DELETE ON shardwright.decisions
    FOR EACH ROW EXECUTE FUNCTION shardwright.refuse_second_decision();

-- ------------------------------------------------------------------ ids

-- Who may make which ids. A shard has a number for good. A process is granted a number together with a span of time, and
-- uses no other: so nothing depends on its clock, on its being alive, or on its noticing that its time is over.
CREATE TABLE shardwright.generators (
    number   int PRIMARY KEY CHECK (number BETWEEN 0 AND 1023),
    -- stays when the shard is removed: its ids are still there
    shard    text UNIQUE,
    -- milliseconds of ids (since 2025-01-01 UTC) below which all may have been made; it only grows
    granted  bigint NOT NULL DEFAULT 0,
    -- to whom, for people
    holder   text,
    at       timestamptz
);
INSERT INTO shardwright.generators (number) SELECT generate_series(0, 1023);

-- Milliseconds of ids now.
CREATE FUNCTION shardwright.ids_clock() RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint - 1735689600000
$$;

CREATE FUNCTION shardwright.refuse_ids_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.granted < OLD.granted THEN
        RAISE EXCEPTION 'ids of generator % were granted up to % already', OLD.number, OLD.granted
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ids_granted_once';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER ids_granted_once BEFORE UPDATE ON shardwright.generators
    FOR EACH ROW EXECUTE FUNCTION shardwright.refuse_ids_again();
