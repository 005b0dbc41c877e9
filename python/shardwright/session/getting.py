"""Many objects by their primary keys, with one statement for up to a hundred of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapper, Session, attributes

from shardwright import errors

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster
    from shardwright.session.session import ShardSession

#: How many keys one statement names at most.
AT_ONCE = 100

#: A primary key as a tuple, in the order of `Mapper.primary_key`.
Identity = tuple[Any, ...]


def identities_of(mapper: Mapper[Any], keys: Iterable[Any]) -> list[Identity]:
    """Keys as tuples.

    Args:
        mapper: whose.
        keys: a value each, or a tuple where the primary key has several columns.

    Raises:
        BadKey: a key has too few or too many values, or none.
    """
    width = len(mapper.primary_key)
    found = [key if isinstance(key, tuple) else (key,) for key in keys]
    for key in found:
        if len(key) != width or None in key:
            names = ", ".join(column.name for column in mapper.primary_key)
            raise errors.BadKey(
                f"{key!r} is no primary key of {mapper.class_.__name__}",
                fix=f"give values for {names}, none of them None",
            )
    return found


def deal_out(cluster: Cluster, mapper: Mapper[Any], found: Sequence[Identity]) -> list[list[Identity]]:
    """Which keys one statement each asks for: those of one shard, `AT_ONCE` at most.

    Args:
        cluster: knows the map as it is now.
        mapper: whose keys they are.
        found: the keys, each once.

    Raises:
        BadKey: a shard key is no key of its keyspace.
    """
    mapped = cluster.known.mapped_key(mapper)
    shards: dict[str, list[Identity]] = {}
    if mapped.declaration.kind == "sharded" and mapped.declaration.keyspace is not None:
        keyspace, shard_map = mapped.declaration.keyspace, cluster.map
        owners = {one.id: one.shard for one in shard_map.ranges_of(keyspace)}
        ids = shard_map.route_many(keyspace, [mapped.bound(key[mapped.position]) for key in found])
        for key, number in zip(found, ids, strict=True):
            shards.setdefault(owners[number], []).append(key)
    else:
        shards[""] = list(found)
    return [keys[at : at + AT_ONCE] for _, keys in sorted(shards.items()) for at in range(0, len(keys), AT_ONCE)]


def get_many(session: ShardSession, entity: Any, keys: Iterable[Any], options: Sequence[Any] = ()) -> list[Any]:
    """See `ShardSession.get_many`."""
    mapper = sa.inspect(entity).mapper
    asked = identities_of(mapper, keys)
    here = {key: _held(session, mapper, key) for key in dict.fromkeys(asked)}
    missing = [key for key, held in here.items() if held is None]
    for part in deal_out(session.cluster, mapper, missing) if missing else ():
        for one in session.scalars(_statement(mapper, entity, part).options(*options)).unique():
            here[tuple(mapper.primary_key_from_instance(one))] = one
    return [here[key] for key in asked]


def _held(session: Session, mapper: Mapper[Any], key: Identity) -> Any:
    """The object that the session has already, unless it must be read again."""
    held = session.identity_map.get(mapper.identity_key_from_primary_key(key))
    if held is None or attributes.instance_state(held).expired or not isinstance(held, mapper.class_):
        return None
    return held


def _statement(mapper: Mapper[Any], entity: Any, keys: Sequence[Identity]) -> sa.Select[Any]:
    columns = mapper.primary_key
    if len(columns) > 1:
        return sa.select(entity).where(sa.tuple_(*columns).in_(keys))
    listed = sa.literal([key for (key,) in keys], sa.ARRAY(columns[0].type))
    return sa.select(entity).where(columns[0] == sa.any_(listed))
