"""Named points at which an operation can be made to crash, pause or fail, for tests. All are listed here.

``SHARDWRIGHT_FAILPOINT=<name>:<crash|pause|error>`` arms one. ``crash`` is a SIGKILL of this process: no handler, no
clean-up runs. ``pause`` stops the process with SIGSTOP, once, so that a test can wake a zombie. ``error`` raises.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from shardwright import errors

#: Every failpoint; those of an operation in the order in which it passes them.
FAILPOINTS: Final = (
    "prepare.ranges_known",
    "prepare.ranges_cut",
    "prepare.target_importing",
    "prepare.publication_made",
    "copy.slot_made",
    "copy.half_copied",
    "copy.copied",
    "copy.keys_built",
    "catch_up.subscribed",
    "catch_up.caught_up",
    "verify.snapshots_taken",
    "verify.compared",
    "switch.reverse_publication",
    "switch.reverse_slot",
    "switch.reverse_subscribed",
    "hand_over.fenced",
    "hand_over.drained",
    "hand_over.widened",
    "hand_over.committed",
    "hand_over.opened",
    "roll_back.started",
    "clean_up.streams_dropped",
    "clean_up.half_deleted",
    "clean_up.deleted",
    "abort.streams_dropped",
    "abort.deleted",
    "partition.declared",
    "partition.finalizing",
    "partition.finalized",
    "partition.making",
    "partition.made",
    "partition.attaching",
    "partition.attached",
    "partition.guard_detached",
    "partition.guard_narrowed",
    "partition.guard_settled",
    "partition.detached",
    "partition.detach_marked",
    "partition.archive_half_written",
    "partition.archive_written",
    "partition.archive_verified",
    "partition.archive_manifest_written",
    "partition.archive_recorded",
    "partition.drop_prepared",
    "partition.dropped",
    "partition.lifting",
    "partition.restore_made",
    "partition.restore_half_loaded",
    "partition.restore_loaded",
    "partition.restore_declared",
    "partition.restore_attached",
    "partition.convert_planned",
    "partition.convert_key_built",
    "partition.convert_checked",
    "partition.convert_validated",
    "partition.convert_swapping",
    "partition.convert_swapped",
    "partition.convert_keys_valid",
    "partition.convert_recorded",
    "partition.adopt_recorded",
    "partition.adopt_marking",
    "partition.adopt_marked",
    "partition.adopt_bounded",
    "partition.adopt_made",
    "partition.adopt_exchanging",
    "partition.adopt_exchanged",
    "partition.split_piece_made",
    "partition.split_prepared",
    "partition.split_half_copied",
    "partition.split_copied",
    "partition.split_half_indexed",
    "partition.split_indexed",
    "partition.split_ready",
    "partition.split_exchanging",
    "partition.split_exchanged",
    "partition.split_recorded",
    "partition.split_settled",
    "tx.registered",
    "tx.half_prepared",
    "tx.prepared",
    "tx.decided",
    "tx.half_ended",
    "tx.rolled_back",
    "tx.recovering",
    "tx.half_recovered",
    "migrate.before_commit",
    "migrate.shard_upgraded",
    "migrate.catalog_written",
)

#: Those that an operation passes.
OF_OPERATIONS: Final = tuple(name for name in FAILPOINTS if not name.startswith(("partition.", "migrate.", "tx.")))

ACTIONS: Final = ("crash", "pause", "error")

_paused: set[str] = set()


def reach(name: str) -> None:
    """Do what `SHARDWRIGHT_FAILPOINT` asks for at this point; nothing when it names another one.

    Raises:
        FailpointReached: its action is ``error``.
    """
    if name not in FAILPOINTS:
        raise errors.InvariantFailed(f"failpoint {name} is not listed")
    wanted, _, action = os.environ.get("SHARDWRIGHT_FAILPOINT", "").partition(":")
    if wanted != name:
        return
    if action == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "pause" and name not in _paused:
        _paused.add(name)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "error":
        raise errors.FailpointReached(f"failpoint {name}", fix="unset SHARDWRIGHT_FAILPOINT and resume")


def check_setting() -> None:
    """Refuse a `SHARDWRIGHT_FAILPOINT` that names nothing: a test that arms a misspelt point would pass for nothing.

    Raises:
        BadOption: the name or the action is unknown.
    """
    setting = os.environ.get("SHARDWRIGHT_FAILPOINT")
    if not setting:
        return
    name, _, action = setting.partition(":")
    if name not in FAILPOINTS or action not in ACTIONS:
        raise errors.BadOption(
            f"SHARDWRIGHT_FAILPOINT={setting} names no failpoint",
            fix=f"one of {', '.join(FAILPOINTS)}, then :{'|'.join(ACTIONS)}",
        )
