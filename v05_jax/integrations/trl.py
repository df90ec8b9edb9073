"""TRL: its GRPOTrainer with the advantages of an estimator of the package.

    from v05_jax.integrations.trl import Trainer
    trainer = Trainer(model, reward_funcs, args=GRPOConfig(...), train_dataset=..., estimator="ewa")

A prior is a function of a batch's rows, `prior(inputs) -> success probabilities` (NaN = none), or a
column of the data set, by its name. The estimator sees the weighted sum of the rewards, whose range
`low` and `high` are. What it has learnt is kept in TRL's checkpoints. TRL samples the same number
of rollouts for every prompt, so there is no budget here. `scale_rewards` and
`multi_objective_aggregation` have no part in these advantages; evaluation is TRL's own.

Checked with TRL 1.16.
"""

from collections.abc import Callable
import os

import jax
import numpy as np
import torch
from trl import GRPOTrainer

from v05_jax.integrations.rows import Advantages

FILE = "v05_estimator.npz"  # of a checkpoint


class Trainer(GRPOTrainer):
  """GRPOTrainer, but for `advantages`.

  Args:
    estimator: as the `kind` of `rows.Advantages`.
    prior: see above; None: no prior.
    low, high: the reward of failure and of success.
  """

  def __init__(
    self,
    *args,
    estimator: str = "ewa",
    prior: Callable | str | None = None,
    low: float = 0.0,
    high: float = 1.0,
    **keys,
  ):
    self.estimator, self._prior = Advantages(estimator, low, high), prior
    super().__init__(*args, **keys)

  def _set_signature_columns_if_needed(self):
    super()._set_signature_columns_if_needed()
    if isinstance(self._prior, str) and self._prior not in self._signature_columns:
      self._signature_columns.append(self._prior)

  def _calculate_rewards(self, inputs, *rest):
    found = super()._calculate_rewards(inputs, *rest)  # [rows of all processes, functions]
    weights = self.reward_weights.to(found.device)
    self._sums = torch.where(found.isnan().all(1), torch.nan, (found * weights).nansum(1))
    return found

  def _generate_and_score_completions(self, inputs):
    output = super()._generate_and_score_completions(inputs)
    if self.model.training:
      output["advantages"] = self._own_advantages(inputs, output["advantages"])
    return output

  def _own_advantages(self, inputs, theirs):
    """The advantages of this process's rows, by what all processes have sampled."""
    local = torch.tensor(self._priors(inputs), dtype=torch.float32, device=theirs.device)
    prior = self.accelerator.gather(local).cpu().numpy()
    index = np.arange(len(prior)) // self.num_generations
    found = self.estimator(self._sums.float().cpu().numpy(), index, prior)
    first = self.accelerator.process_index * len(inputs)
    self._logs["advantages"].clear()
    self._logs["advantages"].extend(found.tolist())
    return torch.from_numpy(np.array(found[first : first + len(inputs)])).to(theirs)

  def _priors(self, inputs) -> list[float]:
    if callable(self._prior):
      return [float(x) for x in self._prior(inputs)]
    return [float(row[self._prior]) if self._prior else np.nan for row in inputs]

  def _save_checkpoint(self, model, trial):
    super()._save_checkpoint(model, trial)
    if self.args.should_save:
      folder = f"checkpoint-{self.state.global_step}"
      path = os.path.join(self._get_output_dir(trial=trial), folder, FILE)
      np.savez(path, *map(np.asarray, jax.tree.leaves(self.estimator.state)))

  def _load_optimizer_and_scheduler(self, checkpoint):
    super()._load_optimizer_and_scheduler(checkpoint)
    if checkpoint and os.path.exists(path := os.path.join(checkpoint, FILE)):
      with np.load(path) as found:
        parts = [found[name] for name in found.files]
      form = jax.tree.structure(self.estimator.state)
      self.estimator.state = jax.tree.unflatten(form, parts)
