"""Sizes that follow from memory: the formula beside what the programs' shapes hold, and the choices
for models and machines that need not be here."""

import dataclasses
import functools
import itertools
import types

import jax
import numpy as np
import pytest

from tests import support
from v05_jax import config as configuration
from v05_jax.configs import default, own, v05_qwen3_4b
from v05_jax.models import decoder, lora, presets
from v05_jax.scale import compile as compiling
from v05_jax.scale import distributed, fit, plan, settle
from v05_jax.scale.programs import held
from v05_jax.scale.topology import CHIPS

GB = 1e9
SMALL = "qwen2.5-0.5b"


def accelerator(memory, **axes):
  return fit.Machine("a device", "accelerator", memory, **axes)


def chosen(model, place, **keys):
  config = own.get_config()
  config.update_from_flattened_dict(keys)
  values, found = fit.choose(presets.PRESETS[model], config, place)
  assert found.total(place) <= fit.USABLE[place.kind] * place.memory
  return values


def test_half_a_billion_parameters_on_16_gb():
  values = chosen(SMALL, accelerator(16 * GB))
  assert values["policy.dtype"] == "bfloat16" and values["sampler.slots"] >= 64
  assert values["sampler.open_prompts"] * 4 == 2 * values["sampler.slots"]
  assert values["loss.micro_rows"] >= 1


def test_more_memory_never_chooses_less():
  order = ("sampler.slots", "sampler.open_prompts", "sampler.prefill")
  found = [chosen(SMALL, accelerator(n * GB)) for n in (14, 16, 24, 40, 80)]
  for less, more in itertools.pairwise(found):
    assert all(less[key] <= more[key] for key in order), (less, more)
  assert found[-1]["policy.remat"] == "none" and found[-1]["sampler.slots"] == 128  # all of a step


def test_fewer_slots_go_with_fewer_prompts():
  """What does not fit at first is tried with fewer of all, and not with fewer slots alone."""
  found = [chosen("qwen3-0.6b", accelerator(n * GB)) for n in (17, 20, 24, 80)]
  slots = [x["sampler.slots"] for x in found]
  assert slots[0] < slots[-1] == 128
  assert all(4 * x["sampler.open_prompts"] == 2 * x["sampler.slots"] for x in found)
  assert all(x["sampler.prefill"] > 1 for x in found), found


def test_prompts_fill_the_slots_however_many_rollouts_each_begins_with():
  """`sampler.share` is what a prompt may have in flight at once."""
  groups = {"baseline": "grpo", "budget.k_init": 16, "budget.k_max": 16}
  share = own.get_config().sampler.share
  for rollouts, slots in ((128, 8 * share), (2048, 128 * share)):
    found = chosen(SMALL, accelerator(80 * GB), rollouts_per_step=rollouts, **groups)
    assert found["sampler.slots"] == min(slots, fit.SLOTS) < rollouts
    assert found["sampler.open_prompts"] * share == 2 * found["sampler.slots"]


def test_logits_are_counted_of_all_rows_at_once():
  config = own.get_config()
  config.policy.dtype, config.policy.remat, config.loss.vocab_chunk = "bfloat16", "full", 10**6
  sizes = {"slots": 16, "open_prompts": 8, "prefill": 8, "max_prompt": 100, "max_response": 101}
  config.sampler.update(sizes)
  update, model = [], presets.PRESETS[SMALL]
  for config.loss.micro_rows in (1, 4):
    update.append(fit.need(model, config, accelerator(80 * GB)).update)
  assert update[1] - update[0] > 3 * 200 * 12 * model.vocab_size


def kept(model, c: int, kind: str, rank: int, rows=2, tokens=383) -> float:
  """Bytes a token and layer that the derivative of the forward pass keeps, by its own shapes,
  parameters and copies of them left out."""
  adapters = lora.Lora(rank, 32.0, lora.TARGETS) if rank else None
  dtype = {2: "bfloat16", 4: "float32"}[c]
  config = dataclasses.replace(model, dtype=dtype, backend=kind, remat="none", adapters=adapters)

  def derivative(params, *batch):
    trained, frozen = lora.split(params)
    forward = lambda trained: decoder.forward(config, lora.join(trained, frozen), *batch)
    return jax.vjp(forward, trained)[1]

  params, ids = decoder.shapes(config), jax.ShapeDtypeStruct((rows, tokens), np.int32)
  found = jax.tree.leaves(jax.eval_shape(derivative, params, ids, ids, ids, ids))
  of_rows = [x for x in found if any(n >= tokens and n % tokens == 0 for n in x.shape)]
  assert not any(n % tokens == 0 for x in jax.tree.leaves(params) for n in x.shape)
  return sum(x.size * x.dtype.itemsize for x in of_rows) / (rows * tokens * model.num_layers)


@pytest.mark.parametrize("kind", ["accelerator", "cpu"])
@pytest.mark.parametrize(
  "name, c, rank",
  [
    ("qwen3-0.6b", 2, 0),
    ("qwen3-0.6b", 2, 8),
    ("qwen3-0.6b", 4, 0),
    (SMALL, 2, 0),
    ("smollm2-135m", 4, 0),
    ("gemma-3-270m", 2, 0),
  ],
)
def test_the_formula_holds_what_a_layer_keeps_for_its_backward_pass(name, c, rank, kind):
  model = presets.PRESETS[name]
  by_formula = fit.layer(model, c, 383, kind)
  low, high = (0.9, 1.2) if kind == "accelerator" else (0.8, 1.2)  # adapters keep less of norms
  assert low < by_formula / kept(model, c, kind, rank) < high


def test_four_billion_on_one_chip_are_too_many_and_said_with_what_helps():
  chip = CHIPS["TPU v5 lite"]
  with pytest.raises(ValueError) as error:
    chosen("qwen3-4b", accelerator(chip.memory))
  text = str(error.value)
  assert "a model of 4,022M parameters, which needs at least" in text
  assert "expected at most 16.9 GB, the memory of a device" in text
  assert "lora_rank=32" in text and "mesh.fsdp" in text


def test_four_billion_on_a_slice_fit_about_as_set_by_hand():
  """configs/v05_qwen3_4b.py has 256 slots, 128 open prompts and 4 rows on 32 v5e chips, of which
  the compiler says that they fit."""
  config = v05_qwen3_4b.get_config()
  place = accelerator(CHIPS["TPU v5 lite"].memory, fsdp=8, tensor=4)
  by_hand = fit.need(presets.PRESETS["qwen3-4b"], config, place)
  assert 0.4 * place.memory < by_hand.total(place) < place.memory
  config.update_from_flattened_dict(dict.fromkeys(("sampler.slots", "sampler.open_prompts"), 0))
  values, _ = fit.choose(presets.PRESETS["qwen3-4b"], config, place)
  assert values["sampler.slots"] >= 128 and values["sampler.slots"] % 8 == 0
  assert values["loss.micro_rows"] == 4 and values["policy.remat"] == "full"  # as set


def test_a_tiny_model_on_a_cpu_takes_all_that_a_step_has():
  place = fit.Machine("CPU", "cpu", 2 * GB)
  values = chosen("tasks-58k", place, **{"sampler.max_prompt": 16, "sampler.max_response": 8})
  assert values["policy.dtype"] == "float32" and values["policy.remat"] == "none"
  assert values["sampler.slots"] == 128 and values["loss.micro_rows"] == 64


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("name", ["throughput-s", SMALL])
def test_the_formula_holds_what_the_programs_shapes_say(name, rank):
  """Parameters and optimizer as --mode=compile counts them, within a twentieth; the caches, for
  which a chunk more is counted."""
  config, model = default.get_config(), presets.PRESETS[name]
  config.policy.update({"dtype": "bfloat16", "lora_rank": rank})
  config.sampler.update({"max_prompt": 64, "max_response": 96})
  place = accelerator(16 * GB)
  config.policy.preset = name
  shape = compiling.shape(config.policy, "tpu")
  parts, _ = plan.plan(config, shape, support.mesh(), "tpu")
  sizes = {part: held(tree) for part, tree in parts.items()}
  found = fit.need(model, config, place)
  fixed = sizes["params"] + sizes["optimizer"] + sizes["prior"]
  assert found.fixed == pytest.approx(fixed, rel=0.05)
  held_while_sampling = sum(sizes[part] for part in ("weights", "store", "cache"))
  assert found.sampling >= held_while_sampling
  config.sampler.prefill = 1
  found = fit.need(model, config, place)
  config.sampler.update({"slots": 8, "open_prompts": 8})
  least = fit.need(model, config, place).sampling
  of_logits = 12 * model.vocab_size * (256 - 8)
  cache = sizes["store"] + sizes["cache"]
  assert found.sampling - least - of_logits == pytest.approx(cache, rel=0.2)


def test_what_is_set_by_hand_stays():
  values = chosen(SMALL, accelerator(80 * GB), **{"sampler.slots": 24, "policy.remat": "dots"})
  assert values["sampler.slots"] == 24 and values["policy.remat"] == "dots"
  assert values["sampler.open_prompts"] == 12


def test_what_is_chosen_is_said_and_whole(capsys):
  config = own.get_config()
  assert set(configuration.left_open(config)) == set(configuration.OPEN)
  place = fit.Machine("CPU", "cpu", 4 * GB)
  found = settle.settle_for(config, presets.PRESETS["throughput-s"], place)
  assert not configuration.left_open(found) and configuration.left_open(config)
  said = capsys.readouterr().err
  assert "chosen for 1 x CPU with 4.0 GB and a model of 5M parameters: policy.dtype=" in said
  assert all(f"{key}=" in said for key in configuration.OPEN)


def test_what_a_small_model_needs_is_said_in_megabytes():
  shape, place = presets.PRESETS["throughput-s"], fit.Machine("CPU", "cpu", 4 * GB)
  tiny = fit.Need(fixed=700e3, sampling=12.34e6, update=2.5e9)
  _, line, _ = fit.describe(shape, place, {}, tiny)
  assert "0.7 MB parameters and optimizer, beside them 12.3 MB while sampling and 2.5 GB" in line


def test_a_run_that_goes_on_keeps_what_was_chosen(tmp_path, capsys):
  config = own.get_config()
  place = fit.Machine("CPU", "cpu", 4 * GB)
  saved = settle.settle_for(config, presets.PRESETS["throughput-s"], place)
  (tmp_path / "config.json").write_text(configuration.to_json(saved))
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  capsys.readouterr()
  config.num_steps = 7
  found = settle.settle(config, str(tmp_path))
  assert configuration.flatten(found) == configuration.flatten(saved) | {"num_steps": 7}
  assert not capsys.readouterr().err  # nothing is chosen anew


def test_processes_choose_alike_by_the_least_memory_of_any(capsys, monkeypatch):
  config = own.get_config()
  config.policy.preset = "throughput-s"
  monkeypatch.setattr(distributed, "several", lambda: True)
  monkeypatch.setattr(distributed, "exchange", lambda x: np.append(np.float32([4e9, 64e9]), x))
  found = []
  for mine in (4 * GB, 64 * GB):
    here = mine * jax.local_device_count()
    monkeypatch.setattr(settle, "of_this_machine", functools.partial(float, here))
    found.append(configuration.flatten(settle.settle(config)))
  assert found[0] == found[1] and capsys.readouterr().err.count("with 4.0 GB") == 2


def test_this_machine_is_seen():
  place = settle.machine(default.get_config())
  assert place.kind == "cpu" and place.lanes == jax.device_count()
  assert 1e8 < place.memory * jax.local_device_count() < 1e13


def test_an_accelerator_that_does_not_know_its_memory_leaves_the_choice_to_the_user(monkeypatch):
  device = types.SimpleNamespace(platform="gpu", device_kind="a GPU", memory_stats=lambda: {})
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  with pytest.raises(
    ValueError, match=r"sampler\.slots.*, since a GPU does not say how much memory"
  ):
    settle.machine(own.get_config())


def test_nothing_is_done_where_nothing_is_open(tmp_path):
  config = default.get_config()
  assert settle.settle(config, str(tmp_path)) is config
