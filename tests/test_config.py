import importlib
import json
from pathlib import Path
import re
import subprocess
import sys

from absl import flags
from ml_collections import ConfigDict
import pytest

from v05_jax import command_line, config, names, plug
from v05_jax.configs import default

ROOT = Path(__file__).parent.parent


def changed(**values):
  """The default config with `section__key=value` set, types unchecked."""
  tree = config.to_dict(default.get_config())
  for name, value in values.items():
    *sections, key = name.split("__")
    node = tree
    for section in sections:
      node = node[section]
    node[key] = value
  return ConfigDict(tree)


def problems(**values):
  with pytest.raises(ValueError) as error:
    config.validate(changed(**values))
  return str(error.value)


def parse(*argv):
  """Parses with the flags of main; a fresh set, so that tests do not share state."""
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  flags.DEFINE_enum("mode", "train", ["train", "eval"], "", flag_values=values)
  flags.DEFINE_bool("distributed", False, "", flag_values=values)
  command_line.parse(["main", *map(str, argv)], values)
  return values


def error(capsys, *argv):
  with pytest.raises(SystemExit) as e:
    parse(*argv)
  assert e.value.code == 2
  return capsys.readouterr().err


def write(path, change):
  """A config file that makes one change to the default."""
  head = "from configs import default\n\ndef get_config():\n  c = default.get_config()\n"
  path.write_text(f"{head}  {change}\n  return c\n")


# --- Ranges


def test_every_shipped_config_is_valid():
  for path in sorted((ROOT / "configs").glob("[a-z]*.py")):
    config.validate(config.load(str(path)))
  demo = importlib.import_module("v05_jax.configs.demo")
  for method in demo.METHODS.values():
    config.validate(demo.get_config(method))


def test_every_key_has_a_rule_and_every_rule_a_key():
  assert set(config.every_rule(default.get_config())) == set(config.flatten(default.get_config()))


def test_choices_are_those_that_the_comments_of_the_default_config_name():
  comments, section, above = {}, {"c": ""}, []
  for line in (ROOT / "configs" / "default.py").read_text().splitlines():
    if match := re.match(r"  c\.(\w+) = (\w+) = ConfigDict", line):
      section[match[2]] = match[1] + "."
    elif match := re.match(r"  (\w+)\.(\w+) = .*?(?:  # (.*))?$", line):
      comments[section[match[1]] + match[2]] = match[3] or " ".join(above)
    # a long list of choices stands above its key
    above = [*above, line.strip(" #")] if line.startswith("  #") else []
  word = r"\w+(?::\w+)?"
  found = {
    key: tuple(re.split(r" \| ", choices[0]))
    for key, text in comments.items()
    if (choices := re.search(rf"{word}(?: \| {word})+", text))
  }
  assert len(found) >= 9
  kinds = {kind.key: name for name, kind in plug.KINDS.items()}
  assert kinds.keys() <= found.keys()
  for key, choices in found.items():
    if key in kinds:
      assert set(choices) - {"module:function"} == set(plug.known(kinds[key])), key
      assert "module:function" in comments[key]
    else:
      assert config.RULES[key].choices == choices, key


def test_no_number_but_a_reward_may_be_below_minus_one():
  for key, value in config.flatten(default.get_config()).items():
    if type(value) in (int, float) and key not in ("rewards.low", "rewards.high"):
      assert f"{key}: found -2, expected " in problems(**{key.replace(".", "__"): -2})


@pytest.mark.parametrize(
  "key, value, expected",
  [
    ("seed", -1, "at least 0"),
    ("rollouts_per_step", 3, "at least budget.k_init = 4"),
    ("budget__k_init", 0, "at least 1"),
    ("budget__k_init", 5, "budget.k_max: found 4, expected budget.k_init = 5"),
    ("budget__k_max", 0, "at least 1"),
    ("budget__k_max", 8, "expected budget.k_init = 4, since budget.rule is fixed"),
    ("budgets__sequential__cost", -0.1, "at least 0"),
    ("budgets__two_stage__cost", float("nan"), "a finite number"),
    ("budget__rule", "adaptive", "one of fixed, neyman, pilot_commit"),
    ("baseline", "a3c", "one of basis, batch_shrink"),
    ("sampler__temperature", 0.0, "above 0"),
    ("sampler__top_p", 0.0, "above 0"),
    ("sampler__top_p", 1.01, "at most 1"),
    ("sampler__max_response", 0, "at least 1"),
    ("loss__clip_low", -0.1, "at least 0"),
    ("loss__clip_dual", 0.5, "above 1, or 0"),
    ("loss__aggregate", "mean", "one of token"),
    ("loss__minibatches", 65, "at most 64"),
    ("loss__row_length", 22, "0, or at least 23"),
    ("eval__period", -1, "at least 0"),
    ("checkpoint__period", -1, "at least 0"),
    ("reward", "my_module", "module:function"),
    ("reward", "my module:f", "module:function"),
    ("rewards__low", 1.0, "less than rewards.high"),
    ("rewards__low", 1.0 - 1e-9, "less than rewards.high = 1.0, by more than float32 rounds"),
    ("rewards__high", 1e-40, "rewards.low: found 0.0, expected less than rewards.high = 1e-40"),
    ("rewards__high", 1e38, "at most 1e30"),
    ("rewards__low", float("nan"), "a finite number"),
    ("rewards__high", float("inf"), "a finite number"),
    ("rewards__timeout", 1e9, "at most 86400, a day"),
    ("rewards__timeout", float("inf"), "a finite number"),
    ("rewards__timeout", float("nan"), "a finite number"),
    ("rewards__timeout", -1.0, "seconds above 0"),
    ("rewards__timeout", True, "a finite number"),
    ("rewards__workers", 10**6, "at most 1024"),
    ("rewards__overlong_buffer", 9, "at most sampler.max_response = 8"),
    ("selection__pool", 0, "at least 1"),
    ("estimators__ewa__update", "now", "one of after, before"),
    ("prior__min_support", 257, "at most prior.context = 256"),
    ("data__template", "{question}", "{prompt}"),
    ("data__families", ("add", "add"), "each once"),
    ("data__families", (), "at least one name"),
    ("mesh__fsdp", 0, "at least 1, or -1"),
    ("mesh__fsdp", -1, "-1 for one axis alone"),
    ("seed", 1.0, "a whole number"),
    ("seed", True, "a whole number"),
    ("policy__remat", True, "a text"),
    ("policy__attention", "fast", "one of plain, flash"),
    ("policy__dtype", None, "a text"),
    ("budget", 3, "a section of keys"),
  ],
)
def test_a_bad_value_names_key_found_and_expected(key, value, expected):
  text = problems(**{key: value})
  assert expected in text
  if "expected" not in expected:
    assert f"{key.replace('__', '.')}: found {value!r}, expected " in text


def test_every_problem_is_listed_at_once():
  text = problems(budgets__sequential__cost=-1.0, sampler__top_p=2.0, baseline="x")
  assert "3 problems" in text
  assert all(key in text for key in ("budgets.sequential.cost", "sampler.top_p", "baseline"))


def test_k_init_above_k_max_with_an_adaptive_rule():
  text = problems(budget__rule="two_stage", budget__k_init=8)
  assert "budget.k_init: found 8, expected at most budget.k_max = 4" in text


def test_a_divided_budget_has_its_mean_between_its_bounds():
  config.validate(changed(budget__rule="neyman", budget__k_init=2, budget__k_max=8))
  for mean in (1.5, 9.0):
    text = problems(
      budget__rule="value", budget__k_init=2, budget__k_max=8, budgets__value__k_mean=mean
    )
    assert (
      f"budgets.value.k_mean: found {mean}, expected between budget.k_init = 2 and "
      "budget.k_max = 8" in text
    )
  divided = dict(budget__rule="neyman", budget__k_init=2, budget__k_max=16, rollouts_per_step=32)
  config.validate(changed(**divided, loss__minibatches=8))
  text = problems(**divided, loss__minibatches=9)
  assert "at most 8, the prompts of a step (rollouts_per_step / 4 rollouts of each)" in text


def test_a_v0_needs_its_directory():
  found = problems(prior__kind="v0", priors__v0__path=" ")
  assert (
    "priors.v0.path: found ' ', expected \"builtin\", or a directory of value_model.convert or "
    "--mode=value" in found
  )
  file = {
    "prior__kind": "v0",
    "priors__v0__path": "builtin",
    "data__path": "x.jsonl",
    "eval__path": "x.jsonl",
  }
  found = problems(**file, reward="math", eval__samples=1)
  assert (
    "priors.v0.path: found 'builtin', expected a directory of your own" in found
    and "1 problem" in found
  )


def test_what_excludes_each_other():
  assert "loss.share_prompts: found True, expected False, since policy.attention" in problems(
    policy__attention="flash"
  )
  assert "selection.pool: found 2, expected 1" in problems(
    selection__pool=2, budget__max_resample=3
  )
  assert "budget.max_resample: found 4, expected 0, since no group of one" in problems(
    baseline="score", budget__k_init=1, budget__k_max=1, budget__max_resample=4
  )
  rule = {"budget__k_init": 1, "budget__k_max": 2, "budget__max_resample": 4}
  config.validate(changed(**rule, budget__rule="sequential"))
  one = {"budget__rule": "value", "budgets__value__k_mean": 1}
  assert "budget.max_resample: found 4, expected 0" in problems(**rule | one)
  assert "prior.wrappers: found ('fallback', 'history'), expected no history" in problems(
    prior__wrappers=("fallback", "history"), baseline="spo"
  )
  differ = "expected priors and wrappers whose names differ, since each has its state by its own"
  twice = problems(prior__wrappers=("history", "history"))
  assert f"prior.wrappers: found ('history', 'history'), {differ}: history" in twice
  text = problems(selection__pool=2, loss__aggregate="token")
  assert "loss.aggregate: found 'token', expected rollout, prompt or constant" in text
  config.validate(changed(selection__pool=2, selection__weighted=False, loss__aggregate="token"))


@pytest.mark.parametrize("baseline", ["grpo", "dr_grpo", "rloo", "james_stein", "score_loo"])
def test_a_group_baseline_needs_two_rollouts(baseline):
  config.validate(changed(budget__k_init=1, budget__k_max=1))  # v05 has its prior
  text = problems(budget__k_init=1, budget__k_max=1, baseline=baseline)
  assert f"at least 2, since baseline {baseline}" in text


@pytest.mark.parametrize("baseline", ["v05", "value"])
def test_one_rollout_without_a_prior_has_nothing_to_be_compared_with(baseline):
  one = {"budget__k_init": 1, "budget__k_max": 1, "baseline": baseline}
  nothing = {"prior__kind": "none", "prior__wrappers": ()}
  assert f"at least 2, since baseline {baseline} has no prior" in problems(**one, **nothing)
  config.validate(changed(**one))
  for wrapper in ("history", "os.path:join"):  # one of the user's own may say a V
    config.validate(changed(**one | nothing | {"prior__wrappers": (wrapper,)}))
  config.validate(changed(baseline=baseline, **nothing))


def test_good_values_at_the_edge_of_their_range():
  config.validate(changed(budgets__sequential__cost=0, sampler__top_p=1, num_steps=0))
  config.validate(changed(loss__minibatches=64, loss__row_length=23))
  config.validate(changed(rollouts_per_step=4, loss__minibatches=1, reward="my.module:reward"))


def test_unknown_and_missing_keys():
  text = problems(budget__k_ini=4)
  assert "budget.k_ini: found an unknown key, did you mean budget.k_init?" in text
  tree = config.to_dict(default.get_config())
  del tree["budgets"]["sequential"]["cost"], tree["sft"]
  with pytest.raises(ValueError, match=r"budgets\.sequential\.cost: missing") as e:
    config.validate(ConfigDict(tree))
  assert "sft.steps: missing" in str(e.value)


# --- JSON and resuming


def test_json_round_trip_keeps_values_and_types():
  before = changed(seed=3, loss__clip_high=0.28, data__families=("add", "lin"))
  after = config.from_json(config.to_json(before))
  assert after == before
  assert after.data.families == ("add", "lin")
  config.validate(after)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_config_json_is_named(text):
  with pytest.raises(ValueError, match=r"runs/x/config\.json"):
    config.from_json(text, "runs/x/config.json")


def test_only_length_periods_and_what_fits_a_machine_may_change_on_resume():
  saved = default.get_config()
  config.check_resume(saved, changed(num_steps=9, eval__period=3, checkpoint__period=5), "runs/x")
  config.check_resume(saved, changed(num_rollouts=512), "runs/x")
  sizes = {"sampler__slots": 16, "sampler__open_prompts": 8, "sampler__prefill": 4}
  more = {"loss__micro_rows": 1, "loss__vocab_chunk": 64, "policy__remat": "full"}
  config.check_resume(saved, changed(**sizes, **more), "runs/x")  # on a smaller machine
  with pytest.raises(ValueError, match="runs/x holds a run of another config") as e:
    config.check_resume(
      saved, changed(seed=1, budgets__sequential__cost=0.5, num_steps=9), "runs/x"
    )
  assert "seed: found 1, expected 0" in str(e.value)
  assert "budgets.sequential.cost: found 0.5, expected 0.00390625" in str(e.value)
  assert "num_steps" not in str(e.value)


def test_observers_may_change_on_resume_with_the_options_of_those_that_come_or_go():
  saved = default.get_config()
  scoreboard = {"observers__scoreboard__estimators": ("rloo",)}
  more = changed(observe=("exact", "scoreboard"), **scoreboard)
  more.observers.mine = ConfigDict({"every": 3})  # an option of a user's observer
  more.observe = (*more.observe, "file:mine")
  config.check_resume(saved, more, "runs/x")
  config.check_resume(more, saved, "runs/x")
  less = changed(observe=("scoreboard",))
  with pytest.raises(ValueError, match=r"scoreboard.estimators: found \(.*, expected \('rloo',\)"):
    config.check_resume(more, less, "runs/x")  # it stays, and its numbers would be of others


# --- Files


@pytest.mark.parametrize(
  "text, expected",
  [
    ("def get_config(:\n", r"c\.py, line 1: "),
    ("x = 1\n", r"c\.py: found no function get_config\(\)"),
    ("def get_config():\n  return {}\n", "expected a ConfigDict"),
    ("def get_config(x):\n  return x\n", r"c\.py: TypeError: get_config\(\) missing"),
    ("import no_such_module\n", r"c\.py, line 1: ModuleNotFoundError"),
    ("x = 1\n\ndef get_config():\n  return y\n", r"c\.py, line 4: NameError"),
  ],
)
def test_a_bad_config_file_gives_one_line(tmp_path, text, expected):
  (tmp_path / "c.py").write_text(text)
  with pytest.raises(ValueError, match=expected) as e:
    config.load(str(tmp_path / "c.py"))
  assert "\n" not in str(e.value)


def test_a_missing_config_file_suggests_its_neighbour(tmp_path):
  (tmp_path / "grpo.py").touch()
  with pytest.raises(ValueError, match=r"no such config file, did you mean .*/grpo\.py\?"):
    config.load(str(tmp_path / "gpro.py"))
  for other in (tmp_path, tmp_path / "grpo.txt"):
    (tmp_path / "grpo.txt").touch()
    with pytest.raises(ValueError, match=r"expected a config file, \.py or \.json"):
      config.load(str(other))


# --- The command line


def test_a_key_that_is_also_a_method_of_the_dictionary_can_be_typed(capsys):
  c = parse("--config.baseline=ewa", "--config.estimators.ewa.update=before", "--config.seed=3")
  assert c.config.estimators.ewa["update"] == "before" and c.config.seed == 3
  found = error(capsys, "--config.baseline=ewa", "--config.estimators.ewa.update", "now")
  assert "estimators.ewa.update: found 'now', expected one of after, before" in found


@pytest.mark.parametrize(
  "flag, said",
  [
    ("--config.prior.wrappers=(1,)", "prior.wrappers: found 1, expected a name"),
    ("--config.observe=('exact', None)", "observe: found None, expected a name"),
    ("--config.value.heads=0", "value.heads: found 0, expected at least 1"),
    ("--config.value.attention_heads=0", "value.attention_heads: found 0, expected at least 1"),
  ],
)
def test_values_that_are_none_are_one_error(flag, said, capsys):
  assert said in error(capsys, flag)


def test_overrides_of_every_type():
  c = parse(
    "--config.seed=3",
    "--config.budget.rule=sequential",
    "--config.budgets.sequential.cost",
    "0",
    "--config.prior.wrappers=('history',)",
    "--config.loss.share_prompts",
    "--config.reward=math",
    "--noconfig.data.chat_template",
    "--config.data.families=('add', 'lin')",
    "--mode=eval",
    "--config.mesh.data",
    "-1",
  ).config
  assert (c.seed, c.budgets.sequential.cost, c.reward) == (3, 0.0, "math")
  assert (c.prior.wrappers, c.loss.share_prompts) == (("history",), True)
  assert (c.data.chat_template, c.data.families, c.mesh.data) == (False, ("add", "lin"), -1)
  assert isinstance(c.budgets.sequential.cost, float)


@pytest.mark.parametrize(
  "text", ["exact,noise", "exact, noise", "exact,noise,", "('exact','noise')"]
)
def test_names_may_have_nothing_but_commas_between(text, capsys):
  for words in (
    [f"--config.observe={text}"],
    [f"-config.observe={text}"],
    ["--config.observe", text, "--mode=train"],
  ):
    assert parse(*words).config.observe == ("exact", "noise")
  assert parse("--config.metrics.sinks=jsonl").config.metrics.sinks == ("jsonl",)
  assert parse("--config.data.folder=a,b").config.data.folder == "a,b"  # which takes a text
  text = error(capsys, "--config.metrics.sinks=jsonl,wnadb")
  assert "metrics.sinks: found 'wnadb', did you mean wandb? expected one of jsonl, " in text


def test_the_config_is_the_file_then_the_workdir_then_the_default(tmp_path):
  assert config.flatten(parse().config) == config.flatten(default.get_config())
  (tmp_path / "config.json").write_text(config.to_json(changed(seed=5, loss__kl_coef=0)))
  c = parse("--workdir", tmp_path, "--config.loss.kl_coef=0.5").config
  assert (c.seed, c.loss.kl_coef) == (5, 0.5)  # a float's key, though the file holds a whole number
  assert parse("--workdir", tmp_path / "none").config.seed == 0
  assert parse("--workdir", tmp_path / "none", "--workdir", tmp_path).config.seed == 5  # the last
  write(tmp_path / "c.py", "c.seed = 7")
  c = parse("--config.num_steps=2", f"--config={tmp_path / 'c.py'}", "--workdir", tmp_path).config
  assert (c.seed, c.num_steps) == (7, 2)


@pytest.mark.parametrize(
  "argv, expected",
  [
    (["--config.foo=1"], "--config.foo: found an unknown config key"),
    (["--config.budget.k_ini=1"], "unknown config key, did you mean --config.budget.k_init?"),
    (
      ["--config.budgets.unsure.margin=1"],
      "unknown config key: unsure is not in use, expected --config.budget.rule=MODULE:unsure",
    ),
    (["--config.budgets.neymann.k_mean=1"], "did you mean --config.budgets.neyman"),
    (["--config.loss.cost=1"], "did you mean --config.budgets.sequential.cost or"),
    (["--workdri=x"], "--workdri: found an unknown flag, did you mean --workdir?"),
    (["--mode=trian"], "--mode=trian"),
    (["--config.seed=x"], "--config.seed=x"),
    (["--config.budgets.sequential.cost=1/256"], "--config.budgets.sequential.cost=1/256"),
    (["--config.seed"], "Missing value for flag --config.seed"),
    (["--config"], "--config: found no value"),
    (["--config=none.py"], "none.py: found no such config file"),
    (["workdir=x"], "found the argument 'workdir=x', expected flags alone"),
    (["workdir=x"], "--name=value, did you mean --workdir?"),
    (["num_steps=3"], "--name=value, did you mean --config.num_steps?"),
    (["config.num_steps=3"], "--name=value, did you mean --config.num_steps?"),
    (["--num_steps=3"], "unknown flag, did you mean --config.num_steps?"),
    (["--num_stps=3"], "unknown flag, did you mean --config.num_steps?"),
    (["--sampler.temperature=1"], "unknown flag, did you mean --config.sampler.temperature?"),
    (["--lr=1e-3"], "unknown flag, did you mean --config.optimizer.learning_rate?"),
    (["--distribute"], "unknown flag, did you mean --distributed?"),
  ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(capsys, argv, expected):
  text = error(capsys, *argv)
  assert expected in text
  assert text.startswith("error: ") and text.count("\n") == 1


def test_a_bad_value_on_the_command_line(capsys):
  text = error(
    capsys,
    "--config.budget.rule=sequential",
    "--config.budgets.sequential.cost",
    "-1",
    "--config.baseline=a3c",
  )
  assert text.count("\n") == 3
  assert "budgets.sequential.cost: found -1.0, expected at least 0" in text
  assert "baseline: found 'a3c', expected one of basis" in text


def test_what_jax_adds_to_an_exception_is_no_part_of_it():
  def fails():
    raise AttributeError("no attribute 'present'\n--------------------\nFor simplicity, JAX has")

  try:
    fails()
  except AttributeError as error:
    text = names.describe(error)
  assert text.startswith("AttributeError: no attribute 'present' (") and "JAX" not in text


def test_a_config_file_may_begin_from_one_beside_it(tmp_path, monkeypatch):
  (tmp_path / "configs").mkdir()
  write(tmp_path / "configs" / "own_base_config.py", "c.seed = 7")
  child = "import own_base_config\ndef get_config():\n  c = own_base_config.get_config()\n"
  (tmp_path / "configs" / "child.py").write_text(f"{child}  c.num_steps = 3\n  return c\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", list(sys.path))
  found = parse("--config=configs/child.py").config
  assert (found.seed, found.num_steps) == (7, 3)


def test_options_of_an_own_plug_are_set_together(capsys, tmp_path):
  write(tmp_path / "c.py", "c.priors.mine.rate = 0.3")
  text = error(capsys, f"--config={tmp_path / 'c.py'}")
  assert 'options of your own are set together, as c.priors.mine = {"rate": ...}' in text
  write(tmp_path / "c.py", "c.optimiser.learning_rate = 0.3")
  text = error(capsys, f"--config={tmp_path / 'c.py'}")
  assert 'Did you mean "optimizer"' in text and "\\n" not in text and text.count("\n") == 1


def test_a_file_with_an_unknown_key_is_named(capsys, tmp_path):
  write(tmp_path / "c.py", "c.budget.k = 7")
  text = error(capsys, f"--config={tmp_path / 'c.py'}")
  assert "c.py: not a config of this version" in text and "budget.k: found an unknown key" in text


def test_main_prints_one_line_and_no_traceback():
  done = subprocess.run(
    [sys.executable, "-m", "v05_jax.main", "--config.budgte.cost=1"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 2
  assert done.stderr.strip() == (
    "error: --config.budgte.cost: found an unknown config key, did you mean "
    "--config.budgets.sequential.cost or --config.budgets.two_stage.cost?"
  )


# --- Plugs

SEVERAL = ("prior.wrappers", "observe", "metrics.sinks")  # keys that take a tuple of names


@pytest.mark.parametrize(
  "key, kind, typo, meant",
  [
    ("baseline", "estimator", "v5", "v05"),
    ("budget.rule", "budget", "sequental", "sequential"),
    ("prior.kind", "prior", "neighbors", "neighbours"),
    ("prior.wrappers", "wrapper", "histroy", "history"),
    ("observe", "observer", "scorebord", "scoreboard"),
  ],
)
def test_an_unknown_plug_gives_the_known_ones_and_how_to_name_a_function(key, kind, typo, meant):
  value = (typo,) if key in SEVERAL else typo
  text = problems(**{key.replace(".", "__"): value})
  assert f"{key}: found {typo!r}, did you mean {meant}? expected one of " in text
  assert f"{', '.join(plug.known(kind))}, or module:function" in text and "1 problem" in text


@pytest.mark.parametrize("key", [kind.key for kind in plug.KINDS.values()])
@pytest.mark.parametrize(
  "name, why", [("nowhere:f", "No module named 'nowhere'"), ("math:nowhere", "no attribute")]
)
def test_a_function_that_cannot_be_imported_is_named(key, name, why):
  value = (name,) if key in SEVERAL else name
  text = problems(**{key.replace(".", "__"): value})
  assert f"{key}: found {name!r}, expected module:function: " in text and why in text


@pytest.mark.parametrize(
  "flag, message",
  [
    (
      "budgets.sequential.cost=0.5",
      "budgets/sequential, which is not in use: budget.rule is fixed",
    ),
    ("estimators.spo.half_life=2", "estimators/spo, which is not in use: baseline is v05"),
    (
      "priors.history.half_life=2",
      "priors/history, which is not in use: prior.kind is neighbours and prior.wrappers is "
      "fallback",
    ),
    (
      "observers.scoreboard.estimators=('rloo',)",
      "observers/scoreboard, which is not in use: observe is diagnostics, exact",
    ),
  ],
)
def test_an_option_typed_for_a_plug_that_is_not_in_use(capsys, flag, message):
  text = error(capsys, f"--config.{flag}")
  assert text == f"error: {flag.partition('=')[0]}: an option of {message}\n"


def test_a_flag_that_replaces_a_plug_takes_its_options_back(tmp_path):
  """The file's cost of a rule that is not in use says nothing: as if the file had not had it."""
  change = 'c.budget.update({"rule": "sequential", "k_max": 8}); c.budgets.sequential.cost = 0.5'
  write(tmp_path / "c.py", change)
  c = parse(f"--config={tmp_path / 'c.py'}").config
  assert c.budgets.sequential.cost == 0.5
  c = parse(f"--config={tmp_path / 'c.py'}", "--config.budget.rule=two_stage").config
  assert c.budgets.sequential.cost == c.budgets.two_stage.cost == 1 / 256
  # what the file has of a plug that it does not use stays: no flag has replaced it
  write(tmp_path / "c.py", "c.budgets.sequential.cost = 0.5")
  assert parse(f"--config={tmp_path / 'c.py'}").config.budgets.sequential.cost == 0.5


OWN = """
from v05_jax import plug

def _check(config):
  if config.priors.own.scale > config.prior.context:
    yield "priors.own.scale", f"at most prior.context = {config.prior.context}"

@plug.declare(
  "prior",
  check=_check,
  scale=plug.Option(2.0, "of nothing", lambda x: x > 0, "above 0"),
  name=plug.Option("a", "of something"),
)
def own(options, setting):
  raise NotImplementedError
"""


def test_the_options_of_a_users_plug_are_keys_like_others(capsys, tmp_path, monkeypatch):
  name = f"own_{tmp_path.name}"  # modules are imported once
  (tmp_path / f"{name}.py").write_text(OWN)
  monkeypatch.syspath_prepend(tmp_path)
  use = f"--config.prior.kind={name}:own"
  c = parse(use).config
  assert c.priors.own.to_dict() == {"scale": 2.0, "name": "a"}
  config.validate(config.from_json(config.to_json(c)))  # as a resumed run reads it
  assert parse(use, "--config.priors.own.scale=3").config.priors.own.scale == 3.0
  write(tmp_path / "c.py", f'c.prior.kind = "{name}:own"; c.priors.own = {{"scale": 1}}')
  c = parse(f"--config={tmp_path / 'c.py'}", "--config.priors.own.name=b").config
  assert c.priors.own.to_dict() == {"scale": 1, "name": "b"}
  for flag, message in {
    "scale=0": "priors.own.scale: found 0.0, expected above 0",
    "scale=1e9": "priors.own.scale: found 1000000000.0, expected at most prior.context = 256",
    "scale=x": "--config.priors.own.scale=x",
    "sclae=1": "--config.priors.own.sclae: found an unknown config key, did you mean "
    "--config.priors.own.scale?",
  }.items():
    assert message in error(capsys, use, f"--config.priors.own.{flag}")
  assert "unknown config key" in error(capsys, "--config.priors.own.scale=1")  # it is not named


@pytest.mark.parametrize(
  "text, words",
  [
    ('{"sampler": 1}', "not a config of this version"),
    ('{"seed": 3}', "baseline: missing, expected a text"),
    ("{}", "baseline: missing"),
    ('{"observe": 5}', "observe: found 5"),
    ('{"a.b": 1}', "config.json: found no config: "),
  ],
)
def test_a_saved_config_that_is_none_is_named(tmp_path, capsys, text, words):
  file = tmp_path / "config.json"
  file.write_text(text)
  found = error(capsys, f"--workdir={tmp_path}")
  assert found.startswith(f"error: {file}") and words in found


@pytest.mark.parametrize("text", ['{"observe": 5}', '{"observe": [5, null]}', "{}"])
def test_a_saved_config_that_is_none_is_no_run_to_go_on_from(text):
  saved = config.from_json(text)
  with pytest.raises(ValueError, match="holds a run of another config"):
    config.check_resume(saved, default.get_config(), "runs/a")


def test_a_number_beyond_float_is_named(tmp_path, capsys):
  tree = config.to_dict(default.get_config())
  tree["sampler"]["temperature"] = 10**400
  (tmp_path / "config.json").write_text(json.dumps(tree))
  assert "sampler.temperature: found 1000" in error(capsys, f"--workdir={tmp_path}")


@pytest.mark.parametrize(
  "name, text, words",
  [
    ("a.py", "\0", "null bytes"),
    ("b.py", "import sys; sys.exit(3)", "line 1: SystemExit: 3"),
    ("http://host/c.py", None, "found http://, expected a config file"),
  ],
)
def test_a_config_file_that_is_none_is_named(tmp_path, monkeypatch, capsys, name, text, words):
  monkeypatch.chdir(tmp_path)
  if text is not None:
    (tmp_path / name).write_text(text)
  found = error(capsys, f"--config={name}", "--workdir=a")
  assert found.startswith(f"error: {name}") and words in found


def test_the_config_of_a_workdir_in_the_users_folder_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "config.json").write_text(config.to_json(changed(seed=77)))
  assert parse("--workdir=~/run").config.seed == 77


@pytest.mark.parametrize(
  "workdir",
  [
    "http://host/run",
    "file:///run",
    "://run",
    "s3://bucket/run",
    "~nobody-here/run",
    "~nobody-here",
  ],
)
def test_a_workdir_of_no_store_is_one_error(capsys, workdir):
  assert error(capsys, f"--workdir={workdir}").startswith(f"error: --workdir={workdir}: cannot be")


# --- Modes as words, configs by name


def test_a_first_word_is_the_mode(capsys):
  assert parse("eval").mode == "eval" and parse("train", "--config.seed=3").config.seed == 3
  assert parse("eval", "--mode=eval").mode == "eval"
  assert "found the word 'trian', did you mean train? expected one of train, eval" in error(
    capsys, "trian"
  )
  assert "--mode=eval: found beside the word train" in error(capsys, "train", "--mode=eval")


def test_a_config_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert parse("--config=grpo").config.baseline == "grpo"
  assert set(config.shipped()) >= {"default", "demo", "grpo", "own", "v05"}
  found = error(capsys, "--config=grop")
  assert "grop: found no config of that name, did you mean grpo? known: dapo, " in found
  found = error(capsys, "--config=configs/v05.py")
  assert "no such config file; the package has one: --config=v05" in found
  write(tmp_path / "mine.py", "c.seed = 7")
  assert parse("--config=mine.py").config.seed == 7
  assert "did you mean mine.py?" in error(capsys, "--config=mine.p")
  assert "of that name, did you mean mine.py? known" in error(capsys, "--config=mine")
  (tmp_path / "v05").mkdir()  # a run's folder, say
  assert parse("--config=v05").config.budget.rule == "sequential"
  (tmp_path / "other.py").touch()
  assert "no such config file; the package has one: --config=own" in error(
    capsys, "--config=own.py"
  )
  assert "file\n" in error(capsys, "--config=zzz.py")  # nothing is near but the ending
  assert "of that name, did you mean v05_plus?" in error(capsys, "--config=V05_PLUS")
  assert "v05/: found a folder; the package has one: --config=v05" in error(capsys, "--config=v05/")
  for name in ("", " "):
    assert error(capsys, f"--config={name}").startswith(f"error: --config={name}: found no name")


def test_a_config_as_a_word_is_answered_with_its_flag(capsys):
  assert "did you mean train --config=own?" in error(capsys, "own")
  assert "found the argument 'own', did you mean --config=own?" in error(capsys, "train", "own")
  assert "'eval', did you mean --mode=eval? the mode as a word stands first" in error(
    capsys, "--workdir=runs/a", "eval"
  )


def test_a_file_that_is_something_else_is_told_in_a_few_lines(tmp_path, capsys):
  (tmp_path / "other.json").write_text('{"answer": 3}')
  said = error(capsys, f"--config={tmp_path / 'other.json'}").splitlines()
  assert "answer: found an unknown key" in said[1] and re.fullmatch(r"  and \d+ more", said[-1])
  assert len(said) == command_line.MOST + 2


@pytest.mark.parametrize(
  "typed, meant",
  [
    ("lr", "optimizer.learning_rate"),
    ("optimizer.lr", "optimizer.learning_rate"),
    ("beta", "loss.kl_coef"),
    ("num_generations", "budget.k_init"),
    ("max_new_tokens", "sampler.max_response"),
    ("model_name_or_path", "policy.path"),
    ("train_batch_size", "rollouts_per_step"),
    ("epochs", "loss.epochs"),
    ("max_promt", "sampler.max_prompt"),
    ("steps", "num_steps"),
    ("warmup", "optimizer.warmup_steps"),
    ("learning_rat", "optimizer.learning_rate"),
  ],
)
def test_what_a_key_is_called_elsewhere_is_suggested(typed, meant, capsys):
  found = error(capsys, f"--config.{typed}=1")
  assert f"--config.{typed}: found an unknown config key, did you mean " in found
  assert f"--config.{meant}" in found


def test_every_name_from_elsewhere_is_of_a_key_and_no_key_itself():
  keys = set(config.flatten(default.get_config()))
  words = " ".join(names.ELSEWHERE.values()).split()
  assert set(names.ELSEWHERE) <= keys and len(set(words)) == len(words)
  assert not set(words) & keys


def test_a_run_of_an_earlier_version_goes_on_with_the_keys_that_have_come_since(tmp_path):
  now = default.get_config()
  earlier = config.from_json(config.to_json(now))
  del earlier.data["chat_template_kwargs"], earlier["eval"], earlier.priors["probe"]
  config.check_resume(earlier, now, "here")
  now.data.chat_template_kwargs = "enable_thinking=False"
  with pytest.raises(ValueError, match=r"chat_template_kwargs: found 'enable.*', expected ''"):
    config.check_resume(earlier, now, "here")
  (tmp_path / "config.json").write_text(config.to_json(earlier))
  found = config.load(str(tmp_path / "config.json"))
  assert config.flatten(found) == config.flatten(default.get_config())


@pytest.mark.parametrize(
  "flag, said",
  [
    ("--config.num_steps=abc", "--config.num_steps=abc: found 'abc', expected a whole number"),
    ("--config.num_steps=1.5", "found '1.5', expected a whole number"),
    ("--config.num_steps=", "found '', expected a whole number"),
    ("--config.optimizer.b1=much", "found 'much', expected a finite number"),
    ("--config.loss.share_prompts=maybe", "found 'maybe', expected true or false"),
    ("--config.budget=3", "found '3', expected one of its keys with a value"),
    ("--config.budget={'k_init':", "found \"{'k_init':\", expected one of its keys with a value"),
    ("--config.observe=('exact',", "found \"('exact',\", expected names with commas between, as a"),
    (f"--config.budget={'(' * 999}", ", expected one of its keys with a value"),
    ("--mode=trian", "found 'trian', did you mean train? expected one of train, eval"),
  ],
)
def test_a_value_of_another_type_is_said_in_our_words(flag, said, capsys):
  text = error(capsys, flag)
  assert said in text and text.count("\n") == 1
  apart = flag.replace("=", " ", 1).split(" ")
  if "share_prompts" not in flag and apart[1]:  # a switch takes no word behind it
    assert said in error(capsys, *apart)


@pytest.mark.parametrize("mode", ["eval"])
def test_a_workdir_without_a_run_is_named_with_its_neighbour(mode, tmp_path, capsys):
  (tmp_path / "v05").mkdir()
  (tmp_path / "v05" / "config.json").write_text(config.to_json(default.get_config()))
  found = error(capsys, mode, f"--workdir={tmp_path / 'vo5'}", "--config.eval.samples=8")
  assert f"found no run there (no config.json), did you mean {tmp_path}/v05?" in found
  for flag in ("--config=v05", "--config.policy.path=builtin"):
    assert parse(mode, f"--workdir={tmp_path / 'vo5'}", flag).mode == "eval"
  assert parse("train", f"--workdir={tmp_path / 'vo5'}").config.seed == 0  # a new run
  (tmp_path / "vo").mkdir()  # no run
  far = error(capsys, mode, f"--workdir={tmp_path / 'nothing'}", "--config.eval.samples=8")
  assert "did you mean" not in far
