"""The background thread: steps whose values have arrived become records."""
