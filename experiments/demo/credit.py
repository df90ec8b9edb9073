"""Which of its differences from GRPO makes V0.5's lead in the demo."""

from v05_jax.configs import demo
from v05_jax.run import conclusion
from v05_jax.run.comparison import Row, paired


def credit(rows: list[Row]) -> str:
  """Splits V0.5's lead over GRPO (G=16) by what the methods between them change, one thing after
  the other, with intervals over the seeds; of one seed it says nothing."""
  of = dict(zip(demo.METHODS.values(), rows))
  if any(row.seeds < 2 for row in rows):
    return (
      "What V0.5's difference from GRPO (G=16) comes from takes several seeds: "
      "python -m experiments.demo.run --seeds=0,1,2"
    )
  points = lambda method, before: conclusion.spread(paired(of[method], of[before], "end"), 100, 1)
  parts = (
    ("grpo4", "grpo16", "four times as many prompts for the same rollouts (GRPO with G=4)"),
    (
      "rloo4",
      "grpo4",
      "the loss (RLOO: no division by the standard deviation, prompts weigh alike)",
    ),
    ("v05", "rloo4", "the value prior and shrinkage"),
  )
  told = [f"{points(method, before)} from {what}" for method, before, what in parts]
  lead = points("v05", "grpo16")
  return "\n".join(
    [f"V0.5 minus GRPO (G=16), at the end: {lead} points of success; of these", *told]
  )
