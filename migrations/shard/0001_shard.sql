-- What lives on each shard: the ranges that it serves, the fencing tokens, the markers of its streams,
-- and enter(), which every transaction of the library calls with its BEGIN.

CREATE SCHEMA shardwright;
COMMENT ON SCHEMA shardwright IS 'shardwright shard';
GRANT USAGE ON SCHEMA shardwright TO PUBLIC;

CREATE TABLE shardwright.migrations (
    number      int PRIMARY KEY,
    name        text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Who this shard is, told by the catalog.
CREATE TABLE shardwright.identity (
    singleton    boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    cluster      uuid NOT NULL,
    shard        text NOT NULL,
    -- the number that is in every id made here, and in no other shard's or process's
    generator    int CHECK (generator BETWEEN 0 AND 1023)
);

CREATE TABLE shardwright.ranges (
    id           int PRIMARY KEY,
    keyspace     text NOT NULL,
    points       int8range NOT NULL CHECK (NOT isempty(points)),
    -- open: served here; fenced: about to be handed over; importing: being copied to here; moved: served elsewhere,
    -- the rows are still here
    state        text NOT NULL CHECK (state IN ('open', 'fenced', 'importing', 'moved')),
    map_version  bigint NOT NULL
);

-- The live operations that work here, each with the highest op_epoch seen: a superseded worker cannot act any more.
CREATE TABLE shardwright.control (
    operation  int PRIMARY KEY,
    op_epoch   int NOT NULL
);

-- One row a stream; its value arriving at the other side proves that everything before it has arrived.
CREATE TABLE shardwright.marker (
    stream  text PRIMARY KEY,
    value   bigint NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Tables with guards here. owned is the multirange that the guard's body holds (for people; the body is what counts).
CREATE TABLE shardwright.guards (
    table_id     int PRIMARY KEY,
    schema_name  text NOT NULL,
    table_name   text NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('sharded', 'reference')),
    keyspace     text,
    key_column   text,
    owned        int8multirange
);

-- What shardwright made here besides this schema. What it found is not listed, and never dropped.
CREATE TABLE shardwright.created (
    kind         text NOT NULL CHECK (kind IN ('schema', 'extension', 'type', 'table')),
    schema_name  text NOT NULL,
    name         text NOT NULL,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, schema_name, name)
);

-- Our mark on partitions: nothing is detached or dropped without it. relid is the second half of the mark: another
-- table under an old name does not have it.
CREATE TABLE shardwright.partitions (
    schema_name  text NOT NULL,
    name         text NOT NULL,
    relid        oid NOT NULL,
    parent       text NOT NULL,
    -- as in the catalog's windows
    span         int8range NOT NULL,
    role         text NOT NULL CHECK (role IN ('window', 'whole', 'before', 'after')),
    -- made: not attached yet; attached; detached: out of the parent since detached_at; archived: verified copies exist;
    -- replaced: detached, its rows live on in the partitions that it was cut into
    state        text NOT NULL CHECK (state IN ('made', 'attached', 'detached', 'archived', 'replaced')),
    detached_at  timestamptz,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (schema_name, name)
);

-- The barrier that a move of rows between partitions raises in its own transaction, the trigger's argument: who does not
-- see that transaction would change none of those rows, and not be told.
CREATE FUNCTION shardwright.refuse_old_snapshot() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable')
       AND NOT pg_visible_in_snapshot(TG_ARGV[0]::xid8, pg_current_snapshot()) THEN
        RAISE EXCEPTION 'could not serialize access: rows moved between partitions of % after this transaction''s snapshot',
            TG_TABLE_NAME USING ERRCODE = 'serialization_failure', HINT = 'Begin the transaction anew.';
    END IF;
    RETURN NULL;
END $$;

-- What a schema migration said of a table here and the catalog has not been told yet, written in the revision's own
-- transaction. Rows go when all shards are there and the catalog has it.
CREATE TABLE shardwright.declared (
    schema_name  text NOT NULL,
    table_name   text NOT NULL,
    -- as in SQLAlchemy's Table.info
    info         jsonb NOT NULL,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (schema_name, table_name)
);

-- Class of the two-key advisory locks: 1397249860 = 'SHWD'. Key 0 stands for the whole shard, others for a range.
CREATE FUNCTION shardwright.enter(range_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found text;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1397249860, range_id);
    -- A statement of its own: under READ COMMITTED its snapshot is younger than the wait for the lock. Under the other
    -- levels the snapshot may be older, and FOR SHARE turns that into a serialization failure.
    IF current_setting('transaction_isolation') = 'read committed' THEN
        SELECT state INTO found FROM shardwright.ranges WHERE id = range_id;
    ELSE
        SELECT state INTO found FROM shardwright.ranges WHERE id = range_id FOR SHARE;
    END IF;
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'this server is a standby' USING ERRCODE = '25006';
    ELSIF found = 'open' THEN
        RETURN;
    ELSIF found = 'fenced' THEN
        RAISE EXCEPTION 'range % is about to be handed over', range_id USING ERRCODE = 'SH002';
    ELSIF found = 'importing' THEN
        RAISE EXCEPTION 'range % is not open here yet', range_id USING ERRCODE = 'SH003';
    END IF;
    RAISE EXCEPTION 'range % is not served here', range_id USING ERRCODE = 'SH001';
END $$;

-- For a scatter read: keeps every switch off this shard until the transaction ends, and says what is served here.
-- strangers: whether rows of other owners may be here, so that the read must be narrowed to the owned points.
CREATE FUNCTION shardwright.enter_all(OUT keyspace text, OUT owned int8multirange, OUT strangers boolean)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1397249860, 0);
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'this server is a standby' USING ERRCODE = '25006';
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM FROM shardwright.ranges FOR SHARE;
    END IF;
    RETURN QUERY
        SELECT r.keyspace, coalesce(range_agg(r.points) FILTER (WHERE r.state = 'open'), '{}'),
               bool_or(r.state <> 'open')
          FROM shardwright.ranges r GROUP BY r.keyspace;
END $$;

-- Fails unless exactly these points of a keyspace are open here: whoever computed guards from them may go on.
CREATE FUNCTION shardwright.expect_open(of_keyspace text, expected int8multirange) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found int8multirange;
BEGIN
    SELECT coalesce(range_agg(points) FILTER (WHERE state = 'open'), '{}') INTO found
      FROM shardwright.ranges WHERE keyspace = of_keyspace;
    IF found IS DISTINCT FROM expected THEN
        RAISE EXCEPTION 'keyspace % is open here for %, not for %', of_keyspace, found, expected
            USING ERRCODE = 'serialization_failure';
    END IF;
END $$;
REVOKE ALL ON FUNCTION shardwright.expect_open(text, int8multirange) FROM PUBLIC;

-- A worker that takes an operation over announces its token first. Lower ones are refused from then on; the row goes
-- when the operation ends, and hold() fails without it.
CREATE FUNCTION shardwright.claim(op int, token int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO shardwright.control AS c (operation, op_epoch) VALUES (op, token)
    ON CONFLICT (operation) DO UPDATE SET op_epoch = excluded.op_epoch WHERE c.op_epoch <= excluded.op_epoch;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'operation % was taken over by another worker', op USING ERRCODE = 'SH009';
    END IF;
END $$;
REVOKE ALL ON FUNCTION shardwright.claim(int, int) FROM PUBLIC;

-- Called first in every transaction by which an operation changes something here. FOR SHARE: a take-over waits for the
-- changes that are under way, and several workers of one operation do not wait for each other.
CREATE FUNCTION shardwright.hold(op int, token int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM shardwright.control WHERE operation = op AND op_epoch = token FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'operation % was taken over by another worker, or has ended', op USING ERRCODE = 'SH009';
    END IF;
END $$;
REVOKE ALL ON FUNCTION shardwright.hold(int, int) FROM PUBLIC;

-- The partitions, at any depth, of guarded tables that have not got the trigger by which who writes to a partition itself
-- locks the partitioned table like who writes through it. One that is being detached concurrently still is a partition.
CREATE FUNCTION shardwright.uncovered_leaves(of_tables int[], OUT table_id int, OUT leaf regclass)
RETURNS SETOF record
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE below(table_id, relid, root) AS (
        SELECT g.table_id, c.oid, true
          FROM shardwright.guards g JOIN pg_namespace n ON n.nspname = g.schema_name
          JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = g.table_name AND c.relkind = 'p'
         WHERE g.table_id = ANY (of_tables)
         UNION ALL
        SELECT b.table_id, i.inhrelid, false FROM below b JOIN pg_inherits i ON i.inhparent = b.relid)
    SELECT b.table_id, b.relid::regclass FROM below b
     WHERE NOT b.root AND NOT EXISTS (
        SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
         WHERE t.tgrelid = b.relid AND t.tgname = '~shardwright_leaf' AND t.tgenabled IN ('O', 'A')
           AND p.proname = 'guard_truncate_' || b.table_id AND p.pronamespace = 'shardwright'::regnamespace)
$$;
REVOKE ALL ON FUNCTION shardwright.uncovered_leaves(int[]) FROM PUBLIC;

-- Gives them that trigger, which waits for those who write to them. Returns how many there were.
CREATE FUNCTION shardwright.cover_leaves(of_tables int[]) RETURNS int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found  record;
    given  int := 0;
BEGIN
    FOR found IN SELECT * FROM shardwright.uncovered_leaves(of_tables) LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER "~shardwright_leaf" BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
                       'FOR EACH STATEMENT EXECUTE FUNCTION shardwright.guard_truncate_%s()', found.leaf, found.table_id);
        given := given + 1;
    END LOOP;
    RETURN given;
END $$;
REVOKE ALL ON FUNCTION shardwright.cover_leaves(int[]) FROM PUBLIC;

-- Keeps the partitions of guarded tables as they are until the transaction ends, and sees that each has its trigger: then
-- a lock on the partitioned table alone holds off whoever writes. Nobody who reads or writes waits for this.
CREATE FUNCTION shardwright.steady(of_tables int[]) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent regclass;
BEGIN
    FOR parent IN
        SELECT c.oid::regclass FROM shardwright.guards g JOIN pg_namespace n ON n.nspname = g.schema_name
          JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = g.table_name AND c.relkind = 'p'
         WHERE g.table_id = ANY (of_tables) ORDER BY g.table_id
    LOOP
        EXECUTE format('LOCK TABLE ONLY %s IN SHARE UPDATE EXCLUSIVE MODE', parent);
    END LOOP;
    IF parent IS NOT NULL THEN
        PERFORM shardwright.cover_leaves(of_tables);
    END IF;
END $$;
REVOKE ALL ON FUNCTION shardwright.steady(int[]) FROM PUBLIC;

-- ------------------------------------------------------------------ ids

-- 41 bits: milliseconds since 2025-01-01 UTC. 10 bits: generator. 12 bits: count within the millisecond. ids.py says it too.
-- What was given out last, milliseconds and count in one number. A sequence: it never goes back, whatever is rolled back.
CREATE SEQUENCE shardwright.ids AS bigint MINVALUE 0 START 0;
-- The timeline of the server that gave it out.
CREATE SEQUENCE shardwright.ids_timeline AS bigint MINVALUE 0 START 0;

CREATE FUNCTION shardwright.timeline() RETURNS bigint
LANGUAGE sql VOLATILE AS $$
    SELECT ('x' || pg_catalog.lpad(pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8),
                                   16, '0'))::bit(64)::bigint
$$;
SELECT setval('shardwright.ids_timeline', shardwright.timeline());

-- Milliseconds of ids now. A function of its own, for tests of clocks that step back.
CREATE FUNCTION shardwright.ids_clock() RETURNS bigint
LANGUAGE sql VOLATILE AS $$
    SELECT pg_catalog.floor(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000)::bigint - 1735689600000
$$;

-- An id that no shard and no process has made or will make; ids of one shard grow.
CREATE FUNCTION shardwright.next_id() RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mine    int;
    last    bigint;
    clock   bigint;
    lost    bigint := 0;
    server  bigint;
    before  bigint;
BEGIN
    SELECT i.generator, t.last_value, shardwright.timeline(), shardwright.ids_clock() INTO mine, before, server, clock
      FROM shardwright.identity i, shardwright.ids_timeline t;
    IF mine IS NULL THEN
        RAISE EXCEPTION 'this shard has no number for its ids' USING ERRCODE = '55000', HINT = 'shardwright shard add';
    END IF;
    BEGIN
        -- Everybody who takes a number holds this for a moment: else one who was about to set the sequence forward, and
        -- was held up, would set it back.
        PERFORM pg_advisory_xact_lock(1397249860, -2);
        IF server <> before AND server <> (SELECT last_value FROM shardwright.ids_timeline) THEN
            -- A standby was promoted. What the old server gave out last may not have reached it: leave a gap of 10 s.
            lost := 10000;
            PERFORM setval('shardwright.ids_timeline', server);
        END IF;
        last := nextval('shardwright.ids') + (lost << 12);
        clock := (clock + lost) << 12;
        IF lost > 0 OR last < clock THEN
            last := setval('shardwright.ids', greatest(last, clock));
        END IF;
        -- Gives the lock back, now and not at the transaction's end. What was done to sequences stays, and so do variables.
        RAISE SQLSTATE 'SWIDS';
    EXCEPTION WHEN SQLSTATE 'SWIDS' THEN
    END;
    RETURN (last >> 12 << 22) | (mine << 12) | (last & 4095);
END $$;

-- A UUID of version 7: milliseconds, their fraction in 12 bits, and 62 random bits.
DO $do$
BEGIN
    IF current_setting('server_version_num')::int >= 180000 THEN
        CREATE FUNCTION shardwright.uuid7() RETURNS uuid
        LANGUAGE sql VOLATILE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS 'SELECT uuidv7()';
    ELSE
        CREATE FUNCTION shardwright.uuid7() RETURNS uuid
        LANGUAGE sql VOLATILE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
            -- gen_random_uuid() has the variant and 62 random bits; 48 bits of milliseconds, the version and 12 bits go before
            SELECT encode(set_byte(set_byte(
                       overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send(us / 1000) FROM 3) FROM 1 FOR 6),
                       6, 112 | (fraction >> 8)::int), 7, (fraction & 255)::int), 'hex')::uuid
              FROM (SELECT us, us % 1000 * 4096 / 1000 AS fraction
                      FROM (SELECT floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) AS clock) AS now
        $$;
    END IF;
END $do$;
