"""Tables to be converted and split, with everything that can hang on one.

Fixtures:
    full (function)    Full: a database with the table app."Events" and all that hangs on it; superuser's DSN
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from fix_servers import Postgres
from shardwright import engines
from shardwright.catalog import migrations
from shardwright.catalog.roster import Shard

#: Roles belong to the server; each test has its own.
ROLES = ("owner", "reader", "grantee", "stranger")

FULL = """
CREATE SCHEMA app;
CREATE TABLE app.users (id bigint PRIMARY KEY);
CREATE TABLE app."Events" (
    dropped int,
    id bigint GENERATED ALWAYS AS IDENTITY (START WITH 100 INCREMENT BY 5 CACHE 3),
    serial_no serial,
    user_id bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    "Body" jsonb,
    size int CONSTRAINT size_is_positive CHECK (size > 0),
    twice int GENERATED ALWAYS AS (size * 2) STORED,
    note text COLLATE "C",
    CONSTRAINT "Events key" PRIMARY KEY (id, created_at),
    CONSTRAINT number_once UNIQUE (serial_no, created_at) DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT user_is_there FOREIGN KEY (user_id) REFERENCES app.users ON DELETE CASCADE
) WITH (fillfactor = 80);
ALTER TABLE app."Events" DROP COLUMN dropped;
ALTER TABLE app."Events" ALTER COLUMN note SET STORAGE EXTERNAL, ALTER COLUMN user_id SET STATISTICS 321,
    ALTER COLUMN user_id SET (n_distinct = 50);
CREATE INDEX by_user ON app."Events" (user_id, created_at DESC) INCLUDE (size) WITH (fillfactor = 77);
CREATE INDEX "by ""quoted"" words" ON app."Events" USING gin ("Body") WHERE size > 10;
CREATE UNIQUE INDEX by_expression ON app."Events" (created_at, serial_no, id);
CREATE INDEX by_lower ON app."Events" (lower(note) text_pattern_ops NULLS FIRST);
CREATE STATISTICS app.tied (dependencies) ON user_id, size FROM app."Events";
ALTER STATISTICS app.tied SET STATISTICS 99;
CREATE TABLE app.log (at timestamptz DEFAULT clock_timestamp(), what text);
CREATE FUNCTION app.logged() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO app.log (what) VALUES (TG_NAME || ' ' || TG_OP); RETURN coalesce(NEW, OLD); END $$;
CREATE TRIGGER row_before BEFORE UPDATE OF size ON app."Events" FOR EACH ROW WHEN (OLD.size IS DISTINCT FROM NEW.size)
    EXECUTE FUNCTION app.logged('x');
CREATE TRIGGER row_after AFTER INSERT OR DELETE ON app."Events" FOR EACH ROW EXECUTE FUNCTION app.logged();
CREATE TRIGGER off_now AFTER INSERT ON app."Events" FOR EACH ROW EXECUTE FUNCTION app.logged();
CREATE TRIGGER per_statement AFTER INSERT ON app."Events" REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT
    EXECUTE FUNCTION app.logged();
CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON app."Events" DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    EXECUTE FUNCTION app.logged();
ALTER TABLE app."Events" DISABLE TRIGGER off_now, ENABLE ALWAYS TRIGGER row_after;
ALTER TABLE app."Events" REPLICA IDENTITY USING INDEX by_expression;
CREATE TABLE app.attachments (event bigint, at timestamptz, name text,
    CONSTRAINT of_event FOREIGN KEY (event, at) REFERENCES app."Events" (id, created_at) ON DELETE CASCADE ON UPDATE CASCADE);
CREATE VIEW app.big WITH (security_barrier = true) AS SELECT id, "Body", size FROM app."Events" WHERE size > 100;
CREATE VIEW app.bigger AS SELECT b.id, e.note FROM app.big b JOIN app."Events" e USING (id);
CREATE FUNCTION app.total() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM app."Events"; END;
ALTER TABLE app."Events" ENABLE ROW LEVEL SECURITY;
ALTER TABLE app."Events" FORCE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON app."Events" FOR SELECT TO {reader} USING (user_id < 1000);
CREATE POLICY all_rows ON app."Events" TO PUBLIC USING (true) WITH CHECK (size IS NULL OR size < 1000000);
CREATE POLICY never ON app."Events" AS RESTRICTIVE FOR DELETE TO {stranger} USING (false);
COMMENT ON TABLE app."Events" IS 'what happened, it''s all here';
COMMENT ON COLUMN app."Events".note IS 'a note';
COMMENT ON CONSTRAINT size_is_positive ON app."Events" IS 'positive';
COMMENT ON CONSTRAINT "Events key" ON app."Events" IS 'the key';
COMMENT ON CONSTRAINT user_is_there ON app."Events" IS 'there';
COMMENT ON CONSTRAINT of_event ON app.attachments IS 'to the event';
COMMENT ON INDEX app.by_user IS 'by user';
COMMENT ON TRIGGER row_after ON app."Events" IS 'after a row';
COMMENT ON POLICY own_rows ON app."Events" IS 'own rows';
COMMENT ON STATISTICS app.tied IS 'tied';
COMMENT ON SEQUENCE app."Events_id_seq" IS 'numbers';
COMMENT ON VIEW app.big IS 'big ones';
CREATE PUBLICATION {prefix}_feed FOR TABLE app."Events" (id, created_at, serial_no, size) WHERE (serial_no > 0)
    WITH (publish_via_partition_root = true);
ALTER TABLE app."Events" OWNER TO {owner};
ALTER VIEW app.big OWNER TO {owner};
GRANT USAGE ON SCHEMA app TO PUBLIC;
GRANT SELECT, INSERT ON app."Events" TO {reader};
GRANT SELECT ON app."Events" TO {grantee} WITH GRANT OPTION;
SET ROLE {grantee};
GRANT SELECT ON app."Events" TO {stranger};
RESET ROLE;
GRANT UPDATE (note, size) ON app."Events" TO {stranger};
GRANT SELECT ON app.big TO {stranger};
GRANT USAGE ON SEQUENCE app."Events_id_seq" TO {reader};
GRANT TRIGGER ON app."Events" TO PUBLIC;
REVOKE TRUNCATE ON app."Events" FROM {owner};
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT DELETE ON TABLES TO {stranger};
INSERT INTO app.users SELECT g FROM generate_series(1, 50) g;
INSERT INTO app."Events" (user_id, created_at, "Body", size, note)
    SELECT 1 + g %% 50, timestamptz '2026-01-01 00:00+00' + g * interval '3 hours', jsonb_build_object('n', g), 1 + g, 'n' || g
    FROM generate_series(0, 1999) g;
INSERT INTO app.attachments SELECT id, created_at, 'a' FROM app."Events" LIMIT 20;
"""


@dataclass
class Full:
    """A database with a table on which everything hangs."""

    dsn: str
    prefix: str
    bin_dir: Path | None

    def ours(self) -> psycopg.Connection:
        return engines.connect_shard(Shard("s1", self.dsn))

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.dsn, autocommit=True)

    def dump(self) -> list[str]:
        """What pg_dump says of the schema, statement by statement."""
        if self.bin_dir is None:
            pytest.skip("the programs of a container's PostgreSQL are not at hand")
        done = subprocess.run(
            [self.bin_dir / "pg_dump", "--schema-only", "--schema=app", self.dsn],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        text = "\n".join(line for line in done.stdout.splitlines() if not line.startswith(("--", "\\")))
        return [" ".join(part.split()) for part in re.split(r";\n(?=\n|$)", text) if part.strip()]


def roles(prefix: str) -> dict[str, str]:
    return {"prefix": prefix, **{role: f"{prefix}_{role}" for role in ROLES}}


@pytest.fixture
def full(make_database: Callable[..., str], postgres: Postgres) -> Iterator[Full]:
    dsn = make_database("full")
    with psycopg.connect(dsn, autocommit=True) as connection:
        prefix = connection.info.dbname
        named = roles(prefix)
        for role in ROLES:
            connection.execute(f"CREATE ROLE {named[role]}".encode())
        text = FULL
        for name, value in named.items():
            text = text.replace("{" + name + "}", value)
        connection.execute(text.replace("%%", "%").encode())
    with engines.connect_shard(Shard("s1", dsn)) as connection:
        migrations.apply(connection, "shard")
    yield Full(dsn, prefix, postgres.bin_dir)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP PUBLICATION {prefix}_feed".encode())
        for role in ROLES:
            connection.execute(f"DROP OWNED BY {named[role]} CASCADE".encode())
            connection.execute(f"DROP ROLE {named[role]}".encode())
