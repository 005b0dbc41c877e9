"""``shardwright route``: which shard a key lives on, from the catalog or offline from a saved map."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from cyclopts import App, Parameter

from shardwright import errors
from shardwright.catalog import maps
from shardwright.cli.app import DEFAULTS, Answer, Common
from shardwright.cli.output import Table
from shardwright.routing import keys as routing_keys
from shardwright.routing.shard_map import Keyspace, ShardMap

app = App(name="route", help="Tell which shard a key lives on.")

#: Bytes of a stream that are routed together at most.
_CHUNK = 1 << 20


@app.default
def route(
    keyspace: str,
    /,
    *keys: str,
    map_file: Annotated[Path | None, Parameter(name="--map")] = None,
    save: Path | None = None,
    stdin: Annotated[bool, Parameter(negative=())] = False,
    common: Common = DEFAULTS,
) -> Answer | int:
    """Tell which shard keys live on.

    Args:
        keyspace: the keys' keyspace.
        keys: the keys; a uuid in hexadecimal digits, a bytea as \\x00ff. Put -- before negative numbers.
        map_file: route offline by a map that was saved, without a catalog.
        save: write the map to this file, for --map.
        stdin: route the keys that come on standard input, one a line; the answers are one a line too.
    """
    shard_map = _read(map_file) if map_file is not None else _load(common)
    found = shard_map.keyspace(keyspace)
    if save is not None:
        _write(save, shard_map)
    if stdin:
        if keys:
            raise errors.BadOption("keys were given twice: as arguments and on standard input", fix="drop one of them")
        _stream(shard_map, found, common)
        return 0
    if not keys and save is None:
        raise errors.BadOption("no key was given", fix=f"shardwright route {keyspace} KEY..., or --stdin")
    routes = [shard_map.route(keyspace, routing_keys.parse_key(text, found.key_type)) for text in keys]
    value = [
        {
            "keyspace": one.keyspace,
            "key": one.key if isinstance(one.key, int) else text,
            "point": one.point,
            "range": one.range_id,
            "shard": one.shard,
            "map_version": one.map_version,
        }
        for text, one in zip(keys, routes, strict=True)
    ]
    rows = [(text, one.point, one.range_id, one.shard) for text, one in zip(keys, routes, strict=True)]
    return Answer(
        {"map_version": shard_map.version, "routes": value},
        [Table(("key", "point", "range", "shard"), rows)]
        if rows
        else [f"map version {shard_map.version} is in {save}"],
        next_steps=[],
    )


def _load(common: Common) -> ShardMap:
    with common.connect() as catalog:
        return maps.load_map(catalog)


def _read(path: Path) -> ShardMap:
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise errors.BadOption(
            f"cannot read the map {path}: {reason}", fix="shardwright route KEYSPACE --save FILE"
        ) from error
    except ValueError as error:
        raise errors.BadOption(
            f"{path} is no saved map: {error}", fix="shardwright route KEYSPACE --save FILE"
        ) from error
    return ShardMap.from_json(stored)


def _write(path: Path, shard_map: ShardMap) -> None:
    try:
        path.write_text(json.dumps(shard_map.to_json()) + "\n", encoding="utf-8")
    except OSError as error:
        raise errors.BadOption(
            f"cannot write {path}: {error.strerror}", fix="give --save a file that can be written"
        ) from error


def _stream(shard_map: ShardMap, keyspace: Keyspace, common: Common) -> None:
    """Route standard input as it comes; memory does not grow with it."""
    shards = {one.id: one.shard for one in shard_map.ranges_of(keyspace.name)}
    done = 0
    for lines in _batches(sys.stdin.buffer):
        texts, parsed = [], []
        for number, line in enumerate(lines, done + 1):
            text, key = _key(line, keyspace, number)
            texts.append(text)
            parsed.append(key)
        ids = shard_map.route_many(keyspace.name, parsed)
        points = (
            parsed if keyspace.buckets is None else routing_keys.points(parsed, keyspace.key_type, keyspace.buckets)
        )
        common.output.lines(_texts(texts, points, ids, shards, common.json, shard_map.version, keyspace))
        done += len(lines)


def _batches(stream: BinaryIO) -> Iterator[list[bytes]]:
    """The lines that are there already, again and again: whoever writes slowly is answered at once."""
    rest = b""
    while chunk := getattr(stream, "read1", stream.read)(_CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]


def _key(line: bytes, keyspace: Keyspace, number: int) -> tuple[str, Any]:
    try:
        text = line.removesuffix(b"\r").decode()
        return text, routing_keys.parse_key(text, keyspace.key_type)
    except UnicodeDecodeError:
        raise errors.BadKey(f"line {number}: not UTF-8", line=number) from None
    except errors.BadKey as error:
        raise errors.BadKey(f"line {number}: {error.message}", fix=error.fix, line=number) from None


def _texts(
    keys: list[str],
    points: list[Any],
    ids: list[int],
    shards: dict[int, str],
    as_json: bool,
    version: int,
    keyspace: Keyspace,
) -> Iterator[str]:
    whole = keyspace.key_type.startswith("int")
    for key, point, number in zip(keys, points, ids, strict=True):
        if as_json:
            yield json.dumps(
                {
                    "keyspace": keyspace.name,
                    "key": int(key) if whole else key,
                    "point": point,
                    "range": number,
                    "shard": shards[number],
                    "map_version": version,
                },
                ensure_ascii=False,
            )
        else:
            yield f"{key}\t{point}\t{number}\t{shards[number]}"
