"""Make golden_points.json with a real server: python tests/agreement/make_golden.py DSN

Every bucket in the file was accepted by the server's own satisfies_hash_partition. Run it again only to add keys.
"""

from __future__ import annotations

import json
import random
import sys
import uuid
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

GOLDEN = Path(__file__).with_name("golden_points.json")
BUCKETS = (2, 64, 4096, 65536)
SEED = 8816678312871386365
ADD = 5305509591434766563
FUNCTIONS = {
    "int2": "hashint2extended(k, %(seed)s)",
    "int4": "hashint4extended(k, %(seed)s)",
    "int8": "hashint8extended(k, %(seed)s)",
    "text": "hashtextextended(k, %(seed)s)",
    "varchar": "hashtextextended(k, %(seed)s)",
    "uuid": "uuid_hash_extended(k, %(seed)s)",
    # hashvarlenaextended cannot be called from SQL; the hash of a row of one column is that column's.
    "bytea": "hash_record_extended(ROW(k), %(seed)s)",
}


def keys_of(key_type: str, rng: random.Random) -> list[Any]:
    """Edges first, then a few of everything."""
    if key_type.startswith("int"):
        bits = int(key_type[3:]) * 8
        edges = [
            0,
            1,
            -1,
            2,
            -2,
            42,
            127,
            -128,
            32767,
            -32768,
            2**31 - 1,
            2**31,
            -(2**31),
            -(2**31) - 1,
            2**32,
            2**63 - 1,
        ]
        edges += [-(2**63), 2**63 - 2, 0x7FFFFFFF00000000, -0x100000000, 1_000_000_007]
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        return [key for key in edges if low <= key <= high] + [rng.randint(low, high) for _ in range(40)]
    if key_type == "uuid":
        return [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), uuid.UUID(int=1)] + [
            uuid.UUID(int=rng.getrandbits(128)) for _ in range(40)
        ]
    if key_type == "bytea":
        return [bytes([255] * n) for n in range(30)] + [rng.randbytes(n) for n in range(50)] + [bytes(range(256)) * 20]
    words = [
        "",
        " ",
        "a",
        "A",
        "a ",
        "é",
        "e\u0301",
        "ß",
        "日本語",
        "🦀",
        "N14228",
        "user@example.org",
        "\x01",
        "\U0010ffff",
    ]
    return words + ["x" * n for n in range(2, 40)] + ["".join(rng.choices("abcdefé日🦀", k=n)) for n in range(1, 30)]


def text_of(key: Any) -> str:
    """The key as JSON has it: bytea as hexadecimal digits."""
    return key.hex() if isinstance(key, bytes) else str(key)


def main(dsn: str) -> None:
    """Ask the server for the hash and the buckets of every key, and write the file."""
    rng = random.Random(20240229)
    cases = []
    with psycopg.connect(dsn) as conn:
        for key_type, function in FUNCTIONS.items():
            conn.execute(
                sql.SQL("CREATE TEMP TABLE {} (k {}) PARTITION BY HASH (k)").format(
                    sql.Identifier(f"golden_{key_type}"), sql.SQL(key_type)
                )
            )
            query = sql.SQL(
                """
                SELECT h, p, satisfies_hash_partition({table}::regclass, %(buckets)s, p, k)
                  FROM (SELECT %(key)s::{type} AS k) AS keys,
                       LATERAL (SELECT {function} AS h) AS hashes,
                       LATERAL (SELECT (((h & (%(buckets)s - 1)) + (%(add)s & (%(buckets)s - 1)))
                                        & (%(buckets)s - 1))::int AS p) AS points
                """
            ).format(
                table=sql.Literal(f"golden_{key_type}"),
                type=sql.SQL(key_type),
                function=sql.SQL(function),
            )
            for key in keys_of(key_type, rng):
                points = {}
                for buckets in BUCKETS:
                    values = {"key": key, "seed": SEED, "add": ADD, "buckets": buckets}
                    row = conn.execute(query, values).fetchone()
                    if row is None or row[2] is not True:
                        raise SystemExit(f"{key_type} {key!r}: the server does not accept {row}")
                    points[str(buckets)] = row[1]
                cases.append({"type": key_type, "key": text_of(key), "hash": str(row[0]), "points": points})
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    GOLDEN.write_text(f"[\n{lines}\n]\n")
    print(f"{len(cases)} keys of {len(FUNCTIONS)} types")


if __name__ == "__main__":
    main(sys.argv[1])
