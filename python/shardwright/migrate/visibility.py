"""What Alembic's autogenerate may see of a shard: no partition, no detached table, nothing of ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from shardwright.migrate import facts
from shardwright.migrate.facts import Facts

_log = logging.getLogger(__name__)

_SCHEMA = "shardwright"
_PREFIX = "~shardwright_"


def hooks(
    connection: sa.Connection | None,
    *,
    include_name: Callable[..., bool] | None = None,
    include_object: Callable[..., bool] | None = None,
) -> dict[str, Any]:
    """Arguments of ``context.configure`` that keep autogenerate off what shardwright manages.

    ::

        context.configure(connection=connection, target_metadata=metadata, **hooks(connection))

    The database is asked when autogenerate asks for the first time, and not by an upgrade.

    Args:
        connection: to a shard, or to any database with partitioned tables; None in offline mode.
        include_name: a filter of your own, asked after ours.
        include_object: a filter of your own, asked after ours.

    Returns:
        ``include_name`` and ``include_object``.
    """
    known: list[Facts] = []

    def found() -> Facts | None:
        if not known and connection is not None:
            known.append(facts.read(connection))
        return known[0] if known else None

    def name_filter(name: str | None, kind: str, parents: Mapping[str, Any]) -> bool:
        # The default schema has no name, nor has a constraint that nobody gave one.
        if name is not None and not _name_is_visible(name, kind, parents, found):
            return False
        return include_name is None or include_name(name, kind, parents)

    def object_filter(item: Any, name: str | None, kind: str, reflected: bool, compared: Any) -> bool:
        if not _object_is_visible(item, name, kind, reflected, compared, found):
            return False
        return include_object is None or include_object(item, name, kind, reflected, compared)

    return {"include_name": name_filter, "include_object": object_filter}


def _name_is_visible(name: str, kind: str, parents: Mapping[str, Any], found: Callable[[], Facts | None]) -> bool:
    if name.startswith(_PREFIX) or (kind == "schema" and name == _SCHEMA) or parents.get("schema_name") == _SCHEMA:
        return False
    if kind not in ("table", "foreign_key_constraint"):
        return True
    seen = found()
    if seen is None:
        return True
    if kind == "table":
        return seen.name(parents.get("schema_name"), name) not in seen.hidden
    return (*seen.name(parents.get("schema_name"), str(parents.get("table_name"))), name) not in seen.clones


def _object_is_visible(
    item: Any, name: str | None, kind: str, reflected: bool, compared: Any, found: Callable[[], Facts | None]
) -> bool:
    if (name or "").startswith(_PREFIX) or getattr(item, "schema", None) == _SCHEMA:
        return False
    if not reflected or compared is not None or kind not in ("table", "foreign_key_constraint"):
        return True
    seen = found()
    if seen is None:
        return True
    if kind == "table":
        place = seen.name(item.schema, str(name))
        if place in seen.managed:
            _log.warning("table %s.%s is managed by shardwright and in no model: left alone", *place)
        return place not in seen.hidden | seen.managed
    # Its text and not its table: that one may be known by a placeholder only.
    for element in item.elements:
        schema, _, table = str(element.target_fullname).rpartition(".")[0].rpartition(".")
        if seen.name(schema or None, table) in seen.hidden:
            return False
    return True
