"""The child processes of a run, slot by slot: planned, started, watched, replaced."""
