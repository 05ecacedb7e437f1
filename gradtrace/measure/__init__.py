"""Measurements on the tensors' own devices: the only code that reads tensors."""
