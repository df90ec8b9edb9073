"""Attention of the training pass by the backends' own kernels, which never hold the scores [T, T]
of every head.

    splash  TPU: jax.experimental.pallas.ops.tpu.splash_attention; skips blocks above the diagonal
            and behind a window
    cudnn   NVIDIA GPUs: jax.nn.dot_product_attention(implementation="cudnn"), bfloat16 only, heads
            of at most 128 (256 from Hopper on); is given the mask as a bias [N, 1, T, T], one for
            all heads, and skips nothing

The compiler cannot split a kernel over devices: see `sharding.split`. On a CPU, models/cpu.py does
the same with blocks of its own.
"""

import jax
import jax.numpy as jnp

KERNELS = {"tpu": "splash", "gpu": "cudnn"}  # backend of JAX -> its kernel
NAME = "attention"  # name of the values that remat="attention" keeps
TILE = 128  # the tokens of a row are padded to a multiple of it, for a TPU
EVEN = 64  # the same for cuDNN, whose backward pass refuses masked rows of an odd length
BLOCKS = (512, 256, TILE)  # sizes of a block of queries and keys; larger ones are faster
SLACK = 1 / 8  # of a row, at most, that is padded for the sake of a larger block


def check(config) -> None:
  """Raises ValueError, naming the key of `config.policy`, for a ModelConfig whose kernel cannot
  compute it on any device."""
  if config.attention == "cudnn" and (config.head_dim % 8 or config.head_dim > 256):
    raise ValueError(
      f"config.policy.attention: found 'flash' for heads of {config.head_dim}, for which cuDNN's "
      "kernel has no form (multiples of 8 up to 256): set it to plain"
    )


def attend(kernel, q, k, v, segments, interpret: bool = False):
  """Grouped-query attention `softmax(q k / sqrt(Dh)) v` of tokens to their own segment up to
  themselves.

  q [N, T, KV, G, Dh], k and v [N, T, KV, Dh], segments int32 [N, T] -> [N, T, KV, G, Dh]. Segment 0
  is a segment too.

  kernel: of `KERNELS`, or a pair of it and a window: then tokens see as many of the newest tokens
  of their segment, themselves among them. interpret: run splash on any backend, slowly. Raises
  ValueError for shapes that cuDNN cannot compute on this device.
  """
  name, window = (kernel, None) if isinstance(kernel, str) else kernel
  if name == "splash":
    return _splash(q, k, v, segments, window, interpret)
  return _cudnn(q, k, v, segments, window)


def choose(whole, near):
  """Attention for models with local layers: (q, k, v, segments, local int32 []) -> out, by `near`
  where local is 1, and by `whole` where it is 0."""
  return lambda *qkvs_local: jax.lax.cond(qkvs_local[-1] == 1, near, whole, *qkvs_local[:-1])


def _splash(q, k, v, segments, window, interpret):
  from jax.experimental.pallas.ops.tpu import splash_attention

  shape = q.shape
  size = block(shape[1])
  missing = -shape[1] % size
  q = q.reshape(*shape[:2], -1, shape[-1]) * shape[-1] ** -0.5
  # [N, H, T, Dh]
  q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q, k, v))
  segments = jnp.pad(segments, ((0, 0), (0, missing)))
  ids = splash_attention.SegmentIds(q=segments, kv=segments)
  out = jax.vmap(_kernel(q.shape[1], q.shape[2], size, window, interpret))(
    q.astype(k.dtype), k, v, segment_ids=ids
  )
  return out.swapaxes(1, 2)[:, : shape[1]].reshape(shape)


def block(tokens: int) -> int:
  """The largest of BLOCKS to whole ones of which a row can be padded without much more than TILE
  asks for."""
  padded = lambda size: -(-tokens // size) * size
  return next(size for size in BLOCKS if padded(size) <= (1 + SLACK) * padded(TILE))


def _kernel(heads: int, tokens: int, size: int, window: int | None, interpret: bool):
  """Splash attention for `heads` query heads of rows of `tokens`, whole blocks of `size`."""
  from jax.experimental.pallas.ops.tpu import splash_attention

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
  square = tokens, tokens
  mask = (
    splash_attention.LocalMask(square, (window - 1, 0), 0)
    if window
    else splash_attention.CausalMask(square)
  )
  mask = splash_attention.splash_attention_mask.MultiHeadMask([mask] * heads)
  return splash_attention.make_splash_mha_single_device(
    mask,
    block_sizes=splash_attention.BlockSizes(**dict.fromkeys(names, size)),
    residual_checkpoint_name=NAME,
    interpret=interpret,
  )


def _cudnn(q, k, v, segments, window):
  shape, missing = q.shape, -q.shape[1] % EVEN
  q = q.reshape(*shape[:2], -1, shape[-1])
  q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (q, k, v))
  segments = jnp.pad(segments, ((0, 0), (0, missing)))
  index = jnp.arange(q.shape[1])
  behind = index[:, None] - index
  mask = (segments[:, :, None] == segments[:, None]) & (behind >= 0)
  mask = mask & (behind < window) if window else mask
  try:
    out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="cudnn")
  except NotImplementedError as error:  # depends on the device
    raise ValueError(
      f"config.policy.attention: found 'flash', which cuDNN cannot compute here: {error} Set it to "
      "plain"
    ) from error
  return out[:, : shape[1]].reshape(shape)
