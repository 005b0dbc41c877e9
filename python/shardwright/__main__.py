"""``python -m shardwright`` is the command ``shardwright``."""

from __future__ import annotations

import sys

from shardwright.cli import main

sys.exit(main())
