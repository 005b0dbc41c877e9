"""HOW an application queries: factory, pinned and routed sessions, scatter, retries."""
