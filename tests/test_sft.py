"""SFT: the loss falls, a batch is what it says, the result opens again, bad input is named."""

from functools import partial
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import support
from v05_jax import data, models, tasks
from v05_jax.configs import default, warm_start
from v05_jax.run import checkpoint, metrics, sft

pytestmark = pytest.mark.usefixtures("few_devices")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """A directory that holds the built-in tokenizer and no weights."""
  path = tmp_path_factory.mktemp("tokenizer")
  support.character_tokenizer(tasks.CHARACTERS, 32).save_pretrained(str(path))
  return path


def make_config(directory):
  c = default.get_config()
  c.policy.update({"path": str(directory), "preset": "tasks-58k"})
  c.data.size, c.mesh.data = 512, 2
  c.sft.update({"steps": 30, "batch": 32, "learning_rate": 3e-3, "warmup_steps": 5})
  c.eval.update({"split": "validation", "size": 48, "period": 20})
  return c


@pytest.fixture
def config(directory):
  return make_config(directory)


@pytest.fixture(scope="module")
def run(directory, tmp_path_factory):
  """(workdir, last values, programs that its update compiled) of a run of thirty steps on two
  devices."""
  workdir, make, made = tmp_path_factory.mktemp("run"), sft.make, []

  def record(*args):
    made.append(make(*args))
    return made[-1]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sft, "make", record)
    last = sft.sft(make_config(directory), str(workdir))
  return workdir, last, made[0].update.program._cache_size()


@pytest.fixture(scope="module")
def policy(directory):
  """The random policy that the run starts from."""
  return models.load(make_config(directory).policy)


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_thirty_steps_lower_the_loss(run):
  lines = metrics.read(run[0])
  losses = [line["sft/loss"] for line in lines if "sft/loss" in line]
  assert [line["step"] for line in lines] == list(range(31))
  assert losses[0] == pytest.approx(np.log(32), rel=0.15)  # a random policy
  assert np.mean(losses[-3:]) < 0.75 * losses[0]
  assert [line["step"] for line in lines if "eval/exact" in line] == [0, 20, 30]
  assert {f"eval/exact/{family}" for family in tasks.EXACT} <= lines[-1].keys()
  assert run[1]["sft/loss"] == losses[-1]


def test_one_program_serves_every_step(run):
  assert run[2] == 1


def test_the_policy_that_it_writes_opens_and_is_the_trained_one(run, config):
  config.policy.update({"path": str(run[0] / "hf"), "preset": ""})
  trained = models.load(config.policy)
  rows = data.load(data.eval_config(config), trained.tokenizer, 12, shuffle=False).rows
  evaluate = sft.make_exact_evaluation(trained, config.sampler, rows)
  assert metrics.means(evaluate(trained.params))["eval/exact"] == pytest.approx(
    run[1]["eval/exact"], rel=1e-4
  )


def examples_of(config, dataset, tokenizer):
  return sft.make_examples(config, config.data, dataset, tokenizer)


def texts(examples, tokenizer):
  """(prompt, response) of each example."""
  decode = lambda ids: tokenizer.decode(ids)
  prompts = zip(examples.prompts.tokens, examples.prompts.length)
  return [
    (decode(t[:n]), decode(ids)) for (t, n), ids in zip(prompts, examples.responses, strict=False)
  ]


def test_examples_hold_prompt_demonstration_and_eos_and_are_a_function_of_the_step(config):
  tokenizer = models.tokenizer.load(config.policy.path)
  dataset = data.load(config.data, tokenizer, config.sampler.max_prompt, seed=config.seed)
  examples = examples_of(config, dataset, tokenizer)
  found = texts(examples(3 * 32, 32), tokenizer)
  rows = dataset.at(3 * 32, 32).rows
  assert [prompt for prompt, _ in found] == [row["prompt"] for row in rows]
  assert all(answer.endswith("<eos>") and answer[:-5].isdigit() for _, answer in found)
  assert found == texts(examples_of(config, dataset, tokenizer)(3 * 32, 32), tokenizer)
  config.data.size = 32
  same = data.load(config.data, tokenizer, config.sampler.max_prompt, shuffle=False)
  examples = examples_of(config, same, tokenizer)
  assert same.at(0, 32).rows == same.at(16 * 32, 32).rows  # another epoch, other demonstrations
  assert examples(0, 32).responses != examples(16 * 32, 32).responses


def own_rows(config, tmp_path, rows):
  """A config that learns the rows of a file, and is evaluated on them."""
  config.data.path = config.eval.path = write(tmp_path / "rows.jsonl", rows)
  config.reward, config.sft.batch, config.eval.samples = "math", 4, 1
  return config


ROWS = [{"prompt": "1+2=", "answer": "3"}, {"prompt": "12*12=", "answer": "144"}]


def test_loss_is_the_mean_over_response_tokens(policy, config, tmp_path):
  """The loss that is trained and the one of held-out rows, against the model's logits, a row alone
  and a token at a time; the gradient is the mean's."""
  decoder, encode = models.decoder, lambda text: policy.tokenizer(text)["input_ids"]
  trainer = sft.make(own_rows(config, tmp_path, ROWS))

  @partial(jax.jit, static_argnums=2)
  def nll(params, row, prompt):
    hidden = decoder.forward(policy.config, params, row, jnp.arange(row.size)[None], row * 0 + 1)
    logprob = jax.nn.log_softmax(decoder.logits(policy.config, params, hidden)[0])
    return -logprob[jnp.arange(prompt - 1, row.size - 1), row[0, prompt:]]

  def mean(params, repeat):
    parts = []
    for row in ROWS * repeat:
      prompt = encode(row["prompt"])
      ids = [*prompt, *encode(row["answer"]), policy.tokenizer.eos_token_id]
      parts.append(nll(params, jnp.asarray([ids]), len(prompt)))
    return jnp.concatenate(parts).mean()

  expected, gradient = jax.value_and_grad(mean)(policy.params, 1)
  assert metrics.means(trainer.evaluate(policy.params))["sft/heldout"] == pytest.approx(
    float(expected), rel=1e-5
  )
  batch = trainer.pack(trainer.examples(0))  # each row twice
  found, found_gradient, _ = trainer.update.loss_and_grad(policy.params, *batch)
  assert float(found) == pytest.approx(float(expected), rel=1e-5)
  for x, y in zip(jax.tree.leaves(found_gradient), jax.tree.leaves(gradient), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("field", ["answer", "response"])
def test_rows_of_a_file_are_answered_by_their_response_or_their_answer(config, tmp_path, field):
  other = {"answer": "0"} if field == "response" else {}
  rows = [{"prompt": row["prompt"], **other, field: row["answer"]} for row in ROWS]
  trainer = sft.make(own_rows(config, tmp_path, rows))
  found = set(texts(trainer.examples(0), trainer.policy.tokenizer))
  assert found == {("1+2=", "3<eos>"), ("12*12=", "144<eos>")}


def test_a_run_goes_on_from_its_checkpoint(config, tmp_path):
  """Bit for bit, and a finished run is finished."""
  config.update({"sft": {"steps": 6}, "checkpoint": {"period": 2}, "eval": {"period": 2}})
  own_rows(config, tmp_path, ROWS)
  whole = sft.sft(config, str(tmp_path / "whole"))
  parts, count, step = tmp_path / "parts", [], sft.Trainer.step
  on_devices = lambda: sum(x.nbytes for x in jax.live_arrays())
  held, restore = [], checkpoint.Checkpoints.restore

  def restored(self, number, example, data):
    held.append(on_devices() - before)
    return restore(self, number, example, data)

  shutil.copytree(tmp_path / "whole", parts)
  shutil.rmtree(parts / "checkpoints" / "6")
  shutil.rmtree(parts / "hf")
  with open(parts / "metrics.jsonl", "a") as file:
    file.write('{"step": 7, "ro')  # killed after the checkpoint
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      sft.Trainer, "step", lambda self, *args: count.append(args[1]) or step(self, *args)
    )
    patch.setattr(checkpoint.Checkpoints, "restore", restored)
    before = on_devices()
    again = sft.sft(config, str(parts))
    assert count == [4, 5]
    # The first state, of .7 MB, has made room for the one that is read.
    assert len(held) == 1 and held[0] < 1e5
    assert sft.sft(config, str(parts)) == {} and len(count) == 2
  own_rows(config, tmp_path, [ROWS[0], ROWS[1] | {"answer": "143"}])
  with pytest.raises(ValueError, match=r"config\.data\.path: found rows with the digest"):
    sft.sft(config, str(parts))
  timeless = lambda values: {k: v for k, v in values.items() if not k.startswith("time/")}
  assert timeless(again) == timeless(whole) and whole["sft/heldout"] < 3
  lines = [[timeless(x) for x in metrics.read(tmp_path / name)] for name in ("whole", "parts")]
  assert lines[0] == lines[1] and len(lines[0]) == 7
  files = [tmp_path / name / "hf" / "model.safetensors" for name in ("whole", "parts")]
  assert files[0].read_bytes() == files[1].read_bytes()


def test_bad_input_is_named_before_the_first_step(config, tmp_path):
  rows = [{"prompt": "1", "answer": "1"}, {"prompt": "1", "answer": "12345678"}]
  config.data.path, config.reward, config.eval.period = (
    write(tmp_path / "rows.jsonl", rows),
    "math",
    0,
  )
  with pytest.raises(
    ValueError, match=r"row 2: the answer is longer than config.sampler.max_response = 8 .* has 9"
  ):
    sft.sft(config, str(tmp_path / "run"))
  config.sampler.max_response, config.eval.path = 9, str(tmp_path / "nowhere.jsonl")
  with pytest.raises(ValueError, match=r"config\.eval\.path: .*nowhere\.jsonl does not exist"):
    sft.sft(config, str(tmp_path / "run"))
  config.eval.path = "tasks"
  config.data.path, config.reward = "tasks", "task"
  config.sampler.max_response = 5
  with pytest.raises(ValueError, match=r"an answer of the tasks is longer than .*max_response = 5"):
    sft.sft(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_the_loss_of_two_devices_is_that_of_one(run, config):
  config.mesh.data = 1
  trainer = sft.make(config)
  _, measured = trainer.step(trainer.init(), 0)
  assert metrics.read(run[0])[1]["sft/loss"] == pytest.approx(
    metrics.means(measured)["sft/loss"], rel=1e-5
  )


def test_a_remote_workdir_and_that_of_another_run_are_refused_before_training(config, run):
  with pytest.raises(ValueError, match=r"--workdir=.*: found a remote folder"):
    sft.sft(warm_start.get_config(), "gs://bucket/run")
  config.sft.learning_rate = 1e-4
  with pytest.raises(ValueError, match=r"sft\.learning_rate: found 0\.0001, expected 0\.003"):
    sft.sft(config, str(run[0]))
