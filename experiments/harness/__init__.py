"""What the tools share: building a run, its folder, timers, tables."""
