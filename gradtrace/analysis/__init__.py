"""Models looked at without changing them."""
