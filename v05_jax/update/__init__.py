"""From advantages to parameters."""
