"""One step of an operation a file."""
