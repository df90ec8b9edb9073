"""Observers: what looks on at every step and changes nothing (`--config.observe`)."""
