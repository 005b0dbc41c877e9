"""WHERE a row lives: keys, shard map, predicates, placement, statement to keys. No I/O."""
