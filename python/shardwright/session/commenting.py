"""SQL comments that tell, in the server's views and logs, who sent a statement, to which shard, and why there.

    SELECT ... /*application='shop',route='pinned',shard='s1'*/

The form is sqlcommenter's: keys in order, values percent-encoded. One session's statements of one kind have one comment, so
that prepared statements and plans are not told apart by it; pg_stat_statements does not look at comments at all.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from shardwright.session.wire import may_write

#: The execution option that carries the route.
ROUTE = "shardwright_route"


def comment_of(**fields: str | None) -> str:
    """A comment of names and values.

    Args:
        fields: the values; those that are None or empty are left out. No value can end the comment or be a placeholder.
    """
    said = ",".join(f"{name}='{_encoded(value)}'" for name, value in sorted(fields.items()) if value)
    return f"/*{said}*/"


def _encoded(value: str) -> str:
    encoded = quote(value, safe="")
    if may_write(f"SELECT {encoded}"):
        # A word such as UPDATE would let the statement pass for a write.
        return "".join(f"%{byte:02X}" for byte in value.encode())
    return encoded


def comment_statements(engine: Engine, application: str, shard: str) -> None:
    """Let an engine put a comment behind each statement.

    Args:
        engine: the shard's.
        application: who sends them.
        shard: the shard's name.
    """
    # Drivers with placeholders like %s take a single % for one.
    percent = "%%" if engine.dialect.identifier_preparer._double_percents else "%"
    known = {
        route: " " + comment_of(application=application, route=route, shard=shard).replace("%", percent)
        for route in (None, "pinned", "routed", "scatter")
    }

    @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
    def add(
        connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> tuple[str, Any]:
        options = context.execution_options if context is not None else connection.get_execution_options()
        return statement + known[options.get(ROUTE)], parameters
