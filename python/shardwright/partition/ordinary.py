"""An ordinary table with everything that hangs on it, read from the catalogs in one statement, as values.

What is read here is what `carried` carries over to a partitioned table of the same name. Whatever else depends on the
table is listed in `others`, so that nothing is left behind unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import psycopg

from shardwright import errors

#: One thing as the catalogs have it: names of values, JSON-ready.
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class OrdinaryTable:
    """One table on one shard. The keys of its parts are those of the statement below."""

    oid: int
    schema: str
    table: str
    owner: str
    relkind: str
    persistence: str
    leaf: bool
    child: bool
    parent: bool
    typed: bool
    row_security: bool
    force_row_security: bool
    replica_identity: str
    replica_index: str | None
    comment: str | None
    tablespace: str | None
    filenode: int
    bytes: int
    columns: tuple[Facts, ...]
    constraints: tuple[Facts, ...]
    indexes: tuple[Facts, ...]
    triggers: tuple[Facts, ...]
    policies: tuple[Facts, ...]
    grants: tuple[Facts, ...]
    sequences: tuple[Facts, ...]
    statistics: tuple[Facts, ...]
    publications: tuple[Facts, ...]
    subscriptions: tuple[str, ...]
    inbound: tuple[Facts, ...]
    views: tuple[Facts, ...]
    functions: tuple[Facts, ...]
    rules: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def name(self) -> str:
        """``schema.table``, for messages."""
        return f"{self.schema}.{self.table}"

    def column(self, name: str) -> Facts | None:
        """One of its columns, or None.

        Args:
            name: the column's name.
        """
        return next((column for column in self.columns if column["name"] == name), None)

    def same_as(self, other: OrdinaryTable) -> bool:
        """Whether nothing of it changed but its size.

        Args:
            other: the same table, read at another time.
        """
        sized = {"bytes", "filenode"}
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self) if f.name not in sized)


_GRANTS = (
    "jsonb_build_object('role', CASE e.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(e.grantee) END, "
    "'grantor', pg_get_userbyid(e.grantor), 'privilege', e.privilege_type, 'grantable', e.is_grantable"
)

# One statement, so that all parts are of one snapshot.
_READ = f"""
SELECT jsonb_build_object(
  'oid', c.oid::int8, 'schema', n.nspname, 'table', c.relname, 'owner', pg_get_userbyid(c.relowner),
  'relkind', c.relkind, 'persistence', c.relpersistence, 'leaf', c.relispartition,
  'child', EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid),
  'parent', EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid),
  'typed', c.reloftype <> 0, 'row_security', c.relrowsecurity, 'force_row_security', c.relforcerowsecurity,
  'replica_identity', c.relreplident,
  'replica_index', (SELECT ic.relname FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid
                     WHERE i.indrelid = c.oid AND i.indisreplident),
  'comment', obj_description(c.oid, 'pg_class'),
  'tablespace', (SELECT spcname FROM pg_tablespace WHERE oid = c.reltablespace),
  'filenode', coalesce(pg_relation_filenode(c.oid)::int8, 0), 'bytes', pg_total_relation_size(c.oid),
  'columns', (SELECT jsonb_agg(jsonb_build_object(
      'name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'not_null', a.attnotnull,
      'identity', a.attidentity, 'generated', a.attgenerated, 'statistics', nullif(a.attstattarget, -1),
      'options', to_jsonb(a.attoptions), 'comment', col_description(c.oid, a.attnum)) ORDER BY a.attnum)
    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  'constraints', (SELECT jsonb_agg(jsonb_build_object(
      'name', co.conname, 'type', co.contype, 'definition', pg_get_constraintdef(co.oid),
      'validated', co.convalidated, 'no_inherit', co.connoinherit AND co.contype IN ('c', 'n'), 'inherited', co.coninhcount > 0,
      'to_schema', fn.nspname, 'to_table', f.relname, 'to_self', co.confrelid = c.oid,
      'columns', ARRAY(SELECT a.attname FROM unnest(co.conkey) WITH ORDINALITY AS p(attnum, at)
                         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.attnum ORDER BY p.at),
      'comment', obj_description(co.oid, 'pg_constraint')) ORDER BY co.conname)
    FROM pg_constraint co LEFT JOIN pg_class f ON f.oid = co.confrelid
    LEFT JOIN pg_namespace fn ON fn.oid = f.relnamespace WHERE co.conrelid = c.oid AND co.contype <> 't'
     AND NOT EXISTS (SELECT FROM pg_constraint up WHERE up.oid = co.conparentid AND up.conrelid = co.conrelid)),
  'indexes', (SELECT jsonb_agg(jsonb_build_object(
      'name', ic.relname, 'unique', i.indisunique, 'primary', i.indisprimary, 'exclusion', i.indisexclusion,
      'valid', i.indisvalid,
      'method', substr(pg_get_indexdef(ic.oid), length(format('CREATE %sINDEX %I ON %s%I.%I ',
                 CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, ic.relname,
                 CASE WHEN c.relkind = 'p' THEN 'ONLY ' ELSE '' END, n.nspname, c.relname)) + 1),
      'constraint', co.conname, 'deferrable', coalesce(co.condeferrable, false), 'partial', i.indpred IS NOT NULL,
      'columns', ARRAY(SELECT a.attname FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS p(attnum, at)
                         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.attnum
                        WHERE p.at <= i.indnkeyatts ORDER BY p.at),
      'expressions', i.indexprs IS NOT NULL,
      'tablespace', (SELECT spcname FROM pg_tablespace WHERE oid = ic.reltablespace),
      'comment', obj_description(ic.oid, 'pg_class')) ORDER BY ic.relname)
    FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid
    LEFT JOIN pg_constraint co ON co.conindid = i.indexrelid AND co.contype IN ('p', 'u', 'x')
   WHERE i.indrelid = c.oid),
  'triggers', (SELECT jsonb_agg(jsonb_build_object(
      'name', t.tgname, 'definition', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled, 'row', t.tgtype & 1 = 1,
      'before', t.tgtype & 2 = 2, 'constraint', t.tgconstraint <> 0,
      'transition', t.tgoldtable IS NOT NULL OR t.tgnewtable IS NOT NULL, 'ours', t.tgname LIKE '~shardwright\\_%%',
      'comment', obj_description(t.oid, 'pg_trigger')) ORDER BY t.tgname)
    FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
  'policies', (SELECT jsonb_agg(jsonb_build_object(
      'name', p.polname, 'permissive', p.polpermissive, 'command', p.polcmd,
      'roles', ARRAY(SELECT CASE r WHEN 0 THEN NULL ELSE pg_get_userbyid(r) END FROM unnest(p.polroles) r),
      'using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid),
      'comment', obj_description(p.oid, 'pg_policy')) ORDER BY p.polname)
    FROM pg_policy p WHERE p.polrelid = c.oid),
  'grants', (SELECT jsonb_agg(g ORDER BY g->>'column' NULLS FIRST, g->>'role', g->>'privilege') FROM (
      SELECT {_GRANTS}, 'column', NULL) AS g FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) e
      UNION ALL
      SELECT {_GRANTS}, 'column', a.attname) FROM pg_attribute a, aclexplode(a.attacl) e
       WHERE a.attrelid = c.oid AND a.attnum > 0) every),
  'sequences', (SELECT jsonb_agg(jsonb_build_object(
      'schema', sn.nspname, 'name', sc.relname, 'column', a.attname, 'bond', d.deptype, 'start', s.seqstart,
      'increment', s.seqincrement, 'minimum', s.seqmin, 'maximum', s.seqmax, 'cache', s.seqcache, 'cycle', s.seqcycle,
      'persistence', sc.relpersistence, 'comment', obj_description(sc.oid, 'pg_class'),
      'grants', (SELECT jsonb_agg({_GRANTS}))
                   FROM aclexplode(coalesce(sc.relacl, acldefault('s', sc.relowner))) e))
      ORDER BY sn.nspname, sc.relname)
    FROM pg_depend d JOIN pg_class sc ON sc.oid = d.objid AND sc.relkind = 'S'
    JOIN pg_namespace sn ON sn.oid = sc.relnamespace JOIN pg_sequence s ON s.seqrelid = sc.oid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid
   WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
     AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')),
  'statistics', (SELECT jsonb_agg(jsonb_build_object(
      'schema', xn.nspname, 'name', x.stxname, 'definition', pg_get_statisticsobjdef(x.oid),
      'target', nullif(x.stxstattarget, -1), 'owner', pg_get_userbyid(x.stxowner),
      'comment', obj_description(x.oid, 'pg_statistic_ext')) ORDER BY xn.nspname, x.stxname)
    FROM pg_statistic_ext x JOIN pg_namespace xn ON xn.oid = x.stxnamespace WHERE x.stxrelid = c.oid),
  'publications', (SELECT jsonb_agg(p ORDER BY p->>'name') FROM (
      SELECT jsonb_build_object('name', pu.pubname, 'via_root', pu.pubviaroot, 'listed', true,
          'where', pg_get_expr(pr.prqual, pr.prrelid),
          'columns', (SELECT jsonb_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
                       WHERE a.attrelid = c.oid AND a.attnum = ANY (pr.prattrs::int2[]))) AS p
        FROM pg_publication_rel pr JOIN pg_publication pu ON pu.oid = pr.prpubid WHERE pr.prrelid = c.oid
      UNION ALL
      SELECT jsonb_build_object('name', pu.pubname, 'via_root', pu.pubviaroot, 'listed', false)
        FROM pg_publication pu
       WHERE pu.puballtables OR EXISTS (SELECT FROM pg_publication_namespace pn
                                         WHERE pn.pnpubid = pu.oid AND pn.pnnspid = n.oid)) every),
  'subscriptions', (SELECT jsonb_agg(s.subname ORDER BY 1) FROM pg_subscription_rel r
                      JOIN pg_subscription s ON s.oid = r.srsubid WHERE r.srrelid = c.oid),
  'inbound', (SELECT jsonb_agg(jsonb_build_object(
      'schema', rn.nspname, 'table', r.relname, 'name', co.conname, 'definition', pg_get_constraintdef(co.oid),
      'validated', co.convalidated, 'partitioned', r.relkind = 'p',
      'to_columns', ARRAY(SELECT a.attname FROM unnest(co.confkey) WITH ORDINALITY AS p(attnum, at)
                            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = p.attnum ORDER BY p.at),
      'comment', obj_description(co.oid, 'pg_constraint')) ORDER BY rn.nspname, r.relname, co.conname)
    FROM pg_constraint co JOIN pg_class r ON r.oid = co.conrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
   WHERE co.contype = 'f' AND co.confrelid = c.oid AND co.conrelid <> c.oid AND co.conparentid = 0),
  'views', (SELECT jsonb_agg(jsonb_build_object(
      'schema', vn.nspname, 'name', v.relname, 'kind', v.relkind, 'definition', pg_get_viewdef(v.oid),
      'options', to_jsonb(v.reloptions)) ORDER BY vn.nspname, v.relname)
    FROM pg_class v JOIN pg_namespace vn ON vn.oid = v.relnamespace
   WHERE v.relkind IN ('v', 'm') AND v.oid IN (SELECT r.ev_class FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
           WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid)),
  'functions', (SELECT jsonb_agg(jsonb_build_object(
      'name', p.oid::regprocedure::text, 'definition', pg_get_functiondef(p.oid)) ORDER BY p.oid)
    FROM pg_proc p WHERE p.oid IN (SELECT d.objid FROM pg_depend d
           WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid)),
  'rules', (SELECT jsonb_agg(rulename ORDER BY rulename) FROM pg_rewrite WHERE ev_class = c.oid AND ev_type <> '1'),
  'others', (SELECT jsonb_agg(DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid)) FROM pg_depend d
    LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    LEFT JOIN pg_class v ON v.oid = r.ev_class
    LEFT JOIN pg_trigger t ON d.classid = 'pg_trigger'::regclass AND t.oid = d.objid
    LEFT JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
    LEFT JOIN pg_constraint co ON d.classid = 'pg_constraint'::regclass AND co.oid = d.objid
    LEFT JOIN pg_class i ON d.classid = 'pg_class'::regclass AND i.oid = d.objid
   WHERE d.deptype IN ('n', 'a') AND (
     d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND NOT (
       d.classid IN ('pg_attrdef'::regclass, 'pg_publication_rel'::regclass, 'pg_statistic_ext'::regclass,
                     'pg_proc'::regclass)
       OR coalesce(v.relkind IN ('v', 'm') OR r.ev_class = c.oid, false)
       OR coalesce(t.tgrelid = c.oid, false) OR coalesce(p.polrelid = c.oid, false)
       OR coalesce(co.conrelid = c.oid OR co.confrelid = c.oid, false)
       OR coalesce(i.relkind IN ('i', 'S'), false))
     OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN (
       SELECT oid FROM pg_type WHERE oid = c.reltype OR typelem = c.reltype AND typcategory = 'A')))
)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
"""

_LISTS = (
    "columns", "constraints", "indexes", "triggers", "policies", "grants", "sequences", "statistics", "publications",
    "subscriptions", "inbound", "views", "functions", "rules", "others",
)  # fmt: skip


def find(connection: psycopg.Connection, schema: str, table: str) -> OrdinaryTable | None:
    """Read a table; None where there is none of that name.

    Args:
        connection: to the shard, with a search_path of pg_catalog.
        schema: its schema.
        table: its name.
    """
    # A format() placeholder of the server's is no parameter of ours.
    text = _READ.replace("%sINDEX", "%%sINDEX").replace("ON %s%I", "ON %%s%I").replace("%I", "%%I")
    row = connection.execute(text.encode(), (schema, table)).fetchone()
    if row is None:
        return None
    found = {**row[0], **{name: tuple(row[0][name] or ()) for name in _LISTS}}
    return OrdinaryTable(**found)


def read(connection: psycopg.Connection, schema: str, table: str) -> OrdinaryTable:
    """As `find`.

    Args:
        connection: to the shard.
        schema: the table's schema.
        table: its name.

    Raises:
        UnknownTable: there is no such table.
    """
    found = find(connection, schema, table)
    if found is None:
        raise errors.UnknownTable(
            f"there is no table {schema}.{table} in database {connection.info.dbname}",
            fix="check the name; names are case-sensitive here",
            table=f"{schema}.{table}",
        )
    return found
