"""One statement that several threads execute at the same time is made into SQL by one after the other.

It costs nothing, since threads share one interpreter, and it is not only tidy. CPython 3.11 gives an object its `__dict__` when
that is first asked for, and may collect garbage in the middle of it, which lets other threads run: two that ask for the same
one then get two dictionaries of the same memory. SQLAlchemy asks for those of a new statement's parts while it compiles.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

_compiling = threading.RLock()


def one_at_a_time(statement: Any) -> Any:
    """Let a statement be compiled by one thread at a time.

    Args:
        statement: a statement that is about to be executed by several.

    Returns:
        The same one.
    """
    statement._compile_w_cache = partial(_compile, statement._compile_w_cache)
    return statement


def _compile(compile_with_cache: Any, *args: Any, **options: Any) -> Any:
    with _compiling:
        return compile_with_cache(*args, **options)
