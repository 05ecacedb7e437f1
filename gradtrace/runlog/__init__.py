"""The run log: the truth on disk about a run, written by one thread and read by anyone."""
