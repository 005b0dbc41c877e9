"""A session without a key: each statement and each object finds its own shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

if TYPE_CHECKING:
    from shardwright.session.session import ShardSession


class Routed:
    """How a routed session finds connections, and what it refuses."""

    def __init__(self, session: ShardSession, strict: bool, options: dict[str, Any]) -> None:
        self._session = session

    def bind(self, mapper: Any) -> Any:
        """The engine for whatever the session does."""
        raise NotImplementedError

    def bind_for(self, arguments: Mapping[str, Any]) -> Any:
        """The engine for what the caller asked of `Session.connection`."""
        raise NotImplementedError

    @contextmanager
    def beginning_with(self, options: dict[str, Any]) -> Iterator[None]:
        """Let a transaction that begins meanwhile have options of its own."""
        yield

    def run(self, call: Any, statement: Any, params: Any, execution_options: Any, bind_arguments: Any, more: Any) -> Any:
        """Execute a statement."""
        raise NotImplementedError

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """While objects are flushed."""
        yield

    def connection_for(self, mapper: Any = None, instance: Any = None, **_: Any) -> Connection:
        """The connection on which an object is written."""
        raise NotImplementedError

    @contextmanager
    def bulk(self, rows: Iterable[tuple[Any, Any]]) -> Iterator[None]:
        """For SQLAlchemy's older bulk methods."""
        yield
