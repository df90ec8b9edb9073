"""Reward functions that misbehave in every way that we know: each costs its own verdict at most.

`ATTACKS` says for each, by name, what it does and what its verdict may be. Before and after each
stands a good verdict of a value of its own, so that a reply which reaches another rollout is seen.
`make test` tries those that are quick, `make test-long` all, on one worker and on several.
"""

import fcntl
import math
import time
from types import SimpleNamespace

import pytest

from v05_jax import rewards

CRASH, TIMEOUT = "crash", "timeout"
HELPERS = '''
import ctypes, gc, json, multiprocessing, os, resource, signal, socket, struct, subprocess, sys
import threading, time

MAIN = os.getpid()

def connections():
  """Descriptors of sockets, the worker's own among them."""
  found = []
  for number in range(3, 64):
    try:
      if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"): found.append(number)
    except OSError: pass
  return found

def write(data):
  for number in connections(): os.write(number, data)

def reply(*parts): write(json.dumps(parts).encode() + b"\\n")

def later(seconds, work):
  def wait(): time.sleep(seconds); work()
  threading.Thread(target=wait, daemon=True).start()

def endless():
  while True: time.sleep(1)

class Odd:
  def __init__(self, value): self.value = value
  def __float__(self):
    if isinstance(self.value, BaseException): raise self.value
    return self.value
  def __repr__(self): raise RuntimeError("no repr")

class Rude(Exception):
  def __str__(self): raise RuntimeError("no text")
'''

# name: (what the function does, what its verdict is: a reward, or a failure).
ATTACKS = {
  # It returns what is no number.
  "none": ("return None", CRASH),
  "text": ("return '1.0'", CRASH),
  "bytes": ("return b'1'", CRASH),
  "list": ("return [1.0]", CRASH),
  "dict": ("return {'score': 1.0}", CRASH),
  "complex": ("return 1j", CRASH),
  "nan": ("return float('nan')", CRASH),
  "inf": ("return -float('inf')", CRASH),
  "beyond_float32": ("return 1e300", CRASH),
  "beyond_float": ("return 10**400", CRASH),
  "true": ("return True", 1.0),
  "whole_number": ("return 3", 3.0),
  "text_of_numpy": ("import numpy; return numpy.str_('1')", CRASH),
  "text_array": ("import numpy; return numpy.array('1')", CRASH),
  "complex_of_numpy": ("import numpy; return numpy.complex64(1)", CRASH),
  "array_of_two": ("import numpy; return numpy.ones(2)", CRASH),
  "number_of_numpy": ("import numpy; return numpy.float16(0.5)", 0.5),
  "array_of_none": ("import numpy; return numpy.array(0.5)", 0.5),
  "bool_of_numpy": ("import numpy; return numpy.bool_(True)", 1.0),
  "decimal": ("import decimal; return decimal.Decimal('0.5')", 0.5),
  "fraction": ("import fractions; return fractions.Fraction(1, 4)", 0.25),
  "a_class": ("return float", CRASH),
  "odd_number": ("return Odd(0.5)", 0.5),
  "odd_nan": ("return Odd(float('nan'))", CRASH),
  "odd_raises": ("return Odd(SystemExit(1))", CRASH),
  "huge_text": ("return 'x' * 10**7", CRASH),
  # It raises.
  "raise": ("raise RuntimeError('boom')", CRASH),
  "rude_exception": ("raise Rude()", CRASH),
  "code_without_a_file": ("exec(compile('raise ValueError(1)', '', 'exec'))", CRASH),
  "code_of_no_name": (r"exec(compile('1/0', '\ud800', 'exec'))", CRASH),
  "long_exception": ("raise ValueError('x' * 10**6)", CRASH),
  "surrogates": (r"raise ValueError('\ud800')", CRASH),
  "key_error": ("return row['no such field']", CRASH),
  "exit_by_exception": ("sys.exit(0)", CRASH),
  "interrupt": ("raise KeyboardInterrupt", CRASH),
  "generator_exit": ("raise GeneratorExit", CRASH),
  "stop_iteration": ("return next(iter(()))", CRASH),
  "memory": ("raise MemoryError", CRASH),
  "recursion": ("def f(): return f()\n  return f()", CRASH),
  # It ends its process, or stops it.
  "exit": ("os._exit(3)", CRASH),
  "exit_well": ("os._exit(0)", CRASH),
  "abort": ("os.abort()", CRASH),
  "segfault": ("ctypes.string_at(0)", CRASH),
  "kill": ("os.kill(os.getpid(), signal.SIGKILL); endless()", CRASH),
  "kill_group": ("os.killpg(0, signal.SIGKILL); endless()", CRASH),
  "terminate": ("os.kill(os.getpid(), signal.SIGTERM); endless()", CRASH),
  "stop": ("os.kill(os.getpid(), signal.SIGSTOP)", TIMEOUT),
  "replaced": ("os.execv('/bin/true', ['true'])", CRASH),
  "replaced_by_a_sleeper": ("os.execv('/bin/sleep', ['sleep', '1000'])", CRASH),
  # It hangs.
  "hang": ("endless()", TIMEOUT),
  "hang_with_the_lock": ("import re; re.match(r'(a+)+$', 'a' * 60 + 'b')", TIMEOUT),
  "hang_deaf": (
    "[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGHUP)]; endless()",
    TIMEOUT,
  ),
  "wait_for_input": ("return len(sys.stdin.read())", 0.0),
  "wait_for_a_lock": ("lock = threading.Lock(); lock.acquire(); lock.acquire()", TIMEOUT),
  # It forks, or starts processes and threads.
  "fork_both_answer": ("os.fork(); return 0.5", 0.5),
  "fork_twice": ("os.fork(); os.fork(); return 0.5", 0.5),
  "fork_child_late": ("\n  if os.fork() == 0: time.sleep(0.3)\n  return 0.5", 0.5),
  "fork_child_answers": ("\n  if os.fork(): endless()\n  return 0.5", TIMEOUT),
  "fork_child_raises": ("\n  if os.fork() == 0: raise ValueError('child')\n  return 0.5", 0.5),
  "fork_child_stays": ("\n  if os.fork() == 0: endless()\n  return 0.5", 0.5),
  "fork_child_stays_and_exit": ("\n  if os.fork() == 0: endless()\n  os._exit(3)", CRASH),
  "fork_and_leave_the_child": ("\n  if os.fork(): os._exit(0)\n  return 0.5", CRASH),
  "fork_beneath_python": ("ctypes.CDLL(None).fork(); return 0.5", 0.5),
  "fork_beneath_python_late": (
    "\n  if ctypes.CDLL(None).fork() == 0: time.sleep(0.3)\n  return 0.5",
    0.5,
  ),
  "multiprocessing": (
    "context = multiprocessing.get_context('fork')\n"
    "  child = context.Process(target=time.sleep, args=(0.01,)); child.start(); child.join()\n"
    "  return 0.5",
    0.5,
  ),
  "fork_in_a_thread": (
    "t = threading.Thread(target=os.fork); t.start(); t.join(); return 0.5",
    0.5,
  ),
  "command": ("subprocess.run(['true']); return 0.5", 0.5),
  "command_stays": ("subprocess.Popen(['sleep', '1000'], close_fds=False); return 0.5", 0.5),
  "command_stays_and_exit": ("os.system('sleep 1000 &'); os._exit(3)", CRASH),
  "threads": ("[threading.Thread(target=endless).start() for _ in range(9)]; return 0.5", 0.5),
  "thread_prints_later": ("later(0.05, lambda: print('late')); return 0.5", 0.5),
  # It prints, and meddles with descriptors.
  "print": ("print('noise', flush=True); return 0.5", 0.5),
  "print_much": ("print('x' * 10**6); return 0.5", 0.5),
  "no_stdout": ("sys.stdout = None; sys.stderr = None; return 0.5", 0.5),
  "close_stdout": ("os.close(1); os.close(2); return 0.5", 0.5),
  "close_all": ("os.closerange(0, 64); return 0.5", CRASH),
  "close_and_live": ("os.closerange(3, 64); endless()", CRASH),
  "no_more_files": ("resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); open('/dev/null')", CRASH),
  "not_its_folder": ("os.chdir('/'); return 0.5", 0.5),
  "no_path": ("sys.path.clear(); return 0.5", 0.5),
  "no_environment": ("os.environ.clear(); return 0.5", 0.5),
  "no_garbage_collector": ("gc.disable(); gc.freeze(); return 0.5", 0.5),
  "other_json": ("json.dumps = lambda x: '[-7, 9.0, \"\"]'; return 0.5", 0.5),
  "no_json": ("json.dumps = lambda x: 'nonsense'; return 0.5", 0.5),
  # It writes to the worker's own connection.
  "noise": ("write(b'noise'); return 0.5", CRASH),
  "noise_line": ("write(b'noise' + bytes([10])); return 0.5", CRASH),
  "framed_noise": ("write(struct.pack('!i', 3) + b'[1]'); return 0.5", CRASH),
  "not_utf8": ("write(bytes([0xff, 0xfe, 10])); return 0.5", CRASH),
  "half_a_line": ("write(b'[1, 2'); endless()", TIMEOUT),
  "list_of_two": ("reply(1, 2); return 0.5", CRASH),
  "reply_true": ("reply(1, True, ''); return 0.5", CRASH),
  "reply_text": ("reply(1, '1', ''); return 0.5", CRASH),
  "reply_nan": ("reply(1, float('nan'), ''); return 0.5", CRASH),
  "reply_null": ("reply(1, None, ''); return 0.5", CRASH),
  "reply_huge": ("reply(1, 10**400, ''); return 0.5", CRASH),
  "reply_many_digits": ("write(b'[1, ' + b'9' * 9000 + b']' + bytes([10])); return 0.5", CRASH),
  "number_true": ("reply(True, 9.0, ''); return 0.5", CRASH),
  "reply_dict": ('write(b\'{"a": 1, "b": 2, "c": 3}\' + bytes([10])); return 0.5', CRASH),
  "reply_deep": ("write(b'[' * 60000 + bytes([10])); return 0.5", CRASH),
  "reply_long": ("write(b'x' * 200000); return 0.5", CRASH),
  "another_number": ("reply(10**9, 9.0, ''); return 0.5", 0.5),
  "another_number_later": ("later(0.01, lambda: reply(10**9, 9.0, '')); return 0.5", 0.5),
  "answers_itself": (
    "number = sys._getframe(3).f_locals['number']\n"
    "  reply(number, 9.0, ''); reply(number, 8.0, ''); return 0.5",
    9.0,
  ),
  "negative_number": ("reply(-1, 9.0, ''); return 0.5", 0.5),
  "many_replies": ("[reply(10**9, 9.0, '') for _ in range(1000)]; return 0.5", 0.5),
  "endless_replies": ("\n  while True: reply(10**9, 9.0, '')", TIMEOUT),
  "shut_down": ("[socket.socket(fileno=n).shutdown(2) for n in connections()]; return 0.5", CRASH),
  # It changes what is not its own.
  "changes_row": ("row.clear(); return 0.5", 0.5),
  "signals": ("[signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; return 0.5", 0.5),
  "no_float": ("import builtins; del builtins.float; return 0.5", 0.5),
  "other_float": ("import builtins; builtins.float = lambda x: 7.0; return 0.5", 0.5),
  "builtins_cleared": ("import builtins; builtins.__dict__.clear(); return 0.5", 0.5),
  "no_pickle": ("import pickle; pickle.loads = None; return 0.5", 0.5),
  "no_timers": ("signal.setitimer = None; return 0.5", 0.5),
  "no_modules": ("sys.modules.clear(); return 0.5", 0.5),
  "shallow": ("sys.setrecursionlimit(60); return 0.5", 0.5),
  "warnings_raise": ("import warnings; warnings.simplefilter('error'); return 0.5", 0.5),
  "blocked_signals": ("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64)); return 0.5", 0.5),
  "no_cpu": ("resource.setrlimit(resource.RLIMIT_CPU, (1, 1)); return 0.5", 0.5),
  "no_space": ("resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); return 0.5", 0.5),
  "trace": ("sys.settrace(lambda *_: None); return 0.5", 0.5),
}
# For `make test-long`: those that take their time limit, or the seconds that a worker has to end,
# and replies that are none, of which test_rewards has more.
SLOW = {name for name, (_, expected) in ATTACKS.items() if expected == TIMEOUT}
SLOW |= {"close_and_live", "replaced_by_a_sleeper"}
SLOW |= {name for name in ATTACKS if name.startswith("reply_")}
QUICK = [name for name in ATTACKS if name not in SLOW]


def load(folder, workers: int, timeout: float):
  """A verifier whose function does what the response names."""
  functions = [f"def attack_{name}(row):\n  {body}\n" for name, (body, _) in ATTACKS.items()]
  score = (
    "def score(prompt, response, row):\n"
    "  return row['value'] if response == 'good' else globals()['attack_' + response](row)\n"
  )
  (folder / "attack.py").write_text("\n".join([HELPERS, *functions, score]))
  options = SimpleNamespace(workers=workers, timeout=timeout)
  return rewards.load(SimpleNamespace(reward="attack:score", rewards=options))


def attack(verifier, names):
  """Asks for each attack between good verdicts -> what is not as it ought to be."""
  responses = ["good", *(word for name in names for word in (name, "good"))]
  rows = [{"value": 100.0 + i} for i in range(len(responses))]
  handles = verifier.submit([""] * len(rows), responses, rows)
  verdicts = [handle.result(timeout=900) for handle in handles]
  good = [v.reward for v in verdicts[::2]]
  wrong = {
    f"beside {name}": v
    for name, v, row in zip(names, verdicts[2::2], rows[2::2])
    if v.reward != row["value"]
  }
  assert good[0] == 100.0
  for name, found in zip(names, verdicts[1::2]):
    expected = ATTACKS[name][1]
    if expected in (CRASH, TIMEOUT):
      right = found.failure == expected and math.isnan(found.reward) and found.detail
    else:
      right = (found.reward, found.failure) == (expected, "")
    if not right:
      wrong[name] = found
  return wrong


def test_there_are_attacks_of_every_kind():
  assert len(ATTACKS) >= 100 and len(SLOW) >= 8


def test_quick_attacks_cost_their_own_verdict_at_most(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with load(tmp_path, workers=2, timeout=60.0) as verifier:
    assert not attack(verifier, QUICK)
    assert verifier.dropped > 1000  # replies to other jobs


LEFT = {
  "timer": "signal.setitimer(signal.ITIMER_REAL, 0.1)",
  "timer_with_a_handler": (
    "signal.signal(signal.SIGALRM, lambda *_: 1 / 0); signal.setitimer(signal.ITIMER_REAL, 0.1)"
  ),
  "exit_later": "later(0.1, lambda: os._exit(3))",
  "killed_later": "subprocess.Popen(['sh', '-c', f'sleep 0.1; kill -9 {MAIN}'])",
}


@pytest.mark.parametrize("name", LEFT)
def test_what_a_verdict_leaves_behind_costs_no_later_one(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  score = f"""
def score(prompt, response, row):
  if response == "good":
    time.sleep(0.5)
    return row["value"]
  {LEFT[name]}
  return 0.5
"""
  (tmp_path / f"left_{name}.py").write_text(HELPERS + score)
  options = SimpleNamespace(workers=1, timeout=60.0)
  with rewards.load(SimpleNamespace(reward=f"left_{name}:score", rewards=options)) as verifier:
    handles = verifier.submit([""] * 3, ["good", "bad", "good"], [{"value": x} for x in (1, 2, 3)])
    assert [handle.result(120).reward for handle in handles] == [1, 0.5, 3]


def test_a_worker_that_ends_leaves_no_process_behind(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  score = """
import fcntl, os, time

def score(prompt, response, row):
  file = open("held", "w")
  fcntl.flock(file, fcntl.LOCK_EX)  # which a fork holds as well
  if os.fork() == 0: time.sleep(1000)
  os._exit(3)
"""
  (tmp_path / "leaves.py").write_text(score)
  options = SimpleNamespace(workers=1, timeout=60.0)
  with rewards.load(SimpleNamespace(reward="leaves:score", rewards=options)) as verifier:
    assert verifier.submit([""], [""], [{}])[0].result(120).failure == CRASH
    end = time.monotonic() + 60
    with open("held", "w") as file:
      while time.monotonic() < end:
        try:
          return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
          time.sleep(0.05)
  pytest.fail("what the reward has forked is there still")


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.timeout(1800)
def test_attacks_cost_their_own_verdict_at_most(tmp_path, monkeypatch, workers):
  monkeypatch.chdir(tmp_path)
  with load(tmp_path, workers=workers, timeout=10.0) as verifier:
    assert not attack(verifier, [*ATTACKS, *reversed(QUICK)])
