"""HOW data moves: phases and plan (pure), preflight, streams, steps, runner."""
