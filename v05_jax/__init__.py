"""V0.5 in JAX: a generalist value model as a prior for sparse RL rollouts (arXiv 2603.10848)."""
