"""A fork: the child goes on with pools and threads of its own, and leaves the parent's connections alone."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardwright.session.cluster import Cluster

_clusters: weakref.WeakSet[Cluster] = weakref.WeakSet()


def begin_anew_with(cluster: Cluster) -> None:
    """Let a cluster begin anew in every child that this process forks.

    Args:
        cluster: which; it is not kept alive by this.
    """
    _clusters.add(cluster)


def _in_child() -> None:
    # engines.py, which was imported before, has cut off the parent's connections by now.
    for cluster in list(_clusters):
        cluster.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
