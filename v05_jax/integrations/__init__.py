"""The estimators and the budgets inside of other trainers: verl and TRL.

They lie in the package, so that `pip install` brings them and no folder of a common name; beside it
they need jax, numpy, and the trainer that they are for.
"""
