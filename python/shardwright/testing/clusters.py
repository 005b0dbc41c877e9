"""From running servers to a cluster that is ready for tables: catalog, shards and a keyspace."""

from __future__ import annotations

from collections.abc import Mapping

from shardwright import engines
from shardwright.catalog import keyspaces, migrations, shards


def make_ready(catalog: str, dsns: Mapping[str, str], keyspace: str = "users") -> None:
    """Initialise a catalog, add shards, and spread one hash keyspace of int8 keys over them evenly.

    Args:
        catalog: DSN of an empty database.
        dsns: the shards' DSNs by name, empty databases too.
        keyspace: the keyspace's name; none is made where it is empty.
    """
    with engines.connect_catalog(catalog) as connection:
        migrations.apply(connection, "catalog")
        for name, dsn in dsns.items():
            shards.add_shard(connection, name, dsn)
        if keyspace:
            keyspaces.create_keyspace(connection, keyspace, buckets=4096, shards=list(dsns))
