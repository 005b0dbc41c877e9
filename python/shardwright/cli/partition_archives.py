"""``shardwright partition archives``: what was archived of a table."""

from __future__ import annotations

from shardwright.catalog import archives as archived
from shardwright.catalog import tables
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Table


def archives(table: str, /, *, common: Common = DEFAULTS) -> Answer:
    """List the windows of a table that were archived, by shard.

    Args:
        table: table or schema.table.
    """
    with common.connect() as catalog:
        known = tables.get_table(catalog, *tables.split_name(table))
        found = archived.list_archives(catalog, known.id)
    rows = [
        (
            one.name,
            one.shard,
            one.rows,
            one.manifest["bytes"],
            f"{one.place.rstrip('/')}/{one.manifest['file']}",
            one.verified_at.isoformat(timespec="seconds"),
            one.restored_at.isoformat(timespec="seconds") if one.restored_at else None,
        )
        for one in found
    ]
    value = [
        {
            "window": one.name,
            "shard": one.shard,
            "from": one.manifest["from"],
            "to": one.manifest["to"],
            "rows": one.rows,
            "bytes": one.manifest["bytes"],
            "place": one.place,
            "file": one.manifest["file"],
            "sha256": one.manifest["sha256"],
            "verified_at": one.verified_at.isoformat(),
            "restored_at": one.restored_at.isoformat() if one.restored_at else None,
        }
        for one in found
    ]
    return Answer(
        {"table": known.name, "archives": value},
        [
            Table(
                ("window", "shard", "rows", "bytes", "file", "verified", "restored"), rows, empty="nothing was archived"
            )
        ],
        next_steps=[f"shardwright partition restore {table} {found[-1].name}"] if found else [],
    )
