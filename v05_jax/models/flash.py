"""Attention of the training pass by the backends' own kernels, which never hold the scores [T, T]
of a head.

    splash  TPU: jax.experimental.pallas.ops.tpu.splash_attention; skips blocks above the diagonal
    cudnn   NVIDIA GPUs: jax.nn.dot_product_attention(implementation="cudnn"), bfloat16 only

The compiler cannot split a kernel over devices: see `sharding.split`. On a CPU, models/cpu.py does
the same with blocks of its own.
"""

import jax
import jax.numpy as jnp

KERNELS = {"tpu": "splash", "gpu": "cudnn"}  # backend of JAX -> its kernel
NAME = "attention"  # what remat="attention" keeps is called so
TILE = 128  # the tokens of a row are padded to a multiple of it, for a TPU
BLOCKS = (512, 256, TILE)  # sizes of a block of queries and keys: the first that divides the row


def attend(kernel: str, q, k, v, segments, interpret: bool = False):
  """Grouped-query attention `softmax(q k / sqrt(Dh)) v` of tokens to their own segment up to
  themselves.

  q [N, T, KV, G, Dh], k and v [N, T, KV, Dh], segments int32 [N, T] -> [N, T, KV, G, Dh]. Segment 0
  is a segment too.

  kernel: of `KERNELS`. interpret: run splash on any backend, slowly.
  """
  return _splash(q, k, v, segments, interpret) if kernel == "splash" else _cudnn(q, k, v, segments)


def _splash(q, k, v, segments, interpret):
  from jax.experimental.pallas.ops.tpu import splash_attention

  shape = q.shape
  missing = -shape[1] % TILE
  q = q.reshape(*shape[:2], -1, shape[-1]) * shape[-1] ** -0.5
  # [N, H, T, Dh]
  q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q, k, v))
  segments = jnp.pad(segments, ((0, 0), (0, missing)))
  ids = splash_attention.SegmentIds(q=segments, kv=segments)
  out = jax.vmap(_kernel(q.shape[1], q.shape[2], interpret))(
    q.astype(k.dtype), k, v, segment_ids=ids
  )
  return out.swapaxes(1, 2)[:, : shape[1]].reshape(shape)


def _kernel(heads: int, tokens: int, interpret: bool):
  """Splash attention for `heads` query heads of rows of `tokens`."""
  from jax.experimental.pallas.ops.tpu import splash_attention

  block = next(size for size in BLOCKS if tokens % size == 0)
  names = (
    "block_q",
    "block_kv",
    "block_kv_compute",
    "block_q_dkv",
    "block_kv_dkv",
    "block_kv_dkv_compute",
    "block_q_dq",
    "block_kv_dq",
  )
  mask = splash_attention.splash_attention_mask.MultiHeadMask(
    [splash_attention.CausalMask((tokens, tokens)) for _ in range(heads)]
  )
  return splash_attention.make_splash_mha_single_device(
    mask,
    block_sizes=splash_attention.BlockSizes(**dict.fromkeys(names, block)),
    residual_checkpoint_name=NAME,
    interpret=interpret,
  )


def _cudnn(q, k, v, segments):
  index = jnp.arange(q.shape[1])
  mask = (segments[:, :, None] == segments[:, None]) & (index[:, None] >= index)
  out = jax.nn.dot_product_attention(
    q.reshape(*q.shape[:2], -1, q.shape[-1]), k, v, mask=mask[:, None], implementation="cudnn"
  )
  return out.reshape(q.shape)
