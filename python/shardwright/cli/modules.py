"""An application's module, named on the command line."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

from shardwright import errors

if TYPE_CHECKING:
    from sqlalchemy import MetaData


def import_named(path: str) -> Any:
    """Import MODULE, or MODULE:NAME, as Python would from the current directory; what it prints goes to stderr.

    Args:
        path: the name; NAME may have dots.

    Returns:
        The module, or what it has under that name.

    Raises:
        BadOption: there is none, or it cannot be imported.
    """
    module_name, _, attribute = path.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found: Any = importlib.import_module(module_name)
            for name in attribute.split(".") if attribute else ():
                found = getattr(found, name)
    except AttributeError as error:
        raise errors.BadOption(
            f"{path}: {error}", fix="name a MetaData or a declarative base of that module"
        ) from error
    except Exception as error:  # an application's module may raise anything
        said = " ".join(str(error).split())
        raise errors.BadOption(
            f"module {module_name} cannot be imported: {type(error).__name__}: {said}",
            fix="run the command where `python -c 'import MODULE'` works",
        ) from error
    return found


def metadata_of(path: str) -> MetaData:
    """The MetaData that MODULE:NAME is, or has.

    Args:
        path: MODULE:NAME.

    Raises:
        BadOption: it is none, or cannot be imported.
    """
    from sqlalchemy import MetaData

    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise errors.BadOption(f"not MODULE:NAME: {path!r}", fix="such as app.models:Base or app.models:metadata")
    found = import_named(path)
    found = getattr(found, "metadata", found)
    if not isinstance(found, MetaData):
        raise errors.BadOption(
            f"{path} is a {type(found).__name__}, not a MetaData", fix="name a MetaData or a declarative base"
        )
    return found
