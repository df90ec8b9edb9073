"""V0, the generalist value model: adapter, head, conversion, training."""
