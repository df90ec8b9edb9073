"""How well a V0 predicts collected pairs: each context's queries from other pairs of the same
context; on host."""

from collections.abc import Sequence
import io
import sys
from typing import NamedTuple

import numpy as np

from v05_jax.run import files
from v05_jax.value_model import scores
from v05_jax.value_model.pairs import TYPES, Context, split


class Predictions(NamedTuple):
  """The queries of some contexts, [n] each."""

  p: np.ndarray  # float32  predicted probability of success
  t: np.ndarray  # float32  mean success seen
  context: np.ndarray  # int32  number of the context
  prompt: np.ndarray  # int32  index of the text


def predict(
  model, texts: Sequence[str], contexts: Sequence[Context], support: int, seed: int = 0
) -> Predictions:
  """What `model`, a `ValuePrior`, says of each context's queries from at most `support` of its
  other pairs.

  Queries are the pairs of type test_query, or, in a context without marked ones, those of a half of
  its prompts, drawn by `seed`; contexts without any are left out.
  """
  used = np.unique(np.concatenate([c.prompt for c in contexts]))
  features = np.zeros((len(texts), model.width), np.float32)
  features[used] = model.features([texts[i] for i in used])
  parts = []
  for number, context in enumerate(contexts):
    rng = np.random.default_rng([seed, number])
    asked, given = split(context, TYPES.index("test_query"), rng)
    given = rng.choice(given, min(support, len(given)), replace=False)
    marks = model.marks(
      [texts[i] for i in context.prompt[given]], [texts[i] for i in context.prompt[asked]]
    )
    p = model.predict_from_features(
      features[context.prompt[given]], context.score[given], features[context.prompt[asked]], marks
    )
    parts.append(
      (p, context.score[asked], np.full(len(asked), number, np.int32), context.prompt[asked])
    )
  return Predictions(*(np.concatenate(x) for x in zip(*parts)))


def summary(found: Predictions) -> dict[str, float]:
  """The measures of `scores` over all pairs: gauc is inside a context, pairs are of one prompt in
  two contexts."""
  positive = found.t >= 0.5
  both = np.stack([found.context, found.prompt], 1)
  _, place, times = np.unique(both, axis=0, return_inverse=True, return_counts=True)
  # A prompt that a context has twice has one prediction there, and is no pair.
  once = times[place.reshape(-1)] == 1
  key = [prompt if single else None for prompt, single in zip(found.prompt.tolist(), once)]
  strict, ranking, _ = scores.pair_accuracy(found.p, positive, key)
  return {
    "auc": scores.auc(found.p, positive),
    "gauc": scores.grouped_auc(found.p, positive, found.context.tolist()),
    "rmse": scores.rmse(found.p, found.t),
    "ece": scores.ece(found.p, found.t),
    "pair_strict": strict,
    "pair_ranking": ranking,
  }


def plot(found: Predictions, path):
  """Draws the reliability of the probabilities and their distribution to an image."""
  try:
    from matplotlib.figure import Figure
  except ImportError:
    print(f"{path.name}: not drawn without matplotlib (pip install matplotlib)", file=sys.stderr)
    return
  share, predicted, seen = scores.reliability(found.p, found.t).T
  figure = Figure(figsize=(4.5, 4.5), layout="constrained")
  axes = figure.add_subplot(
    xlabel="predicted probability of success", ylabel="mean success", xlim=(0, 1), ylim=(0, 1)
  )
  axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
  axes.bar(
    (np.arange(len(share)) + 0.5) / len(share), share, 1 / len(share), color="tab:blue", alpha=0.2
  )
  axes.plot(predicted, seen, "o-", color="tab:blue")
  axes.set_title(
    f"{len(found.p):,} prompts: ECE {scores.ece(found.p, found.t):.3f}; bars: their share",
    fontsize=9,
  )
  drawn = io.BytesIO()
  figure.savefig(drawn, dpi=120)
  files.replace(path, drawn.getvalue())
