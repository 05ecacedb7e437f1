"""What users hold in their hands: the trace, its settings, its life."""
