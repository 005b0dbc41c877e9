"""PostgreSQL sharding and online resharding as a library: no proxy, no server extension."""
