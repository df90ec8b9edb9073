"""Budgets: how many rollouts each prompt of a step gets, a rule a file (`--config.budget.rule`)."""
