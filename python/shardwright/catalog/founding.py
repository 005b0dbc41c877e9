"""Founding a cluster: an empty database becomes its catalog; an existing catalog and its shards are brought up to date."""

from __future__ import annotations

import psycopg

from shardwright import engines, errors
from shardwright.catalog import migrations, privileges, roster

_OLDEST = 15


def found(catalog: psycopg.Connection) -> dict[str, list[int]]:
    """Apply what is missing of the catalog's migrations, then of each shard's.

    Args:
        catalog: connection to the database that is, or is to be, the catalog.

    Returns:
        The numbers applied: under ``catalog``, and under ``shard NAME`` for each shard.

    Raises:
        UnfitServer: the server is too old, or the database holds something else.
        CatalogNewer: a schema was made by a newer program.
        CannotConnect, PasswordMissing, NotPrimary: a shard cannot be reached; the catalog was brought up to date.
    """
    major = catalog.info.server_version // 10000
    if major < _OLDEST:
        raise errors.UnfitServer(
            f"the catalog's server is PostgreSQL {major}, which is too old", fix=f"use PostgreSQL {_OLDEST} or newer"
        )
    with privileges.needed("the catalog"):
        applied = {"catalog": migrations.apply(catalog, "catalog")}
    for shard in roster.list_shards(catalog):
        what = f"shard {shard.name}"
        with engines.connect_shard(shard, "shardwright init") as connection, privileges.needed(what):
            applied[what] = migrations.apply(connection, "shard")
    return applied
