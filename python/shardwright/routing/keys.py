"""Shard keys: which values are one, and which point each of them has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from shardwright import core
from shardwright.errors import BadKey

if TYPE_CHECKING:
    from shardwright.routing.shard_map import Keyspace


def check_key(key: object, key_type: str) -> Any:
    """Refuse what is no key of a type; nothing is converted from another type.

    Args:
        key: int (or what has `__index__`, such as numpy's integers) for int2, int4 and int8; str for text and varchar;
            uuid.UUID, or its text, for uuid; bytes, bytearray or memoryview for bytea.
        key_type: the type's PostgreSQL name.

    Returns:
        The key as int, str, uuid.UUID or bytes.

    Raises:
        BadKey: it is None, a bool, of another type, or outside the range of its type.
        UnsupportedKeyType: the type cannot be a shard key.
    """
    return core.check_key(key, key_type)


def point_of(keyspace: Keyspace, key: object) -> int:
    """The point of a key: its bucket in a hash keyspace, the key itself in a range keyspace.

    Raises:
        BadKey: the key is no key of the keyspace's type.
    """
    if keyspace.buckets is None:
        found: int = core.check_key(key, keyspace.key_type)
        return found
    return core.point(key, keyspace.key_type, keyspace.buckets)


def point(key: object, type: str = "int8", buckets: int = 4096) -> int:
    """The bucket of a key: the remainder that PostgreSQL's own hash partitioning gives it with modulus `buckets`.

    Args:
        key: a value of the type; see `check_key` for what is accepted.
        type: int2, int4, int8, text, varchar, uuid or bytea.
        buckets: a power of two from 2 to 65536.

    Returns:
        A number from 0 to buckets - 1; the same as `satisfies_hash_partition` has it on any server.

    Raises:
        BadKey: the key is None, of another type, or outside the range of its type.
        UnsupportedKeyType: the type is not proven to be hashed as the server does it.
        BadOption: buckets is no power of two from 2 to 65536.
    """
    return core.point(key, type, buckets)


def points(keys: Iterable[Any], type: str = "int8", buckets: int = 4096) -> list[int]:
    """The buckets of many keys, in their order. Other threads run while they are hashed.

    Args:
        keys: a list, a numpy array or another buffer of integers (array.array, memoryview), or any iterable of keys.
        type: int2, int4, int8, text, varchar, uuid or bytea.
        buckets: a power of two from 2 to 65536.

    Returns:
        One bucket a key.

    Raises:
        BadKey: one of the keys is bad; the message says which.
        UnsupportedKeyType: the type is not proven to be hashed as the server does it.
        BadOption: buckets is no power of two from 2 to 65536, or keys is one key.
    """
    return core.points(keys, type, buckets)


def parse_key(text: str, key_type: str) -> Any:
    r"""Read a key that somebody typed: digits for integers, hexadecimal digits for uuid, `\x00ff` for bytea.

    Args:
        text: the key as text.
        key_type: the type's PostgreSQL name.

    Returns:
        The key as int, str, uuid.UUID or bytes.

    Raises:
        BadKey: the text is no value of the type.
        UnsupportedKeyType: the type cannot be a shard key.
    """
    if key_type in ("int2", "int4", "int8"):
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
            raise BadKey(f"{text!r} is no integer")
        return check_key(int(text), key_type)
    if key_type == "bytea":
        if not re.fullmatch(r"\\x([0-9a-fA-F]{2})*", text):
            raise BadKey(f"{text!r} is no bytea", fix=r"write it in hexadecimal digits: \x00ff")
        return bytes.fromhex(text[2:])
    return check_key(text, key_type)
