"""The statements by which an ordinary table becomes the first partition of a partitioned one of its name. Pure.

They are run in one transaction that holds ACCESS EXCLUSIVE on the table; none of them looks at a row. Indexes of the
new parent are made ON ONLY it and the old table's own are attached to them, which fails where they do not fit, and never
builds one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from shardwright.partition.names import leaf_name
from shardwright.partition.ordinary import Facts, OrdinaryTable
from shardwright.routing.predicates import quote_identifier as ident
from shardwright.routing.predicates import quote_literal as literal

#: Of the CHECK from which PostgreSQL sees, without a scan, that the old table's rows lie before the cut.
CHECK_NAME = "shardwright_convert"


def qualified(schema: str, name: str) -> str:
    """A name with its schema, quoted.

    Args:
        schema: its schema.
        name: the name.
    """
    return f"{ident(schema)}.{ident(name)}"


@dataclass(frozen=True)
class Conversion:
    """What an ordinary table is turned into. Names and literals are the same on every shard."""

    #: Column that rows are partitioned by.
    column: str
    #: The old table's name as a partition.
    leaf: str
    #: SQL of the cut, as it stands in TO (..).
    cut: str
    #: Body of the CHECK that proves that all rows lie before the cut.
    check: str
    #: Whether the CHECK stays: of a key that has more to say than its bounds.
    keep_check: bool = False
    #: Partitions after the cut, name and SQL of FROM (..) and TO (..): a guard, or windows.
    after: tuple[tuple[str, str, str], ...] = ()
    #: A unique index that becomes the primary key in place of the present one; None: that one stays.
    new_key: str | None = None
    #: New names of the old table's indexes and statistics objects, whose old ones the parent's get.
    renamed: Mapping[str, str] = field(default_factory=dict)


def new_names(table: OrdinaryTable, taken: Iterable[str]) -> dict[str, str]:
    """Names for the old table's indexes and statistics objects.

    Args:
        table: the old table.
        taken: names that are not free in its schema.
    """
    used = set(taken)
    found: dict[str, str] = {}
    for one in (*table.indexes, *table.statistics):
        found[one["name"]] = leaf_name(one["name"], "_whole", used)
        used.add(found[one["name"]])
    return found


def locks(table: OrdinaryTable) -> list[str]:
    """The LOCK statements of the transaction: the table first, then those that point to it.

    Args:
        table: the old table.
    """
    names = dict.fromkeys([(table.schema, table.table), *((one["schema"], one["table"]) for one in table.inbound)])
    return [f"LOCK TABLE ONLY {qualified(*name)} IN ACCESS EXCLUSIVE MODE" for name in names]


def statements(table: OrdinaryTable, to: Conversion) -> list[str]:
    """All statements of the transaction, after its locks.

    Args:
        table: the old table.
        to: what it is turned into.
    """
    return [*before_attach(table, to), *attach(table, to), *after_attach(table, to)]


def before_attach(table: OrdinaryTable, to: Conversion) -> list[str]:
    """From the old table to a new parent beside it, with everything that must be there before the old one is attached.

    Args:
        table: the old table.
        to: what it is turned into.
    """
    parent, leaf = qualified(table.schema, table.table), qualified(table.schema, to.leaf)
    found = [
        f"ALTER TABLE {qualified(k['schema'], k['table'])} DROP CONSTRAINT {ident(k['name'])}" for k in table.inbound
    ]
    found += [f"DROP TRIGGER {ident(one['name'])} ON {parent}" for one in table.triggers]
    if to.new_key is not None:
        primary = next(one for one in table.indexes if one["primary"])
        name = ident(primary["constraint"])
        found.append(
            f"ALTER TABLE {parent} DROP CONSTRAINT {name}, "
            f"ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {ident(to.new_key)}"
        )
    found.append(f"ALTER TABLE {parent} RENAME TO {ident(to.leaf)}")
    for one in table.indexes:
        if one["name"] != to.new_key:
            found.append(
                f"ALTER INDEX {qualified(table.schema, one['name'])} RENAME TO {ident(to.renamed[one['name']])}"
            )
    for one in table.statistics:
        found.append(
            f"ALTER STATISTICS {qualified(one['schema'], one['name'])} RENAME TO {ident(to.renamed[one['name']])}"
        )
    tablespace = f" TABLESPACE {ident(table.tablespace)}" if table.tablespace else ""
    found.append(
        f"CREATE TABLE {parent} (LIKE {leaf} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING STORAGE "
        f"INCLUDING COMPRESSION INCLUDING COMMENTS) PARTITION BY RANGE ({ident(to.column)}){tablespace}"
    )
    found.append(f"ALTER TABLE {parent} OWNER TO {ident(table.owner)}")
    for one in table.constraints:
        if one["type"] in ("c", "f") and one["name"] != CHECK_NAME:
            found.append(f"ALTER TABLE {parent} ADD CONSTRAINT {ident(one['name'])} {one['definition']}")
            found += _comment(f"CONSTRAINT {ident(one['name'])} ON {parent}", one)
    found += _sequences(table, to)
    for column in table.columns:
        found += _column(parent, column)
    found += _comment(f"TABLE {parent}", {"comment": table.comment})
    found += _security(table, parent)
    for one in table.triggers:
        if not one["ours"]:
            found.append(one["definition"])
            if state := {"D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}.get(one["enabled"]):
                found.append(f"ALTER TABLE ONLY {parent} {state} TRIGGER {ident(one['name'])}")
            found += _comment(f"TRIGGER {ident(one['name'])} ON {parent}", one)
    return found


def attach(table: OrdinaryTable, to: Conversion) -> list[str]:
    """The old table becomes the parent's first partition, and its indexes partitions of the parent's.

    Args:
        table: the old table, as it was before.
        to: what it is turned into.
    """
    parent, leaf = qualified(table.schema, table.table), qualified(table.schema, to.leaf)
    found = [f"ALTER TABLE {parent} ATTACH PARTITION {leaf} FOR VALUES FROM (MINVALUE) TO ({to.cut})"]
    if not to.keep_check:
        found.append(f"ALTER TABLE {leaf} DROP CONSTRAINT {ident(CHECK_NAME)}")
    for index in _kept(table, to):
        found += _index(table, to, index)
    identity = {"f": "FULL", "n": "NOTHING"}.get(table.replica_identity)
    if table.replica_identity == "i" and table.replica_index is not None:
        identity = f"USING INDEX {ident(table.replica_index)}"
    if identity:
        found.append(f"ALTER TABLE ONLY {parent} REPLICA IDENTITY {identity}")
    return found


def after_attach(table: OrdinaryTable, to: Conversion) -> list[str]:
    """What needs the parent's keys, or names the parent: partitions after the cut, views, keys that point here, streams.

    Args:
        table: the old table, as it was before.
        to: what it is turned into.
    """
    parent, leaf = qualified(table.schema, table.table), qualified(table.schema, to.leaf)
    found: list[str] = []
    for one in table.statistics:
        name = qualified(one["schema"], one["name"])
        found += [one["definition"], f"ALTER STATISTICS {name} OWNER TO {ident(one['owner'])}"]
        if one["target"] is not None:
            found.append(f"ALTER STATISTICS {name} SET STATISTICS {one['target']}")
        found += _comment(f"STATISTICS {name}", one)
    for name, lower, upper in to.after:
        made = qualified(table.schema, name)
        found.append(f"CREATE TABLE {made} PARTITION OF {parent} FOR VALUES FROM ({lower}) TO ({upper})")
        found.append(f"ALTER TABLE {made} OWNER TO {ident(table.owner)}")
        found += [owner_only(made), identity_like(parent, made)]
    for one in table.inbound:
        there, definition = qualified(one["schema"], one["table"]), without_not_valid(one["definition"])
        found.append(f"ALTER TABLE {there} ADD CONSTRAINT {ident(one['name'])} {definition} NOT VALID")
        found += _comment(f"CONSTRAINT {ident(one['name'])} ON {there}", one)
    for one in table.views:
        options = f" WITH ({', '.join(one['options'])})" if one["options"] else ""
        view = qualified(one["schema"], one["name"])
        found.append(f"CREATE OR REPLACE VIEW {view}{options} AS {one['definition'].rstrip().rstrip(';')}")
    found += [one["definition"].rstrip().rstrip(";") for one in table.functions]
    for one in table.publications:
        if one["listed"]:
            columns = f" ({', '.join(map(ident, one['columns']))})" if one["columns"] else ""
            where = f" WHERE ({one['where']})" if one["where"] else ""
            name = ident(one["name"])
            found.append(f"ALTER PUBLICATION {name} DROP TABLE {leaf}")
            found.append(f"ALTER PUBLICATION {name} ADD TABLE {parent}{columns}{where}")
    return found


def owner_only(leaf: str) -> str:
    """A statement that takes off a partition what default privileges gave away: it is used through its parent.

    Args:
        leaf: the partition, qualified.
    """
    return f"DO {literal(_OWNER_ONLY.format(name=literal(leaf), table=literal(f'TABLE {leaf}')))}"


_OWNER_ONLY = (
    "DECLARE one text; BEGIN FOR one IN SELECT DISTINCT CASE e.grantee WHEN 0 THEN 'PUBLIC' "
    "ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(e.grantee)) END FROM pg_catalog.pg_class c, "
    "pg_catalog.aclexplode(c.relacl) e WHERE c.oid = {name}::pg_catalog.regclass AND e.grantee <> c.relowner "
    "LOOP EXECUTE 'REVOKE ALL ON ' || {table} || ' FROM ' || one; END LOOP; END"
)


def identity_like(parent: str, leaf: str) -> str:
    """A statement that gives a partition its parent's replica identity: PostgreSQL does not.

    Args:
        parent: the partitioned table, qualified.
        leaf: one of its partitions, qualified, with its indexes.
    """
    return f"DO {literal(_IDENTITY.format(parent=literal(parent), leaf=literal(leaf)))}"


_IDENTITY = (
    "DECLARE text text; BEGIN SELECT pg_catalog.format('ALTER TABLE %s REPLICA IDENTITY %s', {leaf}::text, "
    "CASE p.relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' "
    "WHEN 'i' THEN pg_catalog.format('USING INDEX %I', l.relname) ELSE 'DEFAULT' END) INTO text "
    "FROM pg_catalog.pg_class p LEFT JOIN (pg_catalog.pg_index i JOIN pg_catalog.pg_inherits h "
    "ON h.inhparent = i.indexrelid AND i.indisreplident JOIN pg_catalog.pg_index li ON li.indexrelid = h.inhrelid "
    "AND li.indrelid = {leaf}::pg_catalog.regclass JOIN pg_catalog.pg_class l ON l.oid = li.indexrelid) "
    "ON i.indrelid = p.oid WHERE p.oid = {parent}::pg_catalog.regclass; EXECUTE text; END"
)


def validations(table: OrdinaryTable) -> list[tuple[str, str, str]]:
    """Schema, table and name of the foreign keys that point here and were valid before: they are to be again.

    Args:
        table: the old table, as it was before.
    """
    return [(one["schema"], one["table"], one["name"]) for one in table.inbound if one["validated"]]


def without_not_valid(definition: str) -> str:
    """A foreign key's definition without a NOT VALID at its end."""
    return re.sub(r"\s+NOT VALID$", "", definition)


def _kept(table: OrdinaryTable, to: Conversion) -> Iterator[Facts]:
    """The indexes that the parent gets; the new key stands for the one whose name it takes."""
    for one in table.indexes:
        if one["name"] != to.new_key and one["valid"]:
            yield one


def _index(table: OrdinaryTable, to: Conversion, index: Facts) -> Iterator[str]:
    parent = qualified(table.schema, table.table)
    name, own = qualified(table.schema, index["name"]), qualified(table.schema, to.renamed[index["name"]])
    if index["tablespace"]:
        yield f"SET LOCAL default_tablespace = {literal(index['tablespace'])}"
    if index["constraint"] is not None:
        constraint = next(one for one in table.constraints if one["name"] == index["constraint"])
        definition = constraint["definition"]
        if index["primary"] and to.new_key is not None:
            definition = f"PRIMARY KEY ({', '.join(map(ident, (*index['columns'], to.column)))})"
        yield f"ALTER TABLE ONLY {parent} ADD CONSTRAINT {ident(index['constraint'])} {definition}"
        yield from _comment(f"CONSTRAINT {ident(index['constraint'])} ON {parent}", constraint)
    else:
        unique = "UNIQUE " if index["unique"] else ""
        yield f"CREATE {unique}INDEX {ident(index['name'])} ON ONLY {parent} {index['method']}"
    if index["tablespace"]:
        yield "SET LOCAL default_tablespace = ''"
    yield f"ALTER INDEX {name} ATTACH PARTITION {own}"
    yield from _comment(f"INDEX {name}", index)


def _sequences(table: OrdinaryTable, to: Conversion) -> Iterator[str]:
    parent, leaf = qualified(table.schema, table.table), qualified(table.schema, to.leaf)
    for one in table.sequences:
        name, column = qualified(one["schema"], one["name"]), ident(one["column"])
        if one["bond"] == "a":
            yield f"ALTER SEQUENCE {name} OWNED BY {parent}.{column}"
            continue
        # Until 17 a partition keeps an identity of its own, from 17 on it may not have one: the sequence is made anew
        # for the parent and goes on where the old one stands.
        interim = qualified(one["schema"], leaf_name(one["name"], "_next"))
        always = next(c for c in table.columns if c["name"] == one["column"])["identity"] == "a"
        yield (
            f"ALTER TABLE {parent} ALTER COLUMN {column} ADD GENERATED {'ALWAYS' if always else 'BY DEFAULT'} AS IDENTITY "
            f"(SEQUENCE NAME {interim} START WITH {one['start']} INCREMENT BY {one['increment']} "
            f"MINVALUE {one['minimum']} MAXVALUE {one['maximum']} CACHE {one['cache']} "
            f"{'CYCLE' if one['cycle'] else 'NO CYCLE'})"
        )
        yield f"SELECT setval({literal(interim)}, last_value, is_called) FROM {name}"
        yield f"ALTER TABLE {leaf} ALTER COLUMN {column} DROP IDENTITY"
        yield f"ALTER SEQUENCE {interim} RENAME TO {ident(one['name'])}"
        yield from _granted(f"SEQUENCE {name}", one["grants"] or (), table.owner)
        yield from _comment(f"SEQUENCE {name}", one)


def _column(parent: str, column: Facts) -> Iterator[str]:
    alter = f"ALTER TABLE {parent} ALTER COLUMN {ident(column['name'])}"
    if column["statistics"] is not None:
        yield f"{alter} SET STATISTICS {column['statistics']}"
    if column["options"]:
        yield f"{alter} SET ({', '.join(column['options'])})"


def _security(table: OrdinaryTable, parent: str) -> Iterator[str]:
    yield from _granted(f"TABLE {parent}", table.grants, table.owner)
    if table.row_security:
        yield f"ALTER TABLE {parent} ENABLE ROW LEVEL SECURITY"
    if table.force_row_security:
        yield f"ALTER TABLE {parent} FORCE ROW LEVEL SECURITY"
    commands = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE", "*": "ALL"}
    for one in table.policies:
        roles = ", ".join("PUBLIC" if role is None else ident(role) for role in one["roles"])
        using = f" USING ({one['using']})" if one["using"] else ""
        check = f" WITH CHECK ({one['check']})" if one["check"] else ""
        kind = "" if one["permissive"] else " AS RESTRICTIVE"
        yield f"CREATE POLICY {ident(one['name'])} ON {parent}{kind} FOR {commands[one['command']]} TO {roles}{using}{check}"
        yield from _comment(f"POLICY {ident(one['name'])} ON {parent}", one)


def _granted(what: str, grants: Sequence[Facts], owner: str) -> Iterator[str]:
    """The same privileges, given by the same roles; without what ALTER DEFAULT PRIVILEGES gave."""
    yield _revoke_all(what)
    for grantor in sorted({one["grantor"] for one in grants}, key=lambda name: (name != owner, name)):
        if grantor != owner:
            yield f"SET LOCAL ROLE {ident(grantor)}"
        for one in grants:
            if one["grantor"] != grantor:
                continue
            column = f" ({ident(one['column'])})" if one.get("column") is not None else ""
            role = "PUBLIC" if one["role"] is None else ident(one["role"])
            option = " WITH GRANT OPTION" if one["grantable"] and one["role"] not in (None, owner) else ""
            yield f"GRANT {one['privilege']}{column} ON {what} TO {role}{option}"
        if grantor != owner:
            yield "RESET ROLE"


def _revoke_all(what: str) -> str:
    name = what.partition(" ")[2]
    return f"DO {literal(_REVOKE.format(revoke=literal(f'REVOKE ALL ON {what} FROM '), name=literal(name)))}"


_REVOKE = (
    "DECLARE one text; BEGIN FOR one IN SELECT DISTINCT CASE e.grantee WHEN 0 THEN 'PUBLIC' "
    "ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(e.grantee)) END FROM pg_catalog.pg_class c, "
    "pg_catalog.aclexplode(coalesce(c.relacl, pg_catalog.acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", "
    "c.relowner))) e WHERE c.oid = {name}::pg_catalog.regclass "
    "LOOP EXECUTE {revoke} || one; END LOOP; END"
)


def _comment(what: str, one: Facts) -> Iterator[str]:
    if one["comment"] is not None:
        yield f"COMMENT ON {what} IS {literal(one['comment'])}"
