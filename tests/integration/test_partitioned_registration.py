"""Partitioned and local tables are registered from models: the same parent on every shard, refused where unfit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fix_catalog import Found
from fix_sessions import Shop
from shardwright import engines, global_on, local, reference, sharded_by, time_partitioned
from shardwright.catalog import adoption, forgetting, models, roster, shards, tables
from shardwright.catalog.layout import layout_of
from shardwright.errors import BadDeclaration, ClusterInUse, NoShardKey, UnfitTable
from shardwright.routing.policy import Policy
from shardwright.routing.tables import Declaration

pytestmark = pytest.mark.newest_postgres

MONTHS = time_partitioned("at", every="1 month", keep="12 months")


def metadata(**info: dict[str, object]) -> sa.MetaData:
    made = sa.MetaData()
    for name, entry in info.items():
        sa.Table(
            name,
            made,
            sa.Column("user_id", sa.BigInteger, primary_key=True),
            sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
            sa.Column("note", sa.Text, index=True),
            sa.UniqueConstraint("user_id", "at", "note", name=f"{name}_once"),
            info=entry,
        )
    return made


def test_every_kind_has_the_same_parent_on_each_shard(found: Callable[..., Found]) -> None:
    cluster = found(3, joined=2)
    declared = metadata(
        events=sharded_by("user_id") | MONTHS,
        rates=reference() | MONTHS,
        jobs=global_on("s2") | MONTHS,
        logs=MONTHS,
        sizes=local(),
    )
    done = models.register(cluster.catalog, declared)
    assert {table.table_name: table.kind for table in done.tables} == {
        "events": "sharded",
        "rates": "reference",
        "jobs": "global",
        "logs": "local",
        "sizes": "local",
    }
    assert models.register(cluster.catalog, declared).created == ()
    cluster.add("s3")
    for table in tables.list_tables(cluster.catalog):
        policy = None if table.table_name == "sizes" else Policy("at", "1 month", "12 months")
        assert table.policy == policy
        assert table.layout.partition_by == ("RANGE (at)" if policy else None)
        for shard in ("s1", "s2", "s3"):
            there = cluster.ask(shard, f"SELECT relkind::text FROM pg_class WHERE relname = '{table.table_name}'")
            assert there == (("p" if policy else "r") if table.is_on(shard) else None)
    events = next(table for table in tables.list_tables(cluster.catalog) if table.table_name == "events")
    with engines.connect_shard(roster.get_shard(cluster.catalog, "s3"), "test") as there:
        assert events.layout.differences(layout_of(there, "public", "events")) == []


def test_a_changed_policy_is_kept(found: Callable[..., Found]) -> None:
    cluster = found(1)
    models.register(cluster.catalog, metadata(logs=MONTHS))
    models.register(cluster.catalog, metadata(logs=time_partitioned("at", every="1 week")))
    [table] = tables.list_tables(cluster.catalog)
    assert table.policy == Policy("at", "1 week")


@pytest.mark.parametrize(
    ("created", "declared", "said", "fix"),
    [
        (
            "at timestamptz NOT NULL",
            Policy("at", "1 day"),
            "is not partitioned",
            "shardwright partition convert public.t",
        ),
        ("at timestamptz NOT NULL) PARTITION BY RANGE (at", None, "no policy says how", "time_partitioned"),
        ("at timestamptz NOT NULL) PARTITION BY LIST (at", Policy("at", "1 day"), "by LIST", "the column"),
        ("at timestamptz) PARTITION BY RANGE (at", Policy("at", "1 day"), "allows NULL in at", "SET NOT NULL"),
        ("at timestamptz NOT NULL) PARTITION BY RANGE (at", Policy("then", "1 day"), "no column then", "id, at"),
    ],
)
def test_what_is_not_as_declared_is_refused(
    found: Callable[..., Found], created: str, declared: Policy | None, said: str, fix: str
) -> None:
    cluster = found(1)
    cluster.shard("s1").execute(f"CREATE TABLE t (id int, {created})".encode())
    wanted = adoption.Wanted("public", "t", Declaration("local", policy=declared))
    with pytest.raises(UnfitTable, match=said) as refused:
        adoption.adopt(cluster.catalog, [wanted])
    assert fix in refused.value.fix
    assert tables.list_tables(cluster.catalog) == []


def test_a_partition_is_not_registered(found: Callable[..., Found]) -> None:
    cluster = found(1)
    cluster.shard("s1").execute("CREATE TABLE t (at timestamptz NOT NULL) PARTITION BY RANGE (at)")
    cluster.shard("s1").execute("CREATE TABLE u PARTITION OF t FOR VALUES FROM (MINVALUE) TO (MAXVALUE)")
    with pytest.raises(UnfitTable, match="is a partition"):
        adoption.adopt(cluster.catalog, [adoption.Wanted("public", "u", Declaration("local"))])


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"shardwright.partitioned": {"column": "at", "every": "1 fortnight"}}, "not a span of time"),
        ({"shardwright.partitioned": {"column": "then", "every": "1 day"}}, "a column that it does not have"),
        ({"shardwright.partitioned": {"column": "note", "every": "1 day"}}, "primary key lacks that column"),
        ({"shardwright.partitioned": 1}, "no function of shardwright made"),
        (local() | reference(), "is declared local and reference"),
    ],
)
def test_declarations_that_are_refused(found: Callable[..., Found], info: dict[str, object], said: str) -> None:
    cluster = found(1)
    with pytest.raises(BadDeclaration, match=said):
        models.register(cluster.catalog, metadata(logs=info))


def windows(cluster: Found, shard: str, table: str, many: int) -> None:
    """Monthly partitions, made by hand."""
    for month in range(many):
        bounds = f"date '2026-01-01' + interval '{month} month'", f"date '2026-01-01' + interval '{month + 1} month'"
        cluster.shard(shard).execute(
            f"DO $$ BEGIN EXECUTE format('CREATE TABLE {table}_{month} PARTITION OF {table} "
            f"FOR VALUES FROM (%L) TO (%L)', {bounds[0]}, {bounds[1]}); END $$".encode()
        )


def test_a_shard_goes_with_its_partitions(found: Callable[..., Found]) -> None:
    cluster = found(3, joined=2)
    models.register(cluster.catalog, metadata(events=sharded_by("user_id") | MONTHS, logs=MONTHS))
    cluster.add("s3")
    for table in ("events", "logs"):
        windows(cluster, "s3", table, 5)
    cluster.shard("s3").execute("INSERT INTO logs VALUES (1, '2026-02-03', 'x')")
    with pytest.raises(ClusterInUse, match="rows of its own in public"):
        shards.remove_shard(cluster.catalog, "s3")
    cluster.shard("s3").execute("DELETE FROM logs")
    assert sorted(shards.remove_shard(cluster.catalog, "s3")) == ["public.events", "public.logs"]
    assert cluster.ask("s3", "SELECT count(*) FROM pg_class WHERE relname ~ '^(events|logs)'") == 0


def test_partitions_stay_where_a_table_is_forgotten(found: Callable[..., Found]) -> None:
    cluster = found(2)
    models.register(cluster.catalog, metadata(logs=MONTHS))
    windows(cluster, "s1", "logs", 2)
    cluster.shard("s1").execute("INSERT INTO logs VALUES (1, '2026-02-03', 'x')")
    assert forgetting.forget(cluster.catalog, [("public", "logs")]) == {"public.logs": "s1, s2"}
    assert cluster.ask("s1", "SELECT count(*) FROM logs") == 1
    assert tables.list_tables(cluster.catalog) == []


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    __table_args__ = ({"info": local()},)
    id: Mapped[int] = mapped_column(primary_key=True)


def test_sessions_write_local_tables_where_they_are(shop: Shop) -> None:
    models.register(shop.catalog, Base.metadata)
    sessions = shop.connect().sessionmaker()
    with sessions(key=shop.key_on("s2")) as session, session.begin():
        session.add(Note(id=1))
        session.execute(sa.insert(Note).values(id=2))
    assert shop.ask("s1", "SELECT count(*) FROM notes") == 0
    assert shop.ask("s2", "SELECT count(*) FROM notes") == 2
    with sessions(key=shop.key_on("s1")) as session, session.begin():
        assert session.scalars(sa.select(Note.id)).all() == []
    with sessions() as session:
        for refused in (sa.select(Note), sa.insert(Note).values(id=3)):
            with pytest.raises(NoShardKey, match="rows of its own"):
                session.execute(refused)
        session.add(Note(id=4))
        with pytest.raises(NoShardKey, match="rows of its own"):
            session.flush()
    with sessions.begin() as session:
        where = {"shard": "s1"}
        session.execute(sa.insert(Note).values(id=5), bind_arguments=where)
        session.add(Note(id=6))
    assert shop.ask("s1", "SELECT array_agg(id ORDER BY id) FROM notes") == [5, 6]


def test_a_table_that_refers_to_a_partitioned_one_can_be_registered_again(found: Callable[..., Found]) -> None:
    """PostgreSQL keeps a foreign key of its own for each partition that is referred to."""
    cluster = found(2)
    declared = metadata(logs=MONTHS)
    sa.Table(
        "notes",
        declared,
        sa.Column("n", sa.BigInteger, primary_key=True),
        sa.Column("user_id", sa.BigInteger),
        sa.Column("at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(["user_id", "at"], ["logs.user_id", "logs.at"], name="notes_log"),
        info=local(),
    )
    models.register(cluster.catalog, declared)
    cluster.shard("s1").execute(
        "CREATE TABLE logs_1 PARTITION OF logs FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')"
    )
    assert models.register(cluster.catalog, declared).created == ()
    [notes] = [table for table in tables.list_tables(cluster.catalog) if table.table_name == "notes"]
    assert [key.name for key in notes.layout.keys if key.kind == "foreign"] == ["notes_log"]
