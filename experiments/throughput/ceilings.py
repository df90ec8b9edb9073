"""What this machine can do: matmul and copy rates, by XLA or by torch, as one JSON line.

    python -m experiments.throughput.ceilings --backend=xla [--devices=2] [--dtype=bfloat16]

The shapes are a large square, the layers of both policies over a training batch, and one decode
step of 64 or 256 rows. The best repetition counts: a ceiling is what was seen once. With several
devices every one multiplies, or copies, its share of the rows.
"""

import argparse
from functools import partial
import json
import time

SHAPES = {  # rows, inner, columns
  "square": (2048, 2048, 2048),
  "train s": (12288, 256, 768),
  "train l": (12288, 768, 2304),
  "decode 64 s": (64, 256, 768),
  "decode 256 s": (256, 256, 768),
  "decode 64 l": (64, 768, 2304),
}
LARGE = {
  "square": (8192, 8192, 8192),
  "train 1.7b": (16384, 2048, 6144),
  "decode 64 1.7b": (64, 2048, 6144),
}
SMALL = {"square": (1024, 1024, 1024)}
WORK = 2e8  # FLOPs of one timed call at least: small products are repeated inside of it
COPIED = {"cpu": 1 << 28, "large": 1 << 30, "small": 1 << 24}  # numbers of an array that is copied


def best(call, seconds: float) -> float:
  """The fastest of the calls that fit into `seconds`, three at least, after two to warm up."""
  call()
  call()
  fastest, count, end = float("inf"), 0, time.perf_counter() + seconds
  while count < 3 or time.perf_counter() < end:
    began = time.perf_counter()
    call()
    fastest, count = min(fastest, time.perf_counter() - began), count + 1
  return fastest


def by_xla(args, shapes, numbers: int) -> dict:
  import jax

  if args.devices:
    jax.config.update("jax_num_cpu_devices", args.devices)
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  mesh = jax.make_mesh((len(jax.devices()),), ("data",))
  rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
  normal = jax.jit(
    lambda m, n: jax.random.normal(jax.random.key(0), (m, n), args.dtype), static_argnums=(0, 1)
  )
  found = {}

  @partial(jax.jit, static_argnums=2)
  def products(a, b, inner):
    if inner == 1:
      return a @ b
    # Different matrices in turn, so that the compiler cannot move the product out of the loop.
    some = jnp.stack([b] * 4)
    return jax.lax.fori_loop(0, inner, lambda i, s: s + a @ some[i % 4], jnp.zeros_like(a @ b))

  for name, (m, k, n) in shapes.items():
    a, b, inner = (
      jax.device_put(normal(m, k), rows),
      jax.device_put(normal(k, n), whole),
      repeats(m, k, n),
    )
    call = lambda a=a, b=b, inner=inner: products(a, b, inner).block_until_ready()
    found[name] = 2 * m * k * n * inner / best(call, args.seconds) / 1e9
  x = jax.device_put(jnp.ones((numbers,), args.dtype), rows)
  copy = jax.jit(lambda x: x + 1)
  traffic = 2 * x.nbytes / best(lambda: copy(x).block_until_ready(), args.seconds)
  devices = jax.devices()
  about = {
    "backend": f"jax {jax.__version__}",
    "platform": devices[0].platform,
    "devices": len(devices),
  }
  return about | rounded(found, traffic)


def by_torch(args, shapes, numbers: int) -> dict:
  import torch

  torch.manual_seed(0)
  device, dtype, found = args.device, getattr(torch, args.dtype), {}
  wait = torch.cuda.synchronize if device == "cuda" else lambda: None
  for name, (m, k, n) in shapes.items():
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
    out, inner = torch.empty(m, n, device=device, dtype=dtype), repeats(m, k, n)

    def products(a=a, b=b, out=out, inner=inner):
      for _ in range(inner):
        torch.mm(a, b, out=out)
      wait()

    found[name] = 2 * m * k * n * inner / best(products, args.seconds) / 1e9
  source = torch.ones(numbers, device=device, dtype=dtype)
  target = torch.empty_like(source)

  def copy():
    target.copy_(source)
    wait()

  traffic = 2 * source.element_size() * numbers / best(copy, args.seconds)
  threads = 1 if device == "cuda" else torch.get_num_threads()
  return {
    "backend": f"torch {torch.__version__}",
    "platform": device,
    "devices": threads,
    **rounded(found, traffic),
  }


def repeats(m: int, k: int, n: int) -> int:
  return max(1, int(WORK / (2 * m * k * n)))


def rounded(gflops: dict, traffic: float) -> dict:
  return {
    "matmul_gflops": {name: round(x, 1) for name, x in gflops.items()},
    "copy_gbytes": round(traffic / 1e9, 2),
  }


def main():
  p = argparse.ArgumentParser()
  p.add_argument("--backend", required=True, choices=("xla", "torch"))
  p.add_argument(
    "--devices", type=int, default=0, help="forced host devices (xla on CPU); 0 = as they are"
  )
  p.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of torch")
  p.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  p.add_argument("--scale", default="cpu", choices=tuple(COPIED), help="large is for accelerators")
  p.add_argument("--seconds", type=float, default=1.0, help="for each figure")
  args = p.parse_args()
  shapes = {"cpu": SHAPES, "large": LARGE, "small": SMALL}[args.scale]
  measure = by_xla if args.backend == "xla" else by_torch
  print(json.dumps(measure(args, shapes, COPIED[args.scale])), flush=True)


if __name__ == "__main__":
  main()
