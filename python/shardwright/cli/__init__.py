"""The ``shardwright`` command, one file a verb group."""
