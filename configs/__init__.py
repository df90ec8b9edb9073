"""A run's settings, a file each; `--config=NAME` finds them by name. Installed as
`v05_jax.configs`."""
