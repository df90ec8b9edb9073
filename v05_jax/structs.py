"""The data that flows through one step: prompts -> value -> rollouts -> advantage -> batch ->
update.

Letters, once for all: P prompts, K rollouts a prompt, N rows, T tokens, R response tokens, F
features, M context pairs. Rewards and masks are dense `[P, K]`; tokens are flat rows.
`P` and `K` are static capacities of a run, so that nothing recompiles when their use varies.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import struct
import jax
import numpy as np

from v05_jax.groups import Groups

Array = jax.Array | np.ndarray


@struct.dataclass
class Prompts:
  """One batch of prompts, on host. Rows at and after the number asked for are padding (`mask`
  False)."""

  tokens: Array  # int32 [P, T]  prompt tokens, right-padded
  length: Array  # int32 [P]     tokens of the prompt; 1 for padding
  position: Array  # int32 [P]   place in the data stream: names the rollouts' keys
  mask: Array  # bool  [P]       a real prompt
  row: Array  # int32 [P]        row of the dataset: the same prompt in every epoch
  # the data rows of the real prompts
  rows: tuple[dict[str, Any], ...] = struct.field(pytree_node=False)
  step: Array = 0  # int32 []  training step that takes them


@struct.dataclass
class Rollouts:
  """What was sampled for a batch of prompts, on host; flat rows `[N, ...]` point into dense `[P,
  K]`."""

  tokens: Array  # int32 [N, R]    response tokens, EOS included, right-padded
  logprob: Array  # float32 [N, R] log-softmax(logits / temperature) of each token, untruncated
  # float32 [N, R] the same after top-k/top-p truncation (equal to logprob without)
  sampled_logprob: Array
  prompt: Array  # int32 [N]       row of the prompt in the batch
  index: Array  # int32 [N]        number of the rollout within its prompt, 0 .. K-1
  length: Array  # int32 [P, K]    response tokens, EOS included; 0 where there is no rollout
  reward: Array  # float32 [P, K]  the verifier's own units; NaN where the verifier failed
  ended: Array  # bool [P, K]      EOS was sampled; False = truncated at the limit
  mask: Array  # bool [P, K]       the rollout exists and counts
  # float32 [P, K, rewards] of several rewards each one's own, NaN = none; None of a single one
  parts: Array | None = None


class Draw(NamedTuple):
  """Prompts, what the prior said of them, and their rollouts; on host."""

  prompts: Prompts
  value: np.ndarray  # float32 [P]  V, NaN = the prior did not speak
  asked: dict[str, Any]  # what the prior remembers of having been asked
  rolls: Rollouts
  groups: Groups
  importance: np.ndarray  # float32 [P]  of a prompt in the loss: 1, or 1 / its chance of selection


class Seen(NamedTuple):
  """What a step is learnt from: all that it has drawn, [P, ...]."""

  asked: dict[str, Any]  # what the prior remembers of having been asked
  groups: Groups
  value: np.ndarray  # float32 [P]  V


def together(draws: Sequence[Draw], most: int) -> Seen:
  """The draws of a step, of [P] each and `most` at most, as one of [most P]: it is learnt from
  once, however often it has drawn, and by the same programs."""
  every = [Seen(draw.asked, draw.groups, draw.value) for draw in draws]
  nothing = jax.tree.map(np.zeros_like, every[0])  # its mask is 0
  nothing = nothing._replace(value=np.full_like(nothing.value, np.nan))
  every += [nothing] * (most - len(every))
  if len(every) == 1:
    return every[0]
  return jax.tree.map(lambda *x: np.concatenate(x) if np.ndim(x[0]) else x[0], *every)


@struct.dataclass
class Batch:
  """Rollouts packed into rows of a fixed length; every array `[B, T]` (or `[M, B, T]` for M
  micro-batches).

  Index t holds an input token; `target`, `weight`, `advantage` and `old_logprob` at t speak of the
  response token that it predicts. All but the last of a prompt's tokens are one segment, which
  stands before its responses; the prompt's last token and all but the last of a response's are
  another.
  """

  tokens: Array  # int32    input tokens
  target: Array  # int32    the response token to predict; 0 in a prompt
  segment: Array  # int32   0 = padding, 1.. = a prompt or a response
  prompt: Array  # int32    segment of the prompt: attention sees this and its own segment
  position: Array  # int32  position inside the rollout, for the rotary embedding
  weight: Array  # float32  weight of this token's loss; 0 on prompts and padding
  advantage: Array  # float32
  old_logprob: Array  # float32  the sampler's log-prob of `target`


@struct.dataclass
class Context:
  """Ring buffer of the policy's own last (prompt, success) pairs: what the value prior conditions
  on."""

  features: Array  # float32 [M, F]  frozen features of the prompt
  # float32 [M] the prior's raw V of the prompt, asked before its outcome was seen; NaN = none
  value: Array
  success: Array  # float32 [M]      mean success in [0, 1] of its first k_init rollouts
  count: Array  # int32 []           pairs ever written; row `i % M` was written by pair i


@struct.dataclass
class TrainState:
  """Everything that a run needs to continue; a checkpoint is exactly this.

  What plugs have learnt is kept under their names: a checkpoint without the state of one is no
  error.
  """

  params: Any  # policy parameters, float32
  opt_state: Any  # optax state
  step: Array  # int32 []        steps done
  cursor: Array  # int32 []      prompts taken from the data stream
  rollouts: Array  # int32 []    rollouts generated so far, discarded ones included
  mean_k: Array  # float32 []    running mean of rollouts per prompt
  skipped: Array  # int32 []     updates skipped in a row for a non-finite loss or gradient
  prior: dict[str, Any]  # name of the prior, and of each of its wrappers -> what it has learnt
  budget: dict[str, Any]  # name of the rule -> what it has learnt
  estimator: dict[str, Any]  # name of the baseline -> what it has learnt
  observers: dict[str, Any]  # name of each observer -> what it keeps
  replay: dict[str, Any]  # the rollouts that wait for a further update; empty without replay


# Fields of TrainState that are kept by name.
PLUGS = ("prior", "budget", "estimator", "observers", "replay")
