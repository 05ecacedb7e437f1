"""Timing of training loops, with gradtrace and with its peers."""
