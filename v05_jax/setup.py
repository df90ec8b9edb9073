"""What a config stands for: model, data, plugs and programs, made and checked before anything
runs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
import jax
import numpy as np

from v05_jax import backend, data, models, plug, problems, rewards, row_files, tasks
from v05_jax import config as configuration
from v05_jax.budgets import base as budgets
from v05_jax.estimators import base as estimators
from v05_jax.names import show
from v05_jax.observers import base as observers
from v05_jax.priors import base as priors
from v05_jax.run import checkpoint
from v05_jax.scale import distributed, sharding, sources
from v05_jax.shapes import Shapes, shapes
from v05_jax.structs import TrainState
from v05_jax.update import optimizer as optimizers
from v05_jax.update import policy_gradient, replay
from v05_jax.value_model import directory


class Run(NamedTuple):
  """What a config stands for: all that can be wrong with it has been found when this exists."""

  config: Any
  mesh: Any
  policy: models.Policy  # the first policy; parameters on host
  prompts: data.Dataset
  prior: priors.Prior
  budget: budgets.Budget
  estimator: estimators.Estimator  # its functions are programs
  advantages: Callable  # (state, Groups, value) -> (advantage [P, K], {name: [P]})
  observers: observers.Observers
  update: policy_gradient.Update
  reference: Any  # the first policy's parameters on the mesh, for the KL; None without
  exact: Callable | None  # (params, rows) -> success probability, NaN where it is not exact
  shapes: Shapes
  weights: Mapping[str, str] = {}  # config key -> digest of weights that it names (`weights_of`)

  def init(self) -> TrainState:
    """The state before the first step."""
    params = self.update.place(self.policy.params)
    zero, limits = np.zeros((), np.int32), self.budget.limits
    return TrainState(
      params=params,
      opt_state=self.update.init(params),
      step=zero,
      cursor=zero,
      rollouts=zero,
      # Where outcomes decide, every prompt may get the most rollouts at first.
      mean_k=np.float32(limits.mean or limits.most),
      skipped=distributed.put(zero, sharding.replicated(self.mesh)),
      prior=self.prior.init(),
      budget=self.budget.init(),
      estimator=self.estimator.init(),
      observers=self.observers.init(),
      replay=replay.init(self.config),
    )

  def prompts_per_step(self, mean_k: float) -> int:
    """`rollouts_per_step / mean_k`, a multiple of the minibatches, within the capacity."""
    parts = self.config.loss.minibatches
    wanted = round(self.config.rollouts_per_step / mean_k / parts) * parts
    return int(np.clip(wanted, parts, self.shapes.prompts))


def setup(config, workdir: str | None = None, done: int = 0) -> Run:
  """Checks a config and loads what it names. Raises ValueError that names the key or file at fault.

  workdir: where observers write, None = nowhere; `done`: steps of the state that is to be restored.
  """
  configuration.validate(config)
  if missing := configuration.left_open(config):
    keys = ", ".join(missing)
    raise ValueError(f"{keys}: found no value, expected one: scale.settle.settle chooses them")
  problems.check(config)
  row_files.check(config.data.path)
  check_scratchpad(config)
  mesh = sharding.make_mesh(config.mesh)
  distributed.connect(mesh)
  policy = models.load(config.policy, config.seed)
  warn_of_length(config.sampler, policy.config)
  weights = jax.tree.leaves(policy.params)
  sampled = lambda: (np.ravel(x)[:: max(1, x.size // 4096)] for x in weights)
  described = [repr(policy.config), repr(policy.stop)]
  distributed.check_same("config.policy", lambda: [*described, *sampled()])
  prompts = data.load(config.data, policy.tokenizer, config.sampler.max_prompt, seed=config.seed)
  rewards.check_answers(config.reward, prompts.rows, config.data.path)
  texts = lambda: (str(row) for row in prompts.rows)
  distributed.check_same("config.data", lambda: [prompts.tokens, prompts.start, *texts()])
  built_in = config.data.path == data.TASKS
  exact = tasks.make_exact(policy.config, policy.tokenizer, config.sampler) if built_in else None
  setting = plug.Setting(config, len(prompts), policy, mesh, prompts, exact, workdir, done)
  run = assemble(setting, make_update(config, policy.config, mesh))
  return run._replace(weights=weights_of(config))


def weights_of(config) -> dict[str, str]:
  """Config key -> digest of the weights that it names and that a resumed run reads again: those of
  the first policy (for the KL's reference and for priors) and of a V0."""
  found = {}
  if not config.policy.preset:
    found["policy.path"] = sources.of_folder(models.folder(config.policy.path))
  path = config.priors.v0.path
  if plug.label(config.prior.kind) == "v0" and path != directory.BUILTIN:
    found["priors.v0.path"] = directory.digest(path)
  return found


def own_code(config) -> dict[str, Path]:
  """Module -> file of the user's own rewards and plugs that a config names."""
  names = [*rewards.targets(config.reward), *(name for _, name in plug.chosen(config))]
  names.append(config.policy.family)
  modules = sorted({name.partition(":")[0] for name in names if ":" in name})
  return {module: file for module in modules if (file := sources.file_of(module))}


def code_digests(config) -> dict[str, str]:
  """What a checkpoint keeps of them: changed code is no error, but is said."""
  return {f"{checkpoint.CODE}{x}": sources.digest(file) for x, file in own_code(config).items()}


def warn_of_length(sampler, model: models.decoder.ModelConfig):
  """Says so where prompt and response together may be longer than what the model was trained on."""
  longest = sampler.max_prompt + sampler.max_response
  if longest > model.max_positions and distributed.first():
    logging.warning(
      "sampler.max_prompt + sampler.max_response: found %d tokens, beyond the model's "
      "max_position_embeddings %d: expect nonsense there, and other trainers to stop before",
      longest,
      model.max_positions,
    )


def check_scratchpad(config):
  """Raises ValueError where one of the package's own policies does not fit the built-in tasks: one
  has learnt to write a scratchpad, the other has not, and the other's responses are all wrong."""
  path, length = config.policy.path, config.data.scratchpad
  if config.policy.preset or data.TASKS not in (config.data.path, config.eval.path):
    return
  fitting = "builtin_scratchpad" if length else "builtin"
  if path in models.SHIPPED and path != fitting:
    raise ValueError(
      f"policy.path: found {show(path)}, expected {show(fitting)}, since data.scratchpad is "
      f"{length}: no response of the other could be right"
    )


def make_update(config, model_config, mesh) -> policy_gradient.Update:
  """The update of a config, for a model on a mesh."""
  return policy_gradient.make(
    model_config,
    config.loss,
    config.optimizer,
    mesh,
    temperature=config.sampler.temperature,
    total_updates=optimizers.total_updates(config),
  )


def assemble(setting: plug.Setting, update: policy_gradient.Update) -> Run:
  """The run of what was loaded, with the plugs that its config names."""
  config, policy = setting.config, setting.policy
  prior, budget, estimator = (x.make(setting) for x in (priors, budgets, estimators))
  learns, small = bool(jax.tree.leaves(estimator.init())), backend.quick()
  learn, as_first = jax.jit(estimator.learn, **small), distributed.as_first

  def advantages(state, groups, value):
    return estimators.advantages(estimator, state, groups, value)

  return Run(
    config=config,
    mesh=setting.mesh,
    policy=policy,
    prompts=setting.prompts,
    prior=prior._replace(ask=as_first(prior.ask), learn=as_first(prior.learn)),
    budget=budget._replace(
      first=as_first(budget.first),
      more=budget.more and as_first(budget.more),
      learn=as_first(budget.learn),
    ),
    estimator=estimator._replace(
      expect=as_first(jax.jit(estimator.expect, **small)),
      learn=as_first(learn) if learns else lambda state, groups, value: state,
    ),
    advantages=as_first(jax.jit(advantages, **small)),
    observers=observers.Observers(setting),
    update=update,
    reference=update.freeze(policy.params) if config.loss.kl_coef else None,
    exact=setting.exact,
    shapes=shapes(config, budget.limits),
  )
