"""Three small tables for a workload on any cluster with a keyspace ``users`` of int8 keys, for tests of operations."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import BigInteger, MetaData
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shardwright import engines
from shardwright.catalog import maps, roster
from shardwright.catalog.models import register
from shardwright.routing.tables import sharded_by
from shardwright.testing.spec import CounterTable, ListTable, RowTable, Spec

KEYSPACE = "users"


class Base(DeclarativeBase):
    """The sample's models."""

    metadata = MetaData()


class Journal(Base):
    """Lists that are only appended to."""

    __tablename__ = "journal"
    __table_args__ = ({"info": sharded_by("user_id", keyspace=KEYSPACE)},)

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    page: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    entries: Mapped[list[int]] = mapped_column(ARRAY(BigInteger))


class Visit(Base):
    """Counters."""

    __tablename__ = "visits"
    __table_args__ = ({"info": sharded_by("user_id", keyspace=KEYSPACE)},)

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    times: Mapped[int] = mapped_column(BigInteger)


class Ticket(Base):
    """Rows that come and go."""

    __tablename__ = "tickets"
    __table_args__ = ({"info": sharded_by("user_id", keyspace=KEYSPACE)},)

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


def install(
    catalog: psycopg.Connection[Any],
    catalog_dsn: str,
    dsns: Mapping[str, str],
    directory: Path,
    *,
    users: int = 200,
    seed: int = 1,
    **more: Any,
) -> Spec:
    """Register the sample's tables, fill in the counters, and say what a workload shall do with them.

    Args:
        catalog: connection to the catalog of a cluster with the keyspace ``users``.
        catalog_dsn: the same as a DSN, for the workload's processes.
        dsns: shard -> DSN of all shards, those that will join later too, for the clients without the library.
        directory: for the histories.
        users: how many shard keys.
        seed: of the workload's choices.
        more: other attributes of the spec.

    Returns:
        The spec. Its direct client writes to the first shard.
    """
    register(catalog, Base.metadata)
    shard_map = maps.load_map(catalog)
    keys = random.Random(seed).sample(range(1, 1_000_000), users)
    mine: dict[str, list[int]] = defaultdict(list)
    for key in keys:
        mine[shard_map.route(KEYSPACE, key).shard].append(key)
    for shard in roster.list_shards(catalog):
        with engines.connect_shard(shard, "shardwright sample") as connection:
            connection.execute(
                "INSERT INTO public.visits (user_id, id, times) SELECT k, 1, 0 FROM unnest(%s::int8[]) k",
                (mine[shard.name],),
            )
    first = min(mine)
    return Spec(
        catalog=catalog_dsn,
        base="shardwright.testing.sample:Base",
        keyspace=KEYSPACE,
        lists=ListTable("journal", "user_id", "page", "entries"),
        rows=RowTable("tickets", "user_id", "id"),
        counters=CounterTable("visits", "user_id", "id", "times"),
        keys=keys,
        counted=[(key, 1) for key in keys],
        counts=["visits", "tickets"],
        direct=dict(dsns),
        direct_shard=first,
        direct_keys=mine[first],
        directory=str(directory),
        seed=seed,
        **more,
    )
