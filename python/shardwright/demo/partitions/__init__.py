"""A platform whose days go by on three shards, and a judge of its windows that shares nothing with the calendar."""
