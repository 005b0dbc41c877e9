"""The files that a directory of migrations begins with."""

from __future__ import annotations

from pathlib import Path

from shardwright import errors

_INI = """\
# Alembic's configuration. `shardwright migrate upgrade` runs the revisions on every shard.

[alembic]
script_location = %(here)s/{directory}
prepend_sys_path = .
path_separator = os
file_template = %%(year)d_%%(month).2d_%%(day).2d_%%(rev)s_%%(slug)s
# The catalog, where neither --catalog nor SHARDWRIGHT_CATALOG says it:
# shardwright_catalog = host=localhost dbname=catalog
"""

_ENV = '''\
"""Asked by Alembic: runs revisions on the shard that `shardwright migrate` gives, or looks at the first shard."""

{imports}
from shardwright.migrate import run_env

run_env({metadata})
'''

_NO_MODELS = "# Autogenerate compares your models: give their MetaData, such as run_env(Base.metadata)."

_TEMPLATE = '''\
"""${message}

Revision ${up_revision}, after ${down_revision | comma,n}. Made ${create_date}.
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
'''


def write(directory: Path, config: Path, metadata: str | None) -> list[Path]:
    """Write alembic.ini, env.py and the template of revisions; nothing that is there is touched.

    Args:
        directory: for env.py and the revisions; beside alembic.ini.
        config: alembic.ini.
        metadata: MODULE:NAME of the models' MetaData or declarative base, if there are any yet.

    Returns:
        The files written.

    Raises:
        BadOption: one of them is there already, or `metadata` is no such name.
    """
    imports, given = _NO_MODELS, ""
    if metadata is not None:
        module, _, name = metadata.partition(":")
        parts = [*module.split("."), *name.split(".")]
        if not all(part.isidentifier() for part in parts):
            raise errors.BadOption(f"not MODULE:NAME: {metadata!r}", fix="such as app.models:Base")
        first = name.partition(".")[0]
        imports = f"from {module} import {first}"
        given = f'getattr({name}, "metadata", {name})'
    files = {
        config: _INI.format(directory=directory.name),
        directory / "env.py": _ENV.format(imports=imports, metadata=given),
        directory / "script.py.mako": _TEMPLATE,
        directory / "versions" / ".gitkeep": "",
    }
    for path in files:
        if path.exists():
            raise errors.BadOption(f"{path} is there already", fix="give another directory, or another --config")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)
