"""V0, the generalist value model: adapter, head, conversion, training.

    from v05_jax import value_model
    p = value_model.load("builtin").predict(context_prompts, context_scores, target_prompts)

`load` and `ValuePrior` are those of `v0`, which is imported when one of them is first used: the
other modules do not need the language models that it imports.
"""

__all__ = ("ValuePrior", "load")


def __getattr__(name: str):
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from v05_jax.value_model import v0

  return getattr(v0, name)
