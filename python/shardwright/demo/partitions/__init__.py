"""The demo of time partitions: days go by on three shards, a live table becomes partitioned, is split, and moves."""
