"""Detectors: pure functions of the records they are fed; events come out."""
