"""Training of a V0 (`--mode=value`): it learns to use its context, resumes bit for bit, and touches
what it should."""

import dataclasses
import functools
import json
from pathlib import Path
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from v05_jax import tasks, value_model
from v05_jax.configs import default
from v05_jax.run import metrics
from v05_jax.value_model import batches, convert, initial, measure, objective, pairs, tabpfn, train

DATA = Path(__file__).parent / "data" / "v0"


def write_pairs(path, seeds, count=120):
  """Contexts of strong and of weak policies, turn by turn, all of which find two of the families
  easier. Four rollouts a prompt."""
  lines, prompts = [], {}
  for seed in seeds:
    rng = np.random.default_rng(seed)
    rows = tasks.rows("train", count, seed, ("add", "sub", "mod", "sort"))
    for i, row in enumerate(rows):
      success = (
        rng.binomial(4, 0.15 + 0.4 * (seed % 2) + 0.3 * (row["family"] in ("add", "sort"))) / 4
      )
      prompts[f"tasks{seed}_{i}"] = row["prompt"]
      lines.append(
        {"id": i, "dataset": f"tasks{seed}", "model": "m", "step": seed, "score": 2 * success - 1}
      )
  path.mkdir(parents=True, exist_ok=True)
  (path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (path / "prompts.json").write_text(json.dumps(prompts))
  return str(path)


def make_config(**options):
  c = default.get_config()
  c.value.update(
    {
      "steps": 60,
      "tasks": 4,
      "support": 40,
      "pairs": 16,
      "queries": 5,
      "width": 3,
      "heads": 1,
      "bottleneck": 8,
      "embed": 16,
      "layers": 2,
      "attention_heads": 2,
      "group": 16,
      "thinking": 2,
      "learning_rate": 1e-2,
      **options,
    }
  )
  c.eval.period, c.checkpoint.period = 0, 30
  c.mesh.data = 1
  return c


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("pairs")
  return {
    "train": write_pairs(folder / "train", range(40)),
    "heldout": write_pairs(folder / "heldout", range(50, 58)),
  }


@pytest.fixture(scope="module", autouse=True)
def cheap():
  """A mesh of the first device, for the others would only wait; and programs that compile faster to
  slower code."""
  make, jit = train.sharding.make_mesh, jax.jit

  def fast(f=None, **options):
    level = {"xla_backend_optimization_level": 0}
    return jit(f, compiler_options=level, **options) if f else functools.partial(fast, **options)

  with pytest.MonkeyPatch.context() as patch:
    one = lambda config: make(config, jax.devices()[: config.data] if config.data > 0 else None)
    patch.setattr(train.sharding, "make_mesh", one)
    for module in (train, objective, initial):
      patch.setattr(module, "jax", types.SimpleNamespace(**vars(jax) | {"jit": fast}))
    yield


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
  """(workdir, model, its held-out predictions) of a run with a checkpoint in the middle."""
  workdir = tmp_path_factory.mktemp("value")
  config = make_config(data=data["train"], heldout=data["heldout"])
  model = train.train_value(config, str(workdir))
  return workdir, model, train.make_evaluation(config, model, None)(model)


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def test_it_learns_what_is_hard_and_reads_its_context(run, data):
  """Easier families are ranked above the others, and the probabilities are those of the context:
  strong or weak."""
  workdir, model, found = run
  losses = [line["value/loss"] for line in metrics.read(workdir)]
  assert np.mean(losses[-10:]) < np.mean(losses[:5]) - 0.05
  by_context = np.array([found.p[found.context == i].mean() for i in range(8)])
  assert by_context[1::2].min() > by_context[::2].max() + 0.2  # of strong policies; .4 in truth
  scored = measure.summary(found)
  assert scored["gauc"] > 0.65 and scored["ece"] < 0.1
  texts, contexts = pairs.read([data["heldout"]])
  turned = measure.predict(model, texts, [c._replace(score=1 - c.score) for c in contexts], 40)
  np.testing.assert_array_equal(turned.prompt, found.prompt)
  assert (
    np.corrcoef([turned.p[turned.context == i].mean() for i in range(8)], by_context)[0, 1] < -0.8
  )


def test_a_run_resumes_bit_for_bit(run, tmp_path):
  workdir, model, _ = run
  again = tmp_path / workdir.name
  shutil.copytree(workdir, again)
  shutil.rmtree(again / "checkpoints" / "60")
  lines = (again / "metrics.jsonl").read_text().splitlines(True)
  (again / "metrics.jsonl").write_text("".join(lines[:40]) + '{"torn')
  config = json.loads((workdir / "config.json").read_text())["value"]
  resumed = train.train_value(
    make_config(data=config["data"], heldout=config["heldout"]), str(again)
  )
  equal(model.adapter, resumed.adapter)
  equal(model.head, resumed.head)
  timeless = lambda path: [
    {k: v for k, v in x.items() if not k.startswith("time/")} for x in metrics.read(path)
  ]
  assert timeless(again) == timeless(workdir)
  assert [x["step"] for x in metrics.read(again)] == list(range(1, 61))


def test_what_it_writes_opens_and_predicts(run, data):
  workdir, model, _ = run
  assert sorted(p.name for p in (workdir / "v0").iterdir()) == [
    "adapter.safetensors",
    "head.safetensors",
    "v0.json",
  ]
  loaded = value_model.load(str(workdir / "v0"))
  texts, contexts = pairs.read([data["heldout"]])
  given = [texts[i] for i in contexts[0].prompt[:40]], contexts[0].score[:40], texts[:30]
  p = loaded.predict(*given)
  np.testing.assert_array_equal(p, model.predict(*given))
  assert np.all((p > 0) & (p < 1)) and p.std() > 0
  line = metrics.read(workdir)[-1]
  assert 0 <= line["value/heldout/gauc"] <= 1 and line["value/heldout/rmse"] > 0
  assert (workdir / "reliability.png").stat().st_size > 5000


def test_an_official_model_learns_in_its_adapter_alone(data, tmp_path):
  """Four estimators; head and backbone stay. That the gradient reaches all features is shown by
  test_tabpfn."""
  convert.convert(
    str(DATA / "v0_checkpoint.pt"),
    str(DATA / "tabpfn-v2.5-tiny.ckpt"),
    str(DATA / "backbone"),
    str(tmp_path / "official"),
    heads=3,
    table="torch",
  )
  config = make_config(
    data=data["train"],
    start=str(tmp_path / "official"),
    train="adapter",
    tasks=1,
    support=20,
    pairs=4,
  )
  trainer = train.make(config)
  assert list(trainer.state.params) == ["adapter"]
  state, measured = trainer.step(trainer.state, 0)
  assert measured["value/grad_norm"][0] > 0
  assert all(
    np.any(x != y) for x, y in zip(state.params["adapter"].values(), trainer.model.adapter.values())
  )
  train.save(train.with_params(trainer.model, state.params), tmp_path / "trained")
  found = value_model.load(str(tmp_path / "trained"))
  # the licences' notice too
  assert found.settings == value_model.load(str(tmp_path / "official")).settings
  assert (
    found.settings["estimators"] == 4
    and (tmp_path / "trained" / "backbone" / "model.safetensors").exists()
  )
  equal(found.head, trainer.model.head)
  equal(found.params, trainer.model.params)


def test_hidden_states_kept_or_computed_again_are_the_same(data, monkeypatch):
  config = make_config(data=data["train"])
  model, mesh = train.begin(config), train.sharding.make_mesh(config.mesh)
  texts, prompt = pairs.read([data["train"]])[0], np.arange(150) % 97
  kept = objective.make_lookup(model, texts, mesh)
  monkeypatch.setattr(objective, "TABLE_BYTES", 0)
  again = objective.make_lookup(model, texts, mesh)
  assert again["table"] is None and kept["params"] is None
  value = lambda params, lookup: jnp.sum(objective.features(model, params, lookup, prompt) ** 2)
  (x, dx), (y, dy) = (
    jax.jit(jax.value_and_grad(value))(model.adapter, lookup) for lookup in (kept, again)
  )
  np.testing.assert_allclose(x, y, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), dx, dy)


def test_the_loss_is_put_together_from_its_options(data):
  """Against its parts by hand, one task; every option that shapes the loss changes it."""
  config = make_config(
    data=data["train"], tasks=1, support=20, pairs=4, dropout=False, pair_weight=0.4
  )
  model = train.begin(config)
  draw = np.random.default_rng(0)  # a new head does not look at its rows yet
  head = {
    name: x + draw.normal(0, 0.2, x.shape).astype(np.float32) for name, x in model.head.items()
  }
  model = dataclasses.replace(model, head=head)
  texts, contexts = pairs.read([data["train"]])
  batch = batches.Tasks(contexts, 20, 4, 0).batch(0, 1)
  lookup = objective.make_lookup(model, texts, train.sharding.make_mesh(config.mesh))
  params, key = {"adapter": model.adapter, "head": model.head}, jax.random.key(3)

  def value(**options):
    changed = config.value.copy_and_resolve_references()
    changed.update(options)
    return jax.jit(objective.pairs_loss(model, changed))(params, lookup, batch, key)

  found, parts = value()
  x = model.features([texts[i] for i in batch.prompt[0]])
  marks = jax.random.split(jax.random.split(key)[1], 1)[0]
  z = jax.jit(
    lambda head, x: objective.logits(
      head, model.settings, x, batch.score[0, :20], (None, None), marks
    )
  )(model.head, x)
  target = batch.score[0, 20:]
  weight = np.where(target >= 0.5, batch.share[0], 1 - batch.share[0])
  p = jax.nn.softmax(z)[:, 1]
  soft = -np.sum(weight * (target * np.log(p) + (1 - target) * np.log(1 - p))) / weight.sum()
  s = np.asarray(z[:, 1] - z[:, 0])
  pair = np.mean(np.log1p(np.exp(s[1::2] - s[::2])))
  np.testing.assert_allclose(
    [found, parts["pair"], parts["soft"]], [0.4 * pair + 0.6 * soft, pair, soft], rtol=1e-4
  )
  # new, it says 0 whatever is dropped
  weight = jax.random.normal(key, model.adapter["generator.4.weight"].shape)
  params["adapter"] = model.adapter | {"generator.4.weight": weight}
  plain = value(natural=False)
  assert abs(plain[1]["soft"] - soft) > 1e-4
  assert abs(value(natural=False, dropout=True)[0] - plain[0]) > 1e-6


def test_what_decays_and_how_the_rate_goes():
  options = make_config(
    steps=10, warmup=0.2, learning_rate=1.0, weight_decay=0.5, clip_norm=1e9
  ).value
  params = {
    name: jnp.ones(2)
    for name in ("a.weight", "a.bias", "ln_q.weight", "ln_kv.weight", "generator.1.weight")
  }
  optimizer = train.make_optimizer(options)
  state, changes = optimizer.init(params), []
  for _ in range(10):
    updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    changes.append({name: float(x[0]) for name, x in updates.items()})
  assert all(x[name] == 0 for x in changes for name in ("a.bias", "ln_q.weight", "ln_kv.weight"))
  rates = np.array([-x["a.weight"] / 0.5 for x in changes])
  np.testing.assert_allclose(rates[:3], [1 / 3, 2 / 3, 1.0], rtol=1e-5)
  assert np.all(np.diff(rates[2:]) < 0) and rates[-1] < 0.1 and changes[0]["generator.1.weight"] < 0
  options.warmup = 0.0
  first = train.make_optimizer(options)
  np.testing.assert_allclose(
    first.update(params, first.init(params), params)[0]["a.bias"], -1.0, rtol=1e-3
  )


def test_updates_that_keep_failing_stop_the_run(data, tmp_path, monkeypatch):
  """With a loss that is never finite, and that compiles at once."""

  def broken(params, lookup, batch, key):
    loss = jnp.nan * sum(jnp.sum(x) for x in jax.tree.leaves(params))
    return loss, {"pair": loss, "soft": loss}

  monkeypatch.setattr(objective, "pairs_loss", lambda model, options: broken)
  config = make_config(data=data["train"])
  config.loss.max_skipped, config.checkpoint.period = 2, 2
  with pytest.raises(
    FloatingPointError, match="3 updates in a row had a non-finite loss or gradient"
  ):
    train.train_value(config, str(tmp_path))
  assert not (tmp_path / "v0").exists() and not (tmp_path / "checkpoints").exists()
  assert [line["value/grad_norm"] for line in metrics.read(tmp_path)][:2] == [None] * 2
  config.value.steps = 3  # of which the last is the one too many
  with pytest.raises(FloatingPointError, match="the last one at step 3"):
    train.train_value(config, str(tmp_path / "short"))
  assert not (tmp_path / "short" / "v0").exists()


def test_other_pairs_are_no_continuation(run, data, tmp_path):
  again = tmp_path / "again"
  shutil.copytree(run[0], again)
  shutil.rmtree(again / "checkpoints" / "60")
  folder = shutil.copytree(data["train"], tmp_path / "pairs")
  config = json.loads((again / "config.json").read_text())
  config["value"]["data"] = str(folder)
  (again / "config.json").write_text(json.dumps(config))
  lines = (folder / "pairs.jsonl").read_text().splitlines(True)
  (folder / "pairs.jsonl").write_text("".join(lines[:-1]))
  with pytest.raises(ValueError, match=r"config\.value\.data: found other pairs than those"):
    train.train_value(make_config(data=str(folder), heldout=data["heldout"]), str(again))


def test_other_weights_are_no_continuation(run, data, tmp_path):
  """Of the model that the training began with, whose parts it reads again."""
  start, workdir = shutil.copytree(run[0] / "v0", tmp_path / "start"), tmp_path / "workdir"
  c = make_config(data=data["train"], start=str(start), train="adapter", steps=2)
  c.checkpoint.period = 1
  train.train_value(c, str(workdir))
  shutil.rmtree(workdir / "checkpoints" / "2")
  file = start / "head.safetensors"
  whole = file.read_bytes()
  file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  with pytest.raises(ValueError, match=r"config.value.start: found weights with the digest"):
    train.train_value(c, str(workdir))


def test_heldout_pairs_are_apart_from_those_learnt_from(caplog):
  def both(*contexts):
    texts = [f"{i}+1" for i in range(9)]
    made = [
      pairs.Context(
        ("f", "d", "m", step), *map(np.array, (prompt, np.arange(len(prompt)) / 9, kind))
      )
      for step, (prompt, kind) in enumerate(contexts)
    ]
    return texts, made

  learnt = both(([0, 1, 2, 3], [0] * 4), ([4, 5, 6], [0, 1, 2]))
  train.check_apart("h", both(([7, 8], [0, 0])), learnt)
  train.check_apart("h", both(([4, 5, 6], [0, 1, 2])), learnt)  # marked: 6 alone is asked about
  assert not caplog.records
  train.check_apart("h", both(([7, 3, 5, 6], [0] * 4)), learnt)
  (said,) = (record.getMessage() for record in caplog.records)
  assert said.startswith("value.heldout=h: 2 of 4 prompts are among those of value.data")
  with pytest.raises(ValueError, match=r"heldout: found the pairs of m at step 1, which config"):
    train.check_apart("h", both(([7, 8], [0, 0]), ([0, 1, 2, 3], [0] * 4)), learnt)


def test_other_texts_are_other_pairs(data, tmp_path):
  folder = shutil.copytree(data["train"], tmp_path / "train")
  file = folder / pairs.PROMPTS
  file.write_text(file.read_text().replace("=", "*"))
  found = [train.make(make_config(data=str(x))).state.digest for x in (data["train"], folder)]
  assert found[0] != found[1]


def test_a_heldout_text_that_cannot_be_read_is_named_before_the_training(data, tmp_path):
  folder = shutil.copytree(data["heldout"], tmp_path / "heldout")
  texts = json.loads((folder / "prompts.json").read_text())
  (folder / "prompts.json").write_text(json.dumps(dict.fromkeys(texts, "ß")))
  with pytest.raises(ValueError, match="ß"):
    train.make(make_config(data=data["train"], heldout=str(folder)))


def test_a_pair_is_of_two_contexts():
  """A prompt that one context has twice has one prediction there."""
  found = measure.Predictions(
    p=np.array([0.6, 0.6, 0.7, 0.2]),
    t=np.array([1.0, 0.0, 1.0, 0.0]),
    context=np.array([0, 0, 0, 1]),
    prompt=np.array([4, 4, 5, 5]),
  )
  scored = measure.summary(found)
  assert scored["pair_strict"] == scored["pair_ranking"] == 1.0


@pytest.mark.long
def test_two_devices_do_what_one_does(data):
  config = make_config(data=data["train"])
  one = train.make(config)
  config.mesh.data = 2
  two = train.make(config)
  x, y = one.step(one.state, 0)[1], two.step(two.state, 0)[1]
  np.testing.assert_allclose(x["value/loss"], y["value/loss"], rtol=1e-5)
  np.testing.assert_allclose(x["value/grad_norm"], y["value/grad_norm"], rtol=1e-4)


def test_a_head_from_synthetic_tasks_serves_an_adapter(data, tmp_path):
  config = make_config(data="synthetic", train="head", steps=40, tasks=8)
  config.checkpoint.period = 0
  train.train_value(config, str(tmp_path))
  losses = [line["value/soft"] for line in metrics.read(tmp_path)]
  assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.02
  model = train.begin(make_config(data=data["train"], head=str(tmp_path / "v0")))
  equal(tabpfn.unstack(model.head), load_file(tmp_path / "v0" / "head.safetensors"))


@pytest.mark.parametrize(
  "options, message",
  [
    ({"data": ""}, "config.value.data: found '', expected folders of pairs"),
    ({"data": "/nonexistent"}, "/nonexistent: found no pairs"),
    ({"start": "/nonexistent"}, "/nonexistent: found a missing or damaged file"),
    ({"heads": 2}, "value.heads: found 2, expected a divisor of value.width = 3"),
    (
      {"attention_heads": 3},
      "value.attention_heads: found 3, expected a divisor of value.embed = 16",
    ),
    ({"embed": 18}, "value.embed: found 18, expected a multiple of 4"),
    (
      {"train": "adapter"},
      "value.train: found 'adapter', expected both, or a trained head in value.start",
    ),
    ({"heldout": "/nonexistent"}, "/nonexistent: found no pairs"),
    (
      {"data": "synthetic", "train": "both"},
      "value.train: found 'both', expected head, since value.data is synthetic",
    ),
    ({"train": "none"}, "value.train: found 'none', expected one of adapter, head, both"),
  ],
)
def test_bad_input_is_named_at_once(data, tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    train.train_value(make_config(**{"data": data["train"], **options}), str(tmp_path))
  assert not (tmp_path / "metrics.jsonl").exists()
