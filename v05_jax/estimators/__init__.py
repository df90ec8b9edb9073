"""Estimators: what each rollout's reward is compared with, a baseline a file
(`--config.baseline`)."""
