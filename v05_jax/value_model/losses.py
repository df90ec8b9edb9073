"""What V0 is trained for: ranking the pairs of a context, and probabilities, as pure functions.

    pair  = mean over pairs of  -log sigmoid(s_pos - s_neg),   s = z1 - z0
    soft  = mean over queries of  -[(1 - t) log p0 + t log p1]
    total = .25 pair + .75 soft

z are logits, p their softmax, t the mean success. This is what V0's paper describes (arXiv
2602.03584); the released trainer loses the flag that says which tasks are of pairs, and minimises
hard cross-entropy instead. The weights of `natural_weights` are ours. m queries stand in the order
positive, negative, positive, negative, ...
"""

import jax
import jax.numpy as jnp


def pair_loss(logits, mask):
  """[]: ranking loss of logits [m, 2] over the pairs that `mask` [m] has both queries of; 0 without
  any."""
  score = logits[:, 1] - logits[:, 0]
  both = jnp.all(mask.reshape(-1, 2), axis=1)
  return _mean(jax.nn.softplus(score[1::2] - score[0::2]), both)


def soft_cross_entropy(logits, target, weight):
  """[]: cross-entropy of logits [m, 2] with the mean success `target` [m] in [0, 1], weighted by
  `weight` [m]."""
  logp = jax.nn.log_softmax(logits)
  return _mean(-((1.0 - target) * logp[:, 0] + target * logp[:, 1]), weight)


def natural_weights(positive, share, mask):
  """[m]: weights that give the queries `positive` [m], half of them, the share of positives that
  their context has.

  Pairs with oversampling show as many successes as failures whatever the context's rate is;
  probabilities learned from them would all be drawn toward one half.
  """
  return jnp.where(positive, share, 1.0 - share) * mask


def total(logits, target, weight, mask, pair_weight):
  """(total, {"pair": [], "soft": []}) of one task: `pair_weight` pair + (1 - pair_weight) soft."""
  logits = jnp.where(mask[:, None], logits, 0.0)  # padding may hold anything
  pair, soft = pair_loss(logits, mask), soft_cross_entropy(logits, target, weight)
  return pair_weight * pair + (1.0 - pair_weight) * soft, {"pair": pair, "soft": soft}


def _mean(x, weight):
  count = jnp.sum(weight)
  return jnp.sum(jnp.where(weight > 0, x, 0.0) * weight) / jnp.where(count > 0, count, 1.0)
