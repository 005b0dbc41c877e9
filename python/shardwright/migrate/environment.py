"""What ``env.py`` has to do, in one line: ``run_env(Base.metadata)``."""

from __future__ import annotations

import logging
from typing import Any

import sqlalchemy as sa
from alembic import context

from shardwright import engines, errors
from shardwright.catalog import migrations, roster
from shardwright.migrate import facts
from shardwright.migrate.connecting import connected
from shardwright.migrate.guarding import GUARD
from shardwright.migrate.visibility import hooks


def run_env(target_metadata: sa.MetaData | list[sa.MetaData] | None = None, **options: Any) -> None:
    """Run what Alembic was asked for, on the shard that `shardwright migrate` gives.

    Without it, as for ``alembic revision --autogenerate``, ``alembic check`` and ``alembic current``, the first shard
    is looked at (by name, or ``alembic -x shard=NAME``). Whatever changes the schema is left to `shardwright migrate`.

    Args:
        target_metadata: the models, for autogenerate.
        options: further arguments of ``context.configure``; filters of your own are asked after ours.

    Raises:
        MigrationRefused: Alembic's own command line was asked to change a shard.
        BadOption: no catalog is given.
    """
    filters: dict[str, Any] = {
        name: options.pop(name) for name in ("include_name", "include_object") if name in options
    }
    options = {"target_metadata": target_metadata, "transaction_per_migration": True, **options}
    if context.is_offline_mode():
        context.configure(dialect_name="postgresql", literal_binds=True, **options, **hooks(None, **filters))
        with context.begin_transaction():
            context.run_migrations()
        return
    given = context.config.attributes.get("connection")
    if given is not None:
        _run(given, options, filters)
        return
    _refuse_changes()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    for name in ("alembic", "shardwright"):
        logging.getLogger(name).setLevel(logging.INFO)
    dsn = facts.catalog_dsn(context.config)
    if not dsn:
        raise errors.BadOption(
            "no catalog was given", fix="set SHARDWRIGHT_CATALOG, or shardwright_catalog in alembic.ini"
        )
    with connected(_first_shard(dsn, context.get_x_argument(as_dictionary=True).get("shard"))) as connection:
        _run(connection, options, filters)


def _run(connection: sa.Connection, options: dict[str, Any], filters: dict[str, Any]) -> None:
    guard = context.config.attributes.get(GUARD)
    if guard is not None:
        options["on_version_apply"] = [*_listed(options.get("on_version_apply")), guard.revision_has_run]
    context.configure(connection=connection, **options, **hooks(connection, **filters))
    with context.begin_transaction():
        context.run_migrations()


def _listed(callbacks: Any) -> list[Any]:
    return [] if callbacks is None else list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]


def _refuse_changes() -> None:
    try:
        context.get_revision_argument()
    except KeyError:
        return
    raise errors.MigrationRefused(
        "Alembic's own command would change one shard only", fix="shardwright migrate upgrade"
    )


def _first_shard(dsn: str, name: str | None) -> roster.Shard:
    with engines.connect_catalog(dsn, "shardwright migrate") as catalog:
        migrations.check(catalog, "catalog")
        if name is not None:
            return roster.get_shard(catalog, name)
        shards = roster.list_shards(catalog)
    if not shards:
        raise errors.UnknownShard("the cluster has no shard yet", fix="shardwright shard add NAME DSN")
    return shards[0]
