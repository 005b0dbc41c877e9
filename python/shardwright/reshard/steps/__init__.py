"""One step of an operation a file: each takes a `World`, does the work of one phase, and can be run again."""
