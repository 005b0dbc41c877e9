"""Time partitions on every shard: planned purely, applied in short steps, kept and moved."""
