"""SFT: the loss falls, a batch is what it says, the result opens again, bad input is named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default, warm_start
from v05_jax import data, models, tasks
from v05_jax.models import tokenizer as tokenizers
from v05_jax.run import metrics, sft

pytestmark = pytest.mark.usefixtures("few_devices")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  """A directory that holds the built-in tokenizer and no weights."""
  path = tmp_path_factory.mktemp("tokenizer")
  tokenizers.build_character_tokenizer(tasks.CHARACTERS, 32).save_pretrained(str(path))
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
  """(workdir, last values, programs that its step function compiled) of a run of thirty steps on
  two devices."""
  workdir, make, made = tmp_path_factory.mktemp("run"), sft.make_step, []

  def record(*args):
    made.append(make(*args))
    return made[-1]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sft, "make_step", record)
    last = sft.sft(make_config(directory), str(workdir))
  return workdir, last, made[0][2]._cache_size()


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
  evaluate = sft.make_evaluation(config, trained)
  assert metrics.means(evaluate(trained.params))["eval/exact"] == pytest.approx(
    run[1]["eval/exact"], rel=1e-4
  )


def test_batches_hold_prompt_demonstration_and_eos_and_are_a_function_of_the_step(config):
  tokenizer = models.tokenizer.load(config.policy.path)
  dataset = data.load(config.data, tokenizer, config.sampler.max_prompt, seed=config.seed)
  batch = sft.make_batches(config, dataset, tokenizer)
  found = batch(3)
  rows = dataset.at(3 * 32, 32).rows
  for row, tokens, prompt, length in zip(
    rows, found.tokens, found.prompt, found.length, strict=True
  ):
    assert tokenizer.decode(tokens[:prompt]) == row["prompt"]
    assert tokens[length - 1] == tokenizer.eos_token_id and not tokens[length:].any()
    assert tokenizer.decode(tokens[prompt : length - 1]).isdigit()
  again = sft.make_batches(config, dataset, tokenizer)(3)
  np.testing.assert_array_equal(found.tokens, again.tokens)
  config.data.size = 32
  same = data.load(config.data, tokenizer, config.sampler.max_prompt, shuffle=False)
  batch = sft.make_batches(config, same, tokenizer)
  assert same.at(0, 32).rows == same.at(16 * 32, 32).rows  # another epoch, other demonstrations
  assert (batch(0).tokens != batch(16).tokens).any()


def test_loss_is_the_mean_over_response_tokens(policy):
  """Against the model's logits, a row alone and a token at a time."""
  decoder, encode = models.decoder, lambda text: policy.tokenizer(text)["input_ids"]
  width, prompt, length, nlls = 16, [], [], []
  tokens = np.zeros((2, width), np.int32)

  @jax.jit
  def logits(row):
    hidden = decoder.forward(
      policy.config, policy.params, row, jnp.arange(width)[None], jnp.ones_like(row)
    )
    return decoder.logits(policy.config, policy.params, hidden)[0]

  for i, (question, answer) in enumerate([("A100200=", "3000"), ("M477=", "5")]):
    ids = [*encode(question), *encode(answer), policy.tokenizer.eos_token_id]
    tokens[i, : len(ids)] = ids
    prompt.append(len(question))
    length.append(len(ids))
    probability = np.asarray(jax.nn.softmax(logits(tokens[i : i + 1])))
    nlls += [-np.log(probability[t - 1, ids[t]]) for t in range(len(question), len(ids))]
  batch = sft.Batch(tokens, np.array(prompt), np.array(length))
  found = jax.jit(sft.mean_loss, static_argnums=(0, 1))(policy.config, 8, policy.params, batch)
  assert float(found) == pytest.approx(np.mean(nlls), rel=1e-4)


def test_rows_of_a_file_are_answered_by_their_answer(config, tmp_path):
  rows = [{"prompt": "1+2=", "answer": "3"}, {"prompt": "12*12=", "answer": "144"}]
  config.data.path = write(tmp_path / "rows.jsonl", rows)
  tokenizer = models.tokenizer.load(config.policy.path)
  dataset = data.load(config.data, tokenizer, config.sampler.max_prompt)
  config.sft.batch = 4
  found = sft.make_batches(config, dataset, tokenizer)(0)
  texts = {tokenizer.decode(t[:n]) for t, n in zip(found.tokens, found.length)}
  assert texts == {"1+2=3<eos>", "12*12=144<eos>"}
  assert found.tokens.shape == (4, 6 + 4)


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
  config.data.path, config.reward = "tasks", "task"
  config.sampler.max_response = 5
  with pytest.raises(
    ValueError, match=r"an answer of the built-in tasks is longer than .*max_response = 5"
  ):
    sft.sft(config, str(tmp_path / "run"))
  config.sampler.max_response = 8
  config.sft.batch = 61
  with pytest.raises(
    ValueError, match=r"config.sft.batch: found 61, expected a multiple of 2 devices"
  ):
    sft.sft(config, str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_the_loss_of_two_devices_is_that_of_one(run, policy, config):
  dataset = data.load(config.data, policy.tokenizer, config.sampler.max_prompt)
  batch = sft.make_batches(config, dataset, policy.tokenizer)(0)
  one = jax.jit(sft.mean_loss, static_argnums=(0, 1))(policy.config, 1024, policy.params, batch)
  assert metrics.read(run[0])[1]["sft/loss"] == pytest.approx(float(one), rel=1e-5)


@pytest.mark.parametrize(
  "workdir, found", [("gs://bucket/run", "a remote folder"), ("", "the checkpoints of another run")]
)
def test_a_workdir_that_cannot_take_the_model_is_refused_before_training(tmp_path, workdir, found):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(ValueError, match=f"--workdir=.*: found {found}"):
    sft.sft(warm_start.get_config(), workdir or str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
