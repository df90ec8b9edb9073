import concurrent.futures
import math
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from v05_jax import rewards
from v05_jax.rewards import pool, process

ROOT = pathlib.Path(__file__).parents[1]
MODULE = r"""
import ctypes, functools, json, os, re, signal, sys, threading, time

def score(prompt, response, row):
  if response == "hang":
    while True: time.sleep(1)
  if response == "hang with the lock": re.match(r"(a+)+$", "a" * 60 + "b")
  if response == "exit": os._exit(3)
  if response == "segfault": ctypes.string_at(0)
  if response == "raise": raise RuntimeError("boom")
  if response == "quit": sys.exit(1)
  if response == "none": return None
  if response == "text": return "1.0"
  if response == "nan": return float("nan")
  if response == "print": print("noise"); return 1
  if response == "sleep": time.sleep(row["seconds"])
  if response == "jax": return "jax" in sys.modules
  if response == "sigint": return signal.getsignal(signal.SIGINT) is signal.SIG_IGN
  if response == "pid": return os.getpid()
  if response == "library": return json.loads("{")
  if response == "exit later": threading.Timer(0.05, os._exit, [5]).start()
  if response == "alarm later": signal.setitimer(signal.ITIMER_REAL, 0.05)
  return row["value"]

class Scorer:
  method = staticmethod(score)

def two(prompt, response): return 1
def four(prompt, response, row, more): return 1
def named(prompt, response, *, row): return 1
def optional(prompt, response, row, more=None): return 1
def anything(*arguments, **keys): return 1
async def coroutine(prompt, response, row): return 1
def generator(prompt, response, row): yield 1
async def both(prompt, response, row): yield 1
partial = functools.partial(score, "")
whole = functools.partial(optional, more=1)
class Called:
  within = 0.01  # a name of the user's own, which `LLMJudge` has as well
  def __call__(self, prompt, response, row): return 1
called = Called()
number = 3
"""


def config(reward, workers=2, timeout=2.0):
  return SimpleNamespace(reward=reward, rewards=SimpleNamespace(workers=workers, timeout=timeout))


@pytest.fixture
def module(tmp_path, monkeypatch):
  """A user's module in the current directory, which is not on this process's sys.path."""
  (tmp_path / "my_reward.py").write_text(MODULE)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def judge(verifier, *responses, **row):
  handles = verifier.submit([""] * len(responses), list(responses), [row] * len(responses))
  return [handle.result(timeout=300) for handle in handles]


def test_a_bad_verdict_costs_one_reward_and_the_pool_goes_on(module):
  good = {
    "none": "crash",
    "text": "crash",
    "nan": "crash",
    "raise": "crash",
    "quit": "crash",
    "exit": "crash",
    "segfault": "crash",
    "hang": "timeout",
    "hang with the lock": "timeout",
  }
  with rewards.load(config("my_reward:score", timeout=3.0)) as verifier:
    verdicts = judge(verifier, *[r for bad in good for r in ("fine", bad)], "fine", value=0.5)
  assert [v.failure for v in verdicts[1::2]] == list(good.values())
  assert all(math.isnan(v.reward) for v in verdicts[1::2])
  assert [v[:2] for v in verdicts[::2]] == [(0.5, "")] * (len(good) + 1)
  detail = dict(zip(good, (v.detail for v in verdicts[1::2])))
  assert "RuntimeError: boom" in detail["raise"] and "my_reward.py:" in detail["raise"]
  assert "expected a finite number" in detail["text"] and "status 3" in detail["exit"]


def test_what_cannot_be_pickled_fails_alone(module):
  with rewards.load(config("my_reward:Scorer.method", workers=1)) as verifier:
    rows = [{"value": lambda: 0}, {"value": 2}]
    first, second = [h.result(60) for h in verifier.submit(["", ""], ["", ""], rows)]
  assert first.failure == "crash" and "row" in first.detail and second.reward == 2.0


def test_the_time_counts_from_the_start_of_a_verdict(module):
  with rewards.load(config("my_reward:score", workers=1, timeout=3.0)) as verifier:
    started = time.monotonic()
    verdicts = judge(verifier, *["sleep"] * 4, seconds=1.0, value=1)
  assert time.monotonic() - started > 3.0 and [v.reward for v in verdicts] == [1.0] * 4


def test_200_verdicts_belong_to_their_handles(module):
  with rewards.load(config("my_reward:score")) as verifier:
    rows = [{"value": i, "seconds": 0.003 * (i * 7 % 5)} for i in range(200)]
    handles = verifier.submit([""] * 200, ["sleep"] * 200, rows)
    assert [handle.result(60).reward for handle in handles] == list(range(200))


def test_workers_are_quiet_and_light(module, capfd):
  with rewards.load(config("my_reward:score")) as verifier:
    assert [v.reward for v in judge(verifier, "jax", "sigint", "print")] == [0.0, 1.0, 1.0]
    with pytest.raises(ValueError):  # one response short
      verifier.submit(["", ""], [""], [{}, {}])
  assert capfd.readouterr().out == ""


def test_close_with_pending_work(module):
  verifier = rewards.load(config("my_reward:score", workers=1, timeout=60.0))
  pid = int(judge(verifier, "pid")[0].reward)
  running, *pending = verifier.submit([""] * 4, ["hang"] * 4, [{}] * 4)
  time.sleep(0.3)
  started = time.monotonic()
  verifier.close()
  assert time.monotonic() - started < 50  # a verdict may take 60
  assert running.result(0).failure == "crash"
  for handle in pending:
    with pytest.raises(concurrent.futures.CancelledError):
      handle.result(0)
  assert not alive(pid)
  with pytest.raises(ValueError, match="closed"):
    verifier.submit([""], [""], [{}])
  verifier.close()


def test_close_beside_a_worker_that_takes_the_last_job(module, monkeypatch):
  """Between a look at the queue and taking from it: it is not waited for what no one will bring."""
  verifier = rewards.load(config("my_reward:score", workers=1))
  jobs = verifier._jobs
  racing = SimpleNamespace(
    empty=lambda: False, get=jobs.get, get_nowait=jobs.get_nowait, put=jobs.put
  )
  monkeypatch.setattr(verifier, "_jobs", racing)
  thread = threading.Thread(target=verifier.close, daemon=True)
  thread.start()
  thread.join(60)
  assert not thread.is_alive()


@pytest.mark.parametrize(
  "reward, message",
  [
    ("nonsense", "expected task, math, expression, reasoning_gym or module:function"),
    ("no_such_module:f", r"No module named 'no_such_module' in .* or where PYTHONPATH says$"),
    ("my_rewards:score", r"No module named 'my_rewards' in .*, did you mean my_reward.py\?"),
    ("my_reward:no_such_function", r"my_reward has no attribute 'no_such_function'$"),
    ("my_reward:scroe", r"my_reward has no attribute 'scroe', did you mean score\?"),
    ("my_reward.score", r"did you mean my_reward:score\? expected task, math"),
    ("maths", r"did you mean math\? expected task, math"),
    ("my_reward", r"found 'my_reward', did you mean my_reward:FUNCTION\? expected task, math"),
    ("my_reward.py", r"did you mean my_reward:FUNCTION\?"),
    ("rewards/my_reward.py", r"did you mean rewards.my_reward:FUNCTION\?"),
    ("my_reward.py:score", r"did you mean my_reward:score\?"),
    ("rewards/my_reward.py:score", r"did you mean rewards.my_reward:score\?"),
    ("my_reward:number", "number is a int, expected a function"),
    ("dies:f", "status 7"),
    ("exits:f", "SystemExit: 2 .*exits.py:2"),
    ("os:system", r"system\(command\) has other parameters"),
    ("operator:add", "has other parameters"),
    ("my_reward:two", r"two\(prompt, response\) has other parameters \(too many positional"),
    ("my_reward:four", "missing a required argument: 'more'"),
    ("my_reward:named", "has other parameters"),
    ("my_reward:partial", "has other parameters"),
    ("my_reward:Called", "has other parameters"),
    ("my_reward:generator", "generator is a generator"),
    ("my_reward:both", "both is a generator"),
  ],
)
def test_an_unusable_function_is_an_error_at_load(module, reward, message):
  (module / "dies.py").write_text("import os; os._exit(7)")
  (module / "exits.py").write_text("import sys\nsys.exit(2)")
  with pytest.raises(ValueError, match=message) as error:
    rewards.load(config(reward))
  assert f"config.reward = {reward!r}" in str(error.value)


@pytest.mark.parametrize("name", ["optional", "anything", "whole", "called"])
def test_whatever_can_be_called_with_three_arguments_is_a_reward(module, name):
  with rewards.load(config(f"my_reward:{name}", workers=1)) as verifier:
    assert judge(verifier, "")[0].reward == 1.0


@pytest.mark.parametrize(
  "key, value",
  [
    *[("workers", x) for x in (0, -1, True, 2.5, "2", None, 10**9)],
    *[("timeout", x) for x in (0.0, -1.0, True, "10", None, math.nan, math.inf)],
    *[("timeout", x) for x in (1e9, 1e300, 86_401, 10**400)],
  ],
)
def test_unusable_options_are_an_error_at_load(key, value):
  with pytest.raises(ValueError, match=f"config.rewards.{key}: found .*, expected "):
    rewards.load(config("math", **{key: value}))


def test_the_longest_time_limit_works(module):
  with rewards.load(config("my_reward:score", workers=1, timeout=86_400)) as verifier:
    assert judge(verifier, "", value=2)[0].reward == 2.0


def test_an_error_names_the_line_of_the_users_file(module):
  with rewards.load(config("my_reward:score", workers=1, timeout=60.0)) as verifier:
    (found,) = judge(verifier, "library")
  line = 1 + MODULE.splitlines().index('  if response == "library": return json.loads("{")')
  assert "JSONDecodeError" in found.detail and f"my_reward.py:{line})" in found.detail


@pytest.mark.parametrize("response", ["exit later", "alarm later"])
def test_a_worker_that_ends_between_two_verdicts_costs_none(module, response):
  with rewards.load(config("my_reward:score", workers=1, timeout=60.0)) as verifier:
    pid = int(judge(verifier, "pid")[0].reward)
    first = judge(verifier, response, value=1)
    assert not alive(pid)
    assert [v.reward for v in first + judge(verifier, "", value=2)] == [1.0, 2.0]


def test_a_worker_that_does_not_read_costs_its_time_alone(module):
  """Stopped between two verdicts, and sent more than the socket holds."""
  with rewards.load(config("my_reward:score", workers=1, timeout=2.0)) as verifier:
    os.kill(int(judge(verifier, "pid")[0].reward), signal.SIGSTOP)
    stopped, after = judge(verifier, "x" * 10_000_000, "", value=2)
  assert stopped.failure == "timeout" and after.reward == 2.0


class Hostile:
  """An object in a row that raises when it is sent."""

  def __init__(self, error):
    self.error = error

  def __reduce__(self):
    raise self.error


def test_whatever_an_object_in_a_row_raises_fails_alone(module):
  deep = []
  for _ in range(100_000):
    deep = [deep]
  values = [Hostile(e) for e in (KeyboardInterrupt(), SystemExit(), MemoryError(), OSError())]
  with rewards.load(config("my_reward:score", workers=1, timeout=60.0)) as verifier:
    rows = [{"value": x} for x in (1, *values, deep, 2)]
    handles = verifier.submit([""] * len(rows), [""] * len(rows), rows)
    first, *failed, last = [handle.result(timeout=300) for handle in handles]
  assert (first.reward, last.reward) == (1.0, 2.0)
  assert all(v.failure == "crash" and "cannot be sent" in v.detail for v in failed)
  while deep:  # else its end would recurse as deeply
    deep = deep.pop()


@pytest.mark.parametrize("error", [BlockingIOError(11, "no process"), MemoryError()])
def test_a_system_without_room_for_a_process_costs_verdicts_and_no_thread(
  module, monkeypatch, error
):
  monkeypatch.setattr(pool, "PAUSES", (0.01, 0.01))
  with rewards.load(config("my_reward:score", workers=1, timeout=60.0)) as verifier:
    start, attempts = subprocess.Popen, []

    def short(*arguments, **keys):
      attempts.append(arguments)
      if len(attempts) <= 4:
        raise error
      return start(*arguments, **keys)

    monkeypatch.setattr(subprocess, "Popen", short)
    verdicts = judge(verifier, "exit", "", "", value=2)
  assert [v.failure for v in verdicts] == ["crash", "crash", ""] and len(attempts) == 5
  assert "a worker cannot be started" in verdicts[1].detail and verdicts[2].reward == 2.0


def test_no_process_at_the_start_is_an_error_at_load(module, monkeypatch):
  monkeypatch.setattr(pool, "PAUSES", ())

  def short(*arguments, **keys):
    raise BlockingIOError(11, "no process")

  monkeypatch.setattr(subprocess, "Popen", short)
  with pytest.raises(
    ValueError, match=r"config.reward = .*a worker cannot be started: .*no process"
  ):
    rewards.load(config("my_reward:score"))


def test_what_nobody_expects_in_a_thread_is_a_failed_verdict(module, monkeypatch):
  with rewards.load(config("my_reward:score", workers=1, timeout=60.0)) as verifier:
    right = process.parse
    for error in (OverflowError("large"), RecursionError(), SystemExit(3), KeyError("x")):

      def wrong(line, error=error):
        raise error

      monkeypatch.setattr(process, "parse", wrong)
      (failed,) = judge(verifier, "", value=1)
      assert failed.failure == "crash" and type(error).__name__ in failed.detail
      monkeypatch.setattr(process, "parse", right)
      assert judge(verifier, "", value=1)[0].reward == 1.0


@pytest.mark.parametrize(
  "line",
  [
    *[b"", b"x", b"1", b"null", b"true", b"{}", b'"abc"', b"[]", b"[1, 2]", b"[1, 2, 3]"],
    *[b'[1, 2, "", 3]', b'[1.0, 2, ""]', b'[true, 2, ""]', b'["1", 2, ""]', b'[1, true, ""]'],
    *[b'[1, "2", ""]', b'[1, null, ""]', b'[1, NaN, ""]', b'[1, Infinity, ""]', b'[1, 1e999, ""]'],
    *[b'[1, [2], ""]', b"[1, 2, null]", b'[1, 2, [""]]', b'{"a": 1, "b": 2, "c": ""}'],
    *[b"[1, 1" + b"0" * 400 + b', ""]', b"[1, " + b"9" * 9000 + b', ""]', b"[" * 60_000],
    *[b'\xff\xfe[1, 2, ""]', b"\xff", b'[1, 2, ""] [1, 2, ""]', b'[1, 2, "'],
  ],
)
def test_a_reply_that_is_no_verdict_is_refused(line):
  with pytest.raises(process.Lost, match=r"expected .number, reward, error."):
    process.parse(line)


def test_replies_are_read_as_they_are_written():
  assert process.parse(b'[7, 0.5, ""]') == (7, 0.5, "")
  assert process.parse(b'[7, 1, ""]') == (7, 1.0, "")
  number, reward, error = process.parse(b'[7, NaN, "why"]')
  assert number == 7 and math.isnan(reward) and error == "why"


def test_the_built_in_tasks_are_judged_in_this_process():
  with rewards.load(config("task")) as verifier:
    assert isinstance(verifier, rewards.Direct)
  verifier = rewards.Direct(lambda prompt, response, row: response == row["answer"])
  handles = verifier.submit(["", ""], ["4", "5"], [{"answer": "4"}] * 2)
  assert [h.result().reward for h in handles] == [1.0, 0.0]


SCRIPT = """
import sys, types
print("main", flush=True)
from v05_jax import rewards
options = types.SimpleNamespace(workers=1, timeout=100.0)
verifier = rewards.load(types.SimpleNamespace(reward="my_reward:score", rewards=options))
print(int(verifier.submit([""], ["pid"], [{}])[0].result().reward), flush=True)
for response in sys.argv[1:]:
  verifier.submit([""], [response], [{}])[0].result()
"""


def start_script(module, *responses):
  (module / "script.py").write_text(SCRIPT)
  return subprocess.Popen(
    [sys.executable, "script.py", *responses],
    cwd=module,
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )


def test_a_script_without_a_main_guard_runs_once_and_leaves_nothing(module):
  process = start_script(module)
  lines = process.communicate(timeout=300)[0].split()
  assert process.returncode == 0 and len(lines) == 2 and lines[0] == "main"
  assert not alive(int(lines[1]))


@pytest.mark.parametrize("response", ["hang", "hang with the lock"])
def test_workers_die_with_the_run(module, response):
  if response == "hang with the lock" and sys.platform != "linux":
    pytest.skip("only Linux signals the death of a parent")
  process = start_script(module, response)
  process.stdout.readline()
  worker = int(process.stdout.readline())
  time.sleep(0.3)
  assert alive(worker, patience=0.1)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not alive(worker)


def alive(pid, patience=60.0):
  """Whether the process still runs after `patience` seconds (or at once, if it is gone earlier). It
  is gone when its last thread is: until then its files are open."""
  end = time.monotonic() + patience
  while time.monotonic() < end:
    try:
      os.kill(pid, 0)
      state = pathlib.Path(f"/proc/{pid}/stat")
      if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
        if len(os.listdir(f"/proc/{pid}/task")) <= 1:
          return False
    except (ProcessLookupError, FileNotFoundError):
      return False
    time.sleep(0.05)
  return True


MATH = [
  (r"so \boxed{\frac{1}{2}}", "0.5", 1),
  (r"\boxed{0.5}", r"\frac{1}{2}", 1),
  (r"\boxed{0.33}", "1/3", 0),
  (r"the answer is $\frac{3}{4}$.", "0.75", 1),
  ("we get 3, then 17", "17", 1),
  ("we get 17, then 3", "17", 0),
  ("12", 12, 1),
  (r"\boxed{1,234}", "1234", 1),
  (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}", 1),
  (r"\boxed{\frac{1}{\frac{1}{\sqrt{4}}}}", "2", 1),
  (r"first \boxed{3}, no: \boxed{4}", "4", 1),
  (r"first \boxed{3}, no: \boxed{4}", "3", 0),
  (r"\boxed{[0,1)}", "[0,1)", 1),
  (r"\boxed{[0,\frac{2}{2})}", "[0, 1)", 1),
  (r"\boxed{(0,1)}", "[0,1)", 0),
  (r"\boxed{\{2,1\}}", r"\{1,2\}", 1),
  (r"\boxed{\left\{ 1, 2 \right\}}", r"\{1,2\}", 1),
  (r"\boxed{x^2+2x}", "x(x+2)", 1),
  (r"\boxed{x=3}", "3", 1),
  (r"\boxed{50\%}", "0.5", 1),
  (r"\boxed{\text{even}}", "even", 1),
  (r"\boxed{\$5}", "5", 1),
  (r"\boxed{5}", "$5$", 1),
  (r"\boxed{5}", "3 + 2 = 5 for 7 people\n#### 5", 1),
  (r"\boxed{7}", r"so it is $\boxed{7}$", 1),
  ("I do not know", "3", 0),
  ("", "3", 0),
  (r"3 \boxed{}", "3", 0),
  (r"\boxed{}", "", 0),
  (r"\boxed{4.5 \times 10^{33}}", "4.5e33", 1),
  (r"\boxed{4.5e+33}", r"4.5 \cdot 10^{33}", 1),
  (r"\boxed{4.4e33}", "4.5e33", 0),
  (r"\boxed{2e}", "2e", 1),
  (r"\boxed{5e-24}", "3e-24", 0),  # 6 decimals of both are 0
  (r"\boxed{0}", "1e-9", 0),
  (r"\boxed{0.00000000100}", "1e-9", 1),
  (r"\boxed{\frac{1}{10^9}}", r"10^{-9}", 1),
  (r"\boxed{0.0005}", "5e-4", 1),
  ("so it is 0.000000001", r"2 \times 10^{-9}", 0),
  (r"\boxed{2 \text{ and } -2}", "-2, 2", 1),
  (r"\boxed{2}", "2, -2", 0),
  (r"\boxed{(1,2)}", "(2,1)", 0),
  (r"\boxed{336}", r"336^\circ", 1),
  (r"\boxed{25}", "025", 1),
]


@pytest.mark.parametrize("response, gold, reward", MATH)
def test_math(response, gold, reward):
  from v05_jax.rewards import math as mathematics

  assert mathematics.verify("", response, {"answer": gold}) == reward


@pytest.mark.parametrize(
  "text, answer",
  [
    (r"\boxed{\frac{1}{2}} \boxed{cut off", r"\frac{1}{2}"),
    (r"\fbox {a{b}{c{d}}}", "a{b}{c{d}}"),
    (r"\boxed{\left\{ x, y \right.}", r"\left\{ x, y \right."),
    (r"} \boxed{ \boxed{7} }", "7"),
    (r"\boxed{" * 100_000, None),  # in linear time
    ("boxed{3}", None),
  ],
)
def test_boxed(text, answer):
  from v05_jax.rewards import math as mathematics

  assert mathematics.boxed(text) == answer


def test_math_in_a_worker_that_sympy_hangs():
  with rewards.load(config("math", workers=1, timeout=5.0)) as verifier:
    verdicts = judge(
      verifier, r"\boxed{\prod_{k=1}^{10^8} \sin k}", r"\boxed{\frac{6}{2}}", answer="3"
    )
  assert [v.failure for v in verdicts] == ["timeout", ""] and verdicts[1].reward == 1.0


def test_the_overlong_penalty():
  length = np.array([[0, 6, 7], [8, 9, 10]])
  penalty = rewards.overlong_penalty(length, limit=10, buffer=4)
  np.testing.assert_allclose(penalty, [[0, 0, -0.25], [-0.5, -0.75, -1]])
  assert penalty.dtype == np.float32
  np.testing.assert_array_equal(rewards.overlong_penalty(length, 10, buffer=0), np.zeros((2, 3)))
  # Prompts with limits of their own, one of them shorter than the buffer.
  limits = np.array([[7], [2]])
  penalty = rewards.overlong_penalty(np.array([[3, 5, 7], [0, 1, 2]]), limits, buffer=4)
  np.testing.assert_allclose(penalty, [[0, -0.5, -1], [0, -0.5, -1]])
