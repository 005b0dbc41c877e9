"""A session for chaos tests: moves 10 points from one user to another, with whatever failpoint the environment arms."""

from __future__ import annotations

import sys

import sqlalchemy as sa

from shardwright import Cluster, sharded_by

users = sa.Table(
    "users",
    sa.MetaData(),
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("score", sa.Integer),
    info=sharded_by("id"),
)


def main() -> int:
    catalog, one, other = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with (
        Cluster.connect(catalog, refresh="never", application="transfers") as cluster,
        cluster.sessionmaker(cross_shard="two_phase")() as session,
        session.begin(),
    ):
        for key, amount in ((one, -10), (other, 10)):
            session.execute(sa.update(users).where(users.c.id == key).values(score=users.c.score + amount))
    return 0


if __name__ == "__main__":
    sys.exit(main())
