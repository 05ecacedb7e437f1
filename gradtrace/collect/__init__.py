"""The user's thread: what the taps see becomes one open step after another."""
