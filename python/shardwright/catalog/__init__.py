"""WHAT is stored: migrations, shards, keyspaces, tables, the shard map, operations."""
