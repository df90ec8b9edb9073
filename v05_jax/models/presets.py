"""Named model shapes: two for the built-in tasks, one for tests, two for measurements, and the
published Qwen3 sizes.

The Qwen3 numbers are those of the config.json files that the Qwen team published with the models
(`Qwen/Qwen3-0.6B` and so on); `num_params` of each equals the published model's parameter count.
"""

from v05_jax.models.decoder import ModelConfig

# Characters are few and rollouts short: a small rope_theta turns the slowest pair within their
# length.
_TASKS = {
  "vocab_size": 32,
  "num_heads": 4,
  "num_kv_heads": 2,
  "rope_theta": 100.0,
  "max_positions": 512,
}
_QWEN3 = {"vocab_size": 151936, "num_kv_heads": 8, "head_dim": 128, "rope_theta": 1e6}

PRESETS: dict[str, ModelConfig] = {
  "tiny": ModelConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=32,
    rope_theta=5e6,
    max_positions=512,
  ),
  "tasks-58k": ModelConfig(
    hidden_size=48, num_layers=2, head_dim=12, intermediate_size=148, **_TASKS
  ),
  "tasks-150k": ModelConfig(
    hidden_size=64, num_layers=3, head_dim=16, intermediate_size=192, **_TASKS
  ),
  # The policies of experiments/throughput: 4.8M and 62M parameters.
  "throughput-s": ModelConfig(
    vocab_size=512,
    hidden_size=256,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    intermediate_size=768,
  ),
  "throughput-l": ModelConfig(
    vocab_size=512,
    hidden_size=768,
    num_layers=9,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    intermediate_size=2304,
  ),
  "qwen3-0.6b": ModelConfig(
    hidden_size=1024, num_layers=28, num_heads=16, intermediate_size=3072, **_QWEN3
  ),
  "qwen3-1.7b": ModelConfig(
    hidden_size=2048, num_layers=28, num_heads=16, intermediate_size=6144, **_QWEN3
  ),
  "qwen3-4b": ModelConfig(
    hidden_size=2560, num_layers=36, num_heads=32, intermediate_size=9728, **_QWEN3
  ),
  "qwen3-8b": ModelConfig(
    hidden_size=4096,
    num_layers=36,
    num_heads=32,
    intermediate_size=12288,
    tie_embeddings=False,
    **_QWEN3,
  ),
  # The backbone of V0.
  "qwen3-embedding-0.6b": ModelConfig(
    hidden_size=1024,
    num_layers=28,
    num_heads=16,
    intermediate_size=3072,
    **(_QWEN3 | {"vocab_size": 151669}),
  ),
  "qwen3-4b-instruct-2507": ModelConfig(
    hidden_size=2560,
    num_layers=36,
    num_heads=32,
    intermediate_size=9728,
    max_positions=262144,
    **(_QWEN3 | {"rope_theta": 5e6}),
  ),
}


def num_params(config: ModelConfig) -> int:
  """Parameters of a shape: an untied head counts, a tied one does not."""
  c = config
  attention = 2 * c.hidden_size * c.head_dim * (c.num_heads + c.num_kv_heads) + 2 * c.head_dim
  mlp = 3 * c.hidden_size * c.intermediate_size
  embeddings = (1 if c.tie_embeddings else 2) * c.vocab_size * c.hidden_size
  return embeddings + c.num_layers * (attention + mlp + 2 * c.hidden_size) + c.hidden_size
