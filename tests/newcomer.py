"""A first hour, as somebody new has it: a fresh clone, a fresh environment, another folder.

    make newcomer          or  python3 -m tests.newcomer [--folder=DIR] [--dry]

Types what a newcomer types and keeps what was on the screen as docs/first_hour.md. Stops at the
first command that does not do what it should, and then leaves the page as it is; with the same
--folder it goes on from there. Needs git, pip with a registry, and nothing but Python's standard
library.
"""

import argparse
from collections.abc import Callable
import json
import os
from pathlib import Path
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "first_hour.md"
LIMIT = 600  # seconds that one command may take
HEAD, TAIL = 14, 12  # lines of a long output that the page keeps
WIDTH = 160  # characters of a line
DONE = ".done.jsonl"  # in the folder: [exit status, screen, seconds] of each step that went well
MARK = "\x1e"  # before the output of each command
# What of the caller's environment a newcomer has too: where pip finds packages, and how.
KEPT = re.compile(r"PATH|LANG|LC_\w+|TERM|TZ|PIP_\w+|SSL_\w+|\w+_proxy|\w+_PROXY|REQUESTS_\w+")

PROBLEMS = """\
import json
import random

numbers = random.Random(0).sample(range(800), 800)
for name, part in (("problems", numbers[:640]), ("heldout", numbers[640:])):
  with open(f"{name}.jsonl", "w") as file:
    for n in part:
      a, m = n // 8, n % 8 + 2
      print(json.dumps({"prompt": f"M{a:02d}{m}=", "answer": str(a % m)}), file=file)
"""
REWARD = '''\
def brief(prompt: str, response: str, row: dict) -> float:
  """Right answers, short ones worth more."""
  right = response.endswith(row["answer"])
  return 1.0 / len(response) if right else 0.0
'''
OPENS = """\
from transformers import AutoConfig, AutoTokenizer

print(AutoConfig.from_pretrained("mine-hf").architectures)
print(AutoTokenizer.from_pretrained("mine-hf")("C7+5=").input_ids)
"""
OWN = (
  "v05 train --config=own --config.data.path=problems.jsonl --config.policy.path=first-hf \\\n"
  "    --config.sampler.max_prompt=16 --config.sampler.max_response=16 \\\n"
  "    --config.optimizer.learning_rate=1e-3 --config.num_steps=30"
)
HELD_OUT = "\\\n    --config.eval.path=heldout.jsonl --config.eval.period=10"


class Step(NamedTuple):
  """Something that a newcomer does."""

  title: str
  text: str
  command: str
  fails: bool = False  # whether it ends with an exit status other than 0
  wanted: str = ""  # what must be on the screen: a regular expression
  files: tuple[str, ...] = ()  # what must be there afterwards
  stop_at: str = ""  # a file of metrics: Ctrl-C once it has three lines
  write: tuple[str, str] = ("", "")  # (name, text) of a file that is written before


STEPS = (
  Step(
    "Install",
    "A clone, an environment, and the package with its plots and one tracker.",
    "git clone -q {address} v05_jax\npython3 -m venv env\n. env/bin/activate\n"
    'pip install -q "./v05_jax[plots,wandb]"\nv05 --version',
    wanted=r"v05_jax \d",
  ),
  Step(
    "A first run",
    "Model, problems and verifier are built in: [six families of puzzles](tasks.md). The config "
    "`v05` has 64 steps; 24 are enough to see it move.",
    "v05 train --config=v05 --config.num_steps=24 --workdir=first",
    wanted="step 24/24",
    files=("first/metrics.jsonl", "first/summary.png", "first/config.json"),
  ),
  Step(
    "Own problems",
    "A line for each problem, `prompt` and `answer`; some are kept apart to evaluate on. For a "
    "model of one's own the newcomer takes what the first run has learned, in the format of "
    "Hugging Face: these problems are in its language, `M477=` is 47 modulo 7. A model of the hub "
    "has the same flags.",
    "python problems.py && wc -l *.jsonl && head -n 2 problems.jsonl\n"
    "v05 export --workdir=first --out=first-hf",
    wanted="first-hf",
    files=("first-hf/model.safetensors", "first-hf/config.json"),
    write=("problems.py", PROBLEMS),
  ),
  Step(
    "Own run, in a log file",
    "`--config=own` chooses what depends on memory and says so. The lengths and the rate are those "
    "of a model of 58,000 parameters. In a log a line comes now and then, not one that is written "
    "over.",
    f"nohup {OWN} {HELD_OUT} --workdir=mine > mine.log 2>&1\ncat mine.log",
    wanted="step 30/30",
    files=("mine/metrics.jsonl", "mine/summary.png"),
  ),
  Step(
    "Own reward, and Weights & Biases",
    "Two rewards with weights, one of them a function in a file; metrics go to wandb as well, "
    "which keeps them in the run's folder as nobody is logged in.",
    f"""{OWN} {HELD_OUT} --workdir=brief \\
    --config.reward='[["math", 1.0], ["my_reward:brief", 0.1]]' \\
    --config.metrics.sinks="('jsonl','tensorboard','wandb')"
ls brief brief/wandb
tail -n 1 brief/metrics.jsonl | tr ',' '\\n' | grep reward""",
    wanted="reward/brief",
    files=("brief/metrics.jsonl", "brief/tensorboard", "brief/wandb"),
    write=("my_reward.py", REWARD),
  ),
  Step(
    "Stopped, and continued",
    "Ctrl-C after a few steps; the same command goes on.",
    f"{OWN} --workdir=stopped",
    fails=True,
    wanted="stopped",
    stop_at="stopped/metrics.jsonl",
  ),
  Step("", "", f"{OWN} --workdir=stopped", wanted="resumed at step"),
  Step(
    "What the next step would see",
    "Prompt, V, rollouts with rewards and advantages.",
    "v05 sample --workdir=mine --prompts=1",
    wanted="advantage",
  ),
  Step(
    "Evaluate",
    "Eight samples of each held-out problem, with intervals.",
    "v05 eval --workdir=mine --config.eval.samples=8",
    wanted="mean@8",
    files=("mine/eval.md", "mine/eval.json", "mine/eval.jsonl"),
  ),
  Step(
    "Compare",
    "One page for both runs, which loads nothing from elsewhere.",
    "v05 report --workdir=mine,brief --out=report && ls report",
    files=("report/comparison.html",),
  ),
  Step(
    "Take it away",
    "",
    "v05 export --workdir=mine --out=mine-hf && ls mine-hf\npython opens.py",
    wanted="Qwen3ForCausalLM",
    files=("mine-hf/model.safetensors",),
    write=("opens.py", OPENS),
  ),
  Step(
    "Mistakes",
    "What is mistyped is answered before anything expensive.",
    "v05 train --config=onw",
    fails=True,
    wanted="did you mean own",
  ),
  Step(
    "", "", "v05 train --config=v05 --config.num_step=8 --workdir=x", fails=True, wanted="num_steps"
  ),
  Step(
    "",
    "",
    "v05 train --config=own --config.data.path=problem.jsonl --workdir=x",
    fails=True,
    wanted="problem.jsonl",
  ),
)


def environment(folder: Path) -> dict[str, str]:
  """A newcomer's: a new home, no settings of this machine but those of its packages."""
  found = {name: x for name, x in os.environ.items() if KEPT.fullmatch(name)}
  return found | {"HOME": str(folder), "COLUMNS": "120"}


def commands(step: Step) -> list[str]:
  """What is typed, one after another; some go over several lines."""
  return re.split(r"(?<!\\)\n", step.command)


def run(step: Step, folder: Path) -> tuple[int, str]:
  """(exit status, what was on the screen) of a step's commands in `folder`, `MARK` before each."""
  activate = ". env/bin/activate; " if (folder / "env").exists() else ""
  marked = "\n".join(f"printf '{MARK}'\n{command}" for command in commands(step))
  script = activate + (f"exec {step.command}" if step.stop_at else marked)
  with tempfile.TemporaryFile() as screen:
    process = subprocess.Popen(
      ["bash", "-ec", script.format(address=ROOT)],
      cwd=folder,
      env=environment(folder),
      stdin=subprocess.DEVNULL,
      stdout=screen,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    try:
      if step.stop_at:
        interrupt(process, folder / step.stop_at)
      code = process.wait(LIMIT)
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    screen.seek(0)
    return code, screen.read().decode(errors="replace")


def interrupt(process, metrics: Path):
  """Ctrl-C once three steps are written."""
  end = time.monotonic() + LIMIT
  lines = lambda: len(metrics.read_text().splitlines()) if metrics.exists() else 0
  while process.poll() is None and lines() < 3 and time.monotonic() < end:
    time.sleep(0.1)
  if process.poll() is None:
    process.send_signal(signal.SIGINT)


def wrong(step: Step, code: int, screen: str, folder: Path) -> str:
  """What a step should have done and has not; "" = nothing."""
  if bool(code) != step.fails:
    return f"exit status {code}, expected {'another' if step.fails else 0}"
  if not re.search(step.wanted, screen):
    return f"the screen has no {step.wanted!r}"
  missing = [name for name in step.files if not (folder / name).exists()]
  return f"there is no {', '.join(missing)}" if missing else ""


def cleaned(screen: str, folder: Path) -> str:
  """What the page keeps of a screen: no codes of terminals, no paths of this machine, the first and
  last lines of a long one; of several commands' each alone."""
  if MARK in screen:
    return MARK.join(cleaned(part, folder) for part in screen.split(MARK))
  text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", screen.replace("\r\n", "\n")).rstrip("\n")
  lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
  lines = [line.replace(str(folder), "~").replace(str(ROOT), "v05_jax") for line in lines]
  if len(lines) > HEAD + TAIL + 1:
    left_out = f"... {len(lines) - HEAD - TAIL} lines ..."
    lines = [*lines[:HEAD], left_out, *lines[-TAIL:]]
  return "\n".join(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in lines)


def section(step: Step, code: int, screen: str, seconds: float) -> str:
  """A step as it stands on the page."""
  parts = [f"## {step.title}", step.text] if step.title else []
  if step.write[0]:
    parts.append(f"```python\n# {step.write[0]}\n{step.write[1].rstrip()}\n```")
  shown, outputs = [], screen.removeprefix(MARK).split(MARK)
  for command, output in zip(commands(step), outputs, strict=True):
    shown.append(f"$ {command.format(address='ADDRESS')}")
    output = output.replace("\n\nSIGINT", "\n^C\nSIGINT")  # as a terminal shows the key
    shown += [output] if output else []
  parts.append("```console\n" + "\n".join(shown) + "\n```")
  parts.append(f"{seconds:.0f} s" + (f", exit status {code}" if code else ""))
  return "\n\n".join(part for part in parts if part)


def page(sections: list[str], seconds: float) -> str:
  version, cores = platform.python_version(), os.cpu_count()
  return (
    "# A first hour\n\n"
    "What somebody new types, and what was on the screen: kept by `make newcomer`, which goes "
    "through it in a fresh clone and a fresh environment, from another folder, without any cache. "
    f"Python {version}, {cores} CPU cores, {seconds / 60:.1f} minutes, installation included.\n\n"
    + "\n\n".join(sections)
    + "\n"
  )


def go(folder: Path, say: Callable[[str], None] = print) -> str:
  """Goes through `STEPS` in `folder`, which is empty, or on from those that went well there -> the
  page. Raises RuntimeError with the screen of the first step that went wrong."""
  path = folder / DONE
  done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  for step in STEPS[len(done) :]:
    say(f"$ {step.command.format(address=ROOT)}")
    if step.write[0]:
      (folder / step.write[0]).write_text(step.write[1])
    start = time.monotonic()
    code, screen = run(step, folder)
    took = time.monotonic() - start
    say(f"{screen.replace(MARK, '')}({took:.0f} s)\n")
    if problem := wrong(step, code, screen, folder):
      raise RuntimeError(f"{step.command}\n{problem}")
    done.append((code, screen, took))
    with path.open("a") as file:
      print(json.dumps(done[-1]), file=file)
  sections = [
    section(step, code, cleaned(screen, folder), took)
    for step, (code, screen, took) in zip(STEPS, done, strict=True)
  ]
  return page(sections, sum(took for _, _, took in done))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument(
    "--folder", help="where to work, and to leave everything; else a temporary one"
  )
  parser.add_argument("--dry", action="store_true", help="leave docs/first_hour.md as it is")
  options = parser.parse_args()
  folder = Path(options.folder or tempfile.mkdtemp(prefix="newcomer-")).resolve()
  folder.mkdir(parents=True, exist_ok=True)
  try:
    text = go(folder)
  except (RuntimeError, subprocess.TimeoutExpired) as error:
    sys.exit(f"error: {error}\neverything is in {folder}")
  if not options.dry:
    PAGE.write_text(text)
    print(f"{PAGE.relative_to(ROOT)}: written")
  if not options.folder:
    shutil.rmtree(folder)


if __name__ == "__main__":
  main()
