"""The demo: a live cluster resharded under load, and checked."""
