"""Local PostgreSQL servers for development, demo and tests: real ones, started and stopped by this process."""

from __future__ import annotations

from shardwright.servers.binaries import find_binaries, server_version
from shardwright.servers.cluster import LocalCluster
from shardwright.servers.endpoint import Endpoint
from shardwright.servers.ports import free_port
from shardwright.servers.server import Server, start_all, stop_all

__all__ = [
    "Endpoint",
    "LocalCluster",
    "Server",
    "find_binaries",
    "free_port",
    "server_version",
    "start_all",
    "stop_all",
]
