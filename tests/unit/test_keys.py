from __future__ import annotations

import array
import enum
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

import shardwright
from shardwright.errors import BadKey, BadOption, UnsupportedKeyType
from shardwright.routing.keys import check_key, parse_key, point_of
from shardwright.routing.shard_map import Keyspace

UUID = uuid.UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")


class Color(enum.IntEnum):
    RED = 7


@pytest.mark.parametrize(
    ("key", "key_type", "checked"),
    [
        (7, "int8", 7),
        (-(2**63), "int8", -(2**63)),
        (2**63 - 1, "int8", 2**63 - 1),
        (-32768, "int2", -32768),
        (2**31 - 1, "int4", 2**31 - 1),
        (np.int64(7), "int8", 7),
        (np.uint8(7), "int2", 7),
        (Color.RED, "int4", 7),
        ("é", "text", "é"),
        ("", "varchar", ""),
        (np.str_("a"), "text", "a"),
        (UUID, "uuid", UUID),
        (str(UUID), "uuid", UUID),
        (str(UUID).upper(), "uuid", UUID),
        (UUID.hex, "uuid", UUID),
        (b"\x00\xff", "bytea", b"\x00\xff"),
        (bytearray(b"ab"), "bytea", b"ab"),
        (memoryview(b"abcd")[::2], "bytea", b"ac"),
    ],
)
def test_good_keys(key: object, key_type: str, checked: object) -> None:
    found = check_key(key, key_type)
    assert found == checked
    assert type(found) is type(checked)
    assert shardwright.point(key, key_type) == shardwright.point(checked, key_type)
    assert shardwright.points([key], key_type) == [shardwright.point(checked, key_type)]


@pytest.mark.parametrize("key_type", ["int2", "int4", "int8", "text", "varchar", "uuid", "bytea"])
def test_null_is_no_key(key_type: str) -> None:
    for call in (check_key, shardwright.point):
        with pytest.raises(BadKey, match="NULL"):
            call(None, key_type)
    with pytest.raises(BadKey, match="NULL"):
        shardwright.points([None], key_type)


@pytest.mark.parametrize(
    ("key", "key_type"),
    [
        (True, "int8"),
        (np.bool_(True), "int8"),
        ("1", "int8"),
        (1.0, "int8"),
        (b"1", "int8"),
        (2**63, "int8"),
        (-(2**63) - 1, "int8"),
        (2**200, "int8"),
        (2**31, "int4"),
        (-32769, "int2"),
        (1, "text"),
        (b"a", "text"),
        ("a\x00b", "text"),
        ("\ud800", "varchar"),
        (1, "uuid"),
        (UUID.bytes, "uuid"),
        ("a0eebc99", "uuid"),
        ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1x", "uuid"),
        ("a0eebc999c0b-4ef8-bb6d-6bb9bd380a11-", "uuid"),
        ("+" + UUID.hex[1:], "uuid"),
        ("{" + str(UUID) + "}", "uuid"),
        ("é" * 16, "uuid"),
        ("a", "bytea"),
        ([1, 2], "bytea"),
        (array.array("q", [1]), "bytea"),
    ],
)
def test_bad_keys(key: object, key_type: str) -> None:
    for call in (check_key, shardwright.point):
        with pytest.raises(BadKey):
            call(key, key_type)
    good: dict[str, object] = {"uuid": UUID, "text": "a", "varchar": "a", "bytea": b"a"}
    with pytest.raises(BadKey, match="key number 2: "):
        shardwright.points([good.get(key_type, 1), good.get(key_type, 1), key], key_type)


@pytest.mark.parametrize("key_type", ["date", "numeric", "bpchar", "timestamptz", "int", "", "INT8", "float8"])
def test_unproven_types_are_refused(key_type: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: check_key(1, key_type),
        lambda: shardwright.point(1, key_type),
        lambda: shardwright.points([1], key_type),
        lambda: parse_key("1", key_type),
    ]
    for call in calls:
        with pytest.raises(UnsupportedKeyType):
            call()


@pytest.mark.parametrize("buckets", [0, 1, 3, -4, 131072, 2**70, 4096.0, "4096", None, True])
def test_bad_buckets_are_refused(buckets: Any) -> None:
    with pytest.raises(BadOption):
        shardwright.point(1, buckets=buckets)
    with pytest.raises(BadOption):
        shardwright.points([1], buckets=buckets)


NUMBERS = [0, 1, 2, 5, 100, 127]
EXPECTED = [shardwright.point(number) for number in NUMBERS]


@pytest.mark.parametrize(
    "keys",
    [
        NUMBERS,
        tuple(NUMBERS),
        dict.fromkeys(NUMBERS),
        (number for number in NUMBERS),
        *(array.array(code, NUMBERS) for code in "bBhHiIlLqQ"),
        *(np.array(NUMBERS, dtype) for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i8", ">i4", object)),
        np.repeat(np.array(NUMBERS), 3)[::3],
        np.array(NUMBERS[::-1])[::-1],
        memoryview(array.array("q", NUMBERS)),
        np.array([NUMBERS, NUMBERS]).T[:, 1],
    ],
    ids=lambda keys: f"{type(keys).__name__} {getattr(keys, 'typecode', getattr(keys, 'dtype', ''))}".strip(),
)
def test_many_keys(keys: Iterable[Any]) -> None:
    assert shardwright.points(keys) == EXPECTED


def test_no_keys() -> None:
    assert shardwright.points([]) == shardwright.points(np.array([], "i8")) == shardwright.points((), "text") == []


def test_many_texts() -> None:
    words = ["a", "", "é🦀", "x" * 100]
    expected = [shardwright.point(word, "text") for word in words]
    assert shardwright.points(words, "text") == expected
    assert shardwright.points(np.array(words), "text") == expected
    assert shardwright.points(iter(words), "varchar") == expected


def test_many_of_more_keys_than_buckets() -> None:
    assert shardwright.points(range(5000), buckets=16) == [shardwright.point(key, buckets=16) for key in range(5000)]


@pytest.mark.parametrize(
    "keys",
    [
        np.array([1.0, 2.0]),
        np.array([True, False]),
        np.array([1, 2**63], "u8"),
        np.array(["2024-02-29"], "M8[D]"),
        [1, 2, "3"],
    ],
    ids=repr,
)
def test_arrays_of_no_keys(keys: Iterable[Any]) -> None:
    with pytest.raises(BadKey):
        shardwright.points(keys)


def test_small_types_bound_arrays_too() -> None:
    assert shardwright.points(np.array([32767]), "int2") == [shardwright.point(32767, "int2")]
    with pytest.raises(BadKey, match="key number 1: "):
        shardwright.points(np.array([0, 32768]), "int2")


@pytest.mark.parametrize("keys", [1, None, "ab", b"ab", bytearray(b"ab"), np.array([[1, 2], [3, 4]]), np.array(1)])
def test_what_is_no_list_of_keys(keys: Any) -> None:
    for key_type in ("int8", "text", "bytea"):
        with pytest.raises((BadOption, BadKey)):
            shardwright.points(keys, key_type)


def test_errors_of_iterables_are_their_own() -> None:
    def keys() -> Iterable[int]:
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shardwright.points(keys())


def test_points_of_keyspaces() -> None:
    assert point_of(Keyspace(1, "u", "hash", "int8", 64), 7) == shardwright.point(7, buckets=64)
    line = Keyspace(2, "o", "range", "int4")
    assert point_of(line, -7) == -7
    with pytest.raises(BadKey):
        point_of(line, 2**31)
    with pytest.raises(BadKey):
        point_of(line, "7")


@pytest.mark.parametrize(
    ("text", "key_type", "key"),
    [
        ("7", "int8", 7),
        ("-7", "int2", -7),
        ("7", "text", "7"),
        (str(UUID), "uuid", UUID),
        (r"\x00ff", "bytea", b"\x00\xff"),
        (r"\x", "bytea", b""),
    ],
)
def test_typed_keys(text: str, key_type: str, key: object) -> None:
    assert parse_key(text, key_type) == key


@pytest.mark.parametrize(
    ("text", "key_type"),
    [
        ("x", "int8"),
        ("", "int8"),
        ("1.0", "int8"),
        ("1_000", "int8"),
        (" 1", "int8"),
        ("٣", "int8"),
        ("9" * 20, "int8"),
        ("9" * 9999, "int8"),
        ("40000", "int2"),
        ("x", "uuid"),
        ("00ff", "bytea"),
        (r"\x0", "bytea"),
        (r"\x0g", "bytea"),
    ],
)
def test_typed_keys_that_are_none(text: str, key_type: str) -> None:
    with pytest.raises(BadKey):
        parse_key(text, key_type)
