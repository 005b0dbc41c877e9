"""Steps: one thing to do with one partition on one shard, a file each. Each can be run again; none knows another."""
