"""Interceptions of PyTorch, one a file: the only code that knows its internals."""
