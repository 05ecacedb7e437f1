"""Spikes in the loss and the gradient norm, and what may lie behind them."""
