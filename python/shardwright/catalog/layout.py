"""A table's layout: read from pg_catalog through the protocol, kept as JSON, compared by fingerprint.

No pg_dump is involved: what a shard's owner wrote into a definition is executed as SQL on the other shards, never by a
client program. The reading connection has a search_path of pg_catalog only, so that every expression comes out
qualified. ``ddl.py`` makes tables from layouts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from shardwright import errors


@dataclass(frozen=True)
class Column:
    """One column; types, collations and expressions are SQL as PostgreSQL prints it."""

    name: str
    type: str
    #: Qualified; None where it is the type's own.
    collation: str | None
    not_null: bool
    default: str | None
    #: ``a`` GENERATED ALWAYS AS IDENTITY, ``d`` BY DEFAULT, or empty.
    identity: str
    #: ``s`` stored, ``v`` virtual (18), or empty.
    generated: str
    #: The three below are None where they are the default.
    storage: str | None
    compression: str | None
    statistics: int | None
    comment: str | None


@dataclass(frozen=True)
class Key:
    """An index or a constraint."""

    name: str
    #: ``primary``, ``unique``, ``exclude``, ``index``, ``check`` or ``foreign``.
    kind: str
    #: CREATE INDEX for primary, unique and index; else what follows ADD CONSTRAINT name.
    definition: str
    #: Plain columns of the key, in order; expressions are left out.
    columns: tuple[str, ...]
    #: Whether the index is unique (exclusion constraints count).
    unique: bool
    #: Empty, ``DEFERRABLE`` or ``DEFERRABLE INITIALLY DEFERRED``.
    deferrable: str = ""
    #: Of a foreign key: the table it points to, and its columns.
    to_schema: str | None = None
    to_table: str | None = None
    to_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sequence:
    """A sequence that a column owns, is the identity of, or takes its default from."""

    schema: str
    name: str
    type: str
    start: int
    increment: int
    minimum: int
    maximum: int
    cache: int
    cycle: bool
    column: str
    #: ``identity``, ``owned`` or ``used``.
    bond: str


@dataclass(frozen=True)
class Grant:
    """One privilege on the table, on a column of it, or on a sequence of it."""

    role: str
    privilege: str
    grantable: bool
    column: str | None = None
    #: Schema and name of a sequence, where the privilege is on that.
    sequence: tuple[str, str] | None = None


@dataclass(frozen=True)
class Type:
    """What a column's type needs: an enum, or an extension."""

    #: ``enum`` or ``extension``.
    kind: str
    schema: str
    name: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Everything that makes the same table elsewhere."""

    schema: str
    table: str
    columns: tuple[Column, ...]
    keys: tuple[Key, ...]
    sequences: tuple[Sequence, ...]
    types: tuple[Type, ...]
    #: CREATE TRIGGER and CREATE STATISTICS texts, by name; the guards are not among them.
    triggers: tuple[tuple[str, str], ...]
    statistics: tuple[tuple[str, str], ...]
    #: Storage parameters, ``fillfactor=70``.
    options: tuple[str, ...]
    #: ``d`` primary key, ``f`` full, ``n`` nothing, ``i`` an index.
    replica_identity: str
    replica_index: str | None
    comment: str | None
    owner: str
    grants: tuple[Grant, ...]
    #: ``RANGE (created_at)``; None for a table that is not partitioned.
    partition_by: str | None = None

    @property
    def name(self) -> str:
        """``schema.table``, for messages."""
        return f"{self.schema}.{self.table}"

    @property
    def copied_columns(self) -> tuple[str, ...]:
        """The columns that a copy carries: all but generated ones."""
        return tuple(column.name for column in self.columns if not column.generated)

    @property
    def primary_key(self) -> Key | None:
        """The primary key, or None."""
        return next((key for key in self.keys if key.kind == "primary"), None)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that two tables share which hold, accept and enforce the same.

        Independent of oids, of the order of columns and indexes, of storage parameters, comments and owners, and of the
        server's version.
        """
        text = json.dumps(self._essence(), sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _essence(self) -> dict[str, str]:
        found = {
            f"column {column.name}": " ".join(
                [
                    column.type,
                    f"COLLATE {column.collation}" if column.collation else "",
                    "NOT NULL" if column.not_null else "",
                    f"DEFAULT {column.default}" if column.default is not None else "",
                    f"IDENTITY {column.identity}" if column.identity else "",
                    f"GENERATED {column.generated}" if column.generated else "",
                ]
            )
            for column in self.columns
        }
        found |= {f"{key.kind} {key.name}": f"{key.definition} {key.deferrable}" for key in self.keys}
        found |= {
            f"enum {type.schema}.{type.name}": ", ".join(type.labels) for type in self.types if type.kind == "enum"
        }
        found |= {f"trigger {name}": text for name, text in self.triggers}
        found["replica identity"] = f"{self.replica_identity} {self.replica_index or ''}"
        if self.partition_by is not None:
            found["partition by"] = self.partition_by
        return found

    def differences(self, other: Layout) -> list[str]:
        """What makes the fingerprints differ, one line each; empty when they are equal.

        Args:
            other: the same table on another shard.
        """
        mine, theirs = self._essence(), other._essence()
        return [
            f"{what}: {' '.join(mine.get(what, 'absent').split())} / {' '.join(theirs.get(what, 'absent').split())}"
            for what in sorted(mine.keys() | theirs.keys())
            if mine.get(what) != theirs.get(what)
        ]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready value; ``from_json`` reads it back."""
        return {"fingerprint": self.fingerprint, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Layout:
        """The layout that ``to_json`` wrote.

        Args:
            value: decoded JSON.
        """
        fields = {name: value[name] for name in cls.__dataclass_fields__}
        for name, made in (("columns", Column), ("sequences", Sequence)):
            fields[name] = tuple(made(**item) for item in fields[name])
        fields["types"] = tuple(Type(**{**item, "labels": tuple(item["labels"])}) for item in fields["types"])
        fields["grants"] = tuple(
            Grant(**{**item, "sequence": tuple(item["sequence"]) if item["sequence"] else None})
            for item in fields["grants"]
        )
        fields["keys"] = tuple(
            Key(**{**item, "columns": tuple(item["columns"]), "to_columns": tuple(item["to_columns"])})
            for item in fields["keys"]
        )
        for name in ("triggers", "statistics"):
            fields[name] = tuple((pair[0], pair[1]) for pair in fields[name])
        fields["options"] = tuple(fields["options"])
        return cls(**fields)


#: What is taken for a table, of pg_class AS c.
_IS_TABLE = "c.relkind IN ('r', 'p', 'f', 'v', 'm')"

# One statement, so that all parts are of one snapshot. Constraints of type n are PostgreSQL 18's way to store what
# attnotnull says, t are triggers.
_READ = (
    """
SELECT jsonb_build_object(
  'schema', n.nspname, 'table', c.relname,
  'columns', (SELECT jsonb_agg(jsonb_build_object(
      'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
      'collation', CASE WHEN a.attcollation <> ty.typcollation
                        THEN (SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname) FROM pg_collation co
                                JOIN pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = a.attcollation) END,
      'not_null', a.attnotnull, 'default', pg_get_expr(ad.adbin, ad.adrelid),
      'identity', a.attidentity, 'generated', a.attgenerated,
      'storage', CASE WHEN a.attstorage <> ty.typstorage THEN a.attstorage END,
      'compression', nullif(a.attcompression, ''), 'statistics', nullif(a.attstattarget, -1),
      'comment', col_description(c.oid, a.attnum)) ORDER BY a.attnum)
    FROM pg_attribute a JOIN pg_type ty ON ty.oid = a.atttypid
    LEFT JOIN pg_attrdef ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  'keys', (SELECT jsonb_agg(k.key ORDER BY k.rank, k.name) FROM (
      SELECT ic.relname AS name, CASE WHEN co.contype = 'p' THEN 0 ELSE 1 END AS rank, jsonb_build_object(
          'name', ic.relname,
          'kind', CASE co.contype WHEN 'p' THEN 'primary' WHEN 'u' THEN 'unique' WHEN 'x' THEN 'exclude'
                                  ELSE 'index' END,
          'definition', CASE
              WHEN co.contype = 'x' OR i.indisexclusion OR co.oid IS NOT NULL AND c.relkind = 'p'
              THEN pg_get_constraintdef(co.oid)
              -- A partitioned table's index is printed as ON ONLY, and a new one is to reach the partitions.
              ELSE replace(pg_get_indexdef(i.indexrelid), format('INDEX %%I ON ONLY ', ic.relname),
                           format('INDEX %%I ON ', ic.relname)) END,
          'columns', ARRAY(SELECT a.attname FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS p(attnum, at)
                             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.attnum
                            WHERE p.at <= i.indnkeyatts ORDER BY p.at),
          'unique', i.indisunique OR i.indisexclusion,
          'deferrable', CASE WHEN co.condeferred THEN 'DEFERRABLE INITIALLY DEFERRED'
                             WHEN co.condeferrable THEN 'DEFERRABLE' ELSE '' END,
          'to_schema', NULL, 'to_table', NULL, 'to_columns', '[]'::jsonb) AS key
        FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid
        LEFT JOIN pg_constraint co ON co.conindid = i.indexrelid AND co.contype IN ('p', 'u', 'x')
       WHERE i.indrelid = c.oid AND i.indisvalid
      UNION ALL
      SELECT co.conname, CASE co.contype WHEN 'c' THEN 2 ELSE 3 END, jsonb_build_object(
          'name', co.conname, 'kind', CASE co.contype WHEN 'c' THEN 'check' ELSE 'foreign' END,
          'definition', pg_get_constraintdef(co.oid),
          'columns', ARRAY(SELECT a.attname FROM unnest(co.conkey) WITH ORDINALITY AS p(attnum, at)
                             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.attnum ORDER BY p.at),
          'unique', false, 'deferrable', '',
          'to_schema', fn.nspname, 'to_table', f.relname,
          'to_columns', ARRAY(SELECT a.attname FROM unnest(co.confkey) WITH ORDINALITY AS p(attnum, at)
                                JOIN pg_attribute a ON a.attrelid = f.oid AND a.attnum = p.attnum ORDER BY p.at))
        FROM pg_constraint co LEFT JOIN pg_class f ON f.oid = co.confrelid
        LEFT JOIN pg_namespace fn ON fn.oid = f.relnamespace
       WHERE co.conrelid = c.oid AND co.contype IN ('c', 'f') AND co.conparentid = 0) k),
  'sequences', (SELECT jsonb_agg(jsonb_build_object(
      'schema', sn.nspname, 'name', sc.relname, 'type', format_type(s.seqtypid, NULL), 'start', s.seqstart,
      'increment', s.seqincrement, 'minimum', s.seqmin, 'maximum', s.seqmax, 'cache', s.seqcache, 'cycle', s.seqcycle,
      'column', a.attname, 'bond', b.bond) ORDER BY sn.nspname, sc.relname)
    FROM (SELECT DISTINCT ON (objid) objid, attnum, bond FROM (
            SELECT d.objid, d.refobjsubid AS attnum, CASE d.deptype WHEN 'i' THEN 'identity' ELSE 'owned' END AS bond
              FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
               AND d.refobjid = c.oid AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
            UNION ALL
            SELECT d.refobjid, ad.adnum, 'used' FROM pg_attrdef ad
              JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = ad.oid
               AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'n'
             WHERE ad.adrelid = c.oid) every ORDER BY objid, bond) b
    JOIN pg_sequence s ON s.seqrelid = b.objid JOIN pg_class sc ON sc.oid = b.objid
    JOIN pg_namespace sn ON sn.oid = sc.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = b.attnum),
  'types', (SELECT jsonb_agg(DISTINCT jsonb_build_object('kind', CASE WHEN x.oid IS NULL THEN 'enum' ELSE 'extension' END,
      'schema', n2.nspname, 'name', coalesce(x.extname, ty.typname),
      'labels', CASE WHEN x.oid IS NULL THEN ARRAY(SELECT enumlabel FROM pg_enum WHERE enumtypid = ty.oid
                                                     ORDER BY enumsortorder) ELSE '{}' END))
    FROM pg_attribute a JOIN pg_type t0 ON t0.oid = a.atttypid
    JOIN pg_type ty ON ty.oid = CASE WHEN t0.typcategory = 'A' THEN t0.typelem ELSE t0.oid END
    LEFT JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = ty.oid AND d.deptype = 'e'
    LEFT JOIN pg_extension x ON d.refclassid = 'pg_extension'::regclass AND x.oid = d.refobjid
    JOIN pg_namespace n2 ON n2.oid = coalesce(x.extnamespace, ty.typnamespace)
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND (ty.typtype = 'e' OR x.oid IS NOT NULL)),
  'triggers', (SELECT jsonb_agg(jsonb_build_array(tgname, pg_get_triggerdef(oid)) ORDER BY tgname) FROM pg_trigger
    WHERE tgrelid = c.oid AND NOT tgisinternal AND tgname NOT LIKE '~shardwright\\_%%'),
  'statistics', (SELECT jsonb_agg(jsonb_build_array(stxname, pg_get_statisticsobjdef(oid)) ORDER BY stxname)
    FROM pg_statistic_ext WHERE stxrelid = c.oid),
  'options', c.reloptions, 'replica_identity', c.relreplident,
  'replica_index', (SELECT ic.relname FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid
                     WHERE i.indrelid = c.oid AND i.indisreplident),
  'comment', obj_description(c.oid, 'pg_class'), 'partition_by', pg_get_partkeydef(c.oid), 'owner', pg_get_userbyid(c.relowner),
  'grants', (SELECT jsonb_agg(jsonb_build_object('role', CASE g.grantee WHEN 0 THEN 'public'
        ELSE pg_get_userbyid(g.grantee) END, 'privilege', g.privilege_type, 'grantable', g.is_grantable,
        'column', g.attname, 'sequence', CASE WHEN g.seqname IS NOT NULL THEN ARRAY[g.seqschema, g.seqname] END)
        ORDER BY g.seqname NULLS FIRST, g.attname NULLS FIRST, g.grantee, g.privilege_type)
    FROM (SELECT NULL::name AS attname, NULL::name AS seqschema, NULL::name AS seqname, e.* FROM aclexplode(c.relacl) e
          UNION ALL
          SELECT a.attname, NULL, NULL, e.* FROM pg_attribute a, aclexplode(a.attacl) e
           WHERE a.attrelid = c.oid AND a.attnum > 0
          UNION ALL
          SELECT NULL, sn.nspname, s.relname, e.* FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
            JOIN pg_namespace sn ON sn.oid = s.relnamespace, aclexplode(s.relacl) e
           WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
             AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
         ) g WHERE g.grantee <> c.relowner))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND """
    + _IS_TABLE
)

_EXISTING = (
    """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN unnest(%s::text[], %s::text[]) AS asked (schema, name) ON n.nspname = asked.schema AND c.relname = asked.name
 WHERE """
    + _IS_TABLE
)


def layout_of(connection: psycopg.Connection, schema: str, table: str) -> Layout:
    """Read a table's layout; of a partitioned one the parent's, without its partitions.

    Args:
        connection: to the shard, with a search_path of pg_catalog (as `engines` makes it).
        schema: the table's schema.
        table: the table's name.

    Raises:
        UnknownTable: there is no such table.
    """
    found = find_layout(connection, schema, table)
    if found is None:
        raise errors.UnknownTable(
            f"there is no table {schema}.{table} in database {connection.info.dbname}",
            fix="check the name; names are case-sensitive here",
            table=f"{schema}.{table}",
        )
    return found


def find_layout(connection: psycopg.Connection, schema: str, table: str) -> Layout | None:
    """As `layout_of`, but None where there is no such table.

    Args:
        connection: to the shard.
        schema: the table's schema.
        table: the table's name.
    """
    row = connection.execute(_READ, (schema, table)).fetchone()
    if row is None:
        return None
    # An aggregate over nothing is NULL; a layout has empty lists.
    lists = ("columns", "keys", "sequences", "types", "triggers", "statistics", "options", "grants")
    return Layout.from_json({**row[0], **{name: row[0][name] or [] for name in lists}})


def existing(connection: psycopg.Connection, names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those names that a table has, by which `find_layout` would find one.

    Args:
        connection: to the shard.
        names: schemas and names.
    """
    asked = list(names)
    rows = connection.execute(_EXISTING, ([schema for schema, _ in asked], [name for _, name in asked])).fetchall()
    return [(schema, name) for schema, name in rows]
