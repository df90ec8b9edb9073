"""Where a run's metrics go beside metrics.jsonl: a sink a file."""

from v05_jax.sinks.base import FAILED, FINISHED, STOPPED, Sink, Sinks, check

__all__ = ["FAILED", "FINISHED", "STOPPED", "Sink", "Sinks", "check"]
