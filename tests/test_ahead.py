"""Work in the background: what is put off waits, an error is loud, an exception elsewhere drops
what has not begun."""

import gc
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from v05_jax import backend
from v05_jax.run.progress import CompilationCounter
from v05_jax.sampling.ahead import Ahead, shapes


def test_what_is_put_off_starts_with_go_or_with_who_waits_and_runs_once():
  began = []
  with Ahead() as ahead:
    first = ahead.later(lambda: began.append("later"))
    ahead.now(lambda: began.append("now"))()
    assert began == ["now"]
    first()
    ahead.go()
    assert began == ["now", "later"]
  assert began == ["now", "later"]


def test_leaving_runs_the_rest_and_raises_an_error_that_nobody_waited_for():
  began = []
  with pytest.raises(ZeroDivisionError):
    with Ahead() as ahead:
      ahead.later(lambda: 1 / 0)
      ahead.later(lambda: began.append(0))
  assert began == [0]


@pytest.mark.parametrize("kind, waits", [(ZeroDivisionError, True), (KeyboardInterrupt, False)])
def test_an_exception_drops_what_has_not_begun_and_waits_for_what_has(kind, waits):
  """Ctrl-C waits for nothing."""
  began, free, running = [], threading.Event(), threading.Event()

  def slow():
    running.set()
    free.wait(10)
    began.append("slow")

  with pytest.raises(kind):
    with Ahead() as ahead:
      ahead.now(slow)
      ahead.later(lambda: began.append("later"))
      running.wait(10)
      if waits:
        free.set()
      raise kind
  assert began == ["slow"] * waits
  free.set()


def test_a_program_compiled_in_the_background_is_not_compiled_again():
  program = jax.jit(lambda x, y: jnp.sin(x) @ y)
  x = jax.device_put(jnp.ones((3, 4)), jax.devices()[0])
  args = x, jnp.ones((4, 2))
  with CompilationCounter() as count:
    with Ahead() as ahead:
      ahead.now(lambda: (program.lower(*shapes(args)).compile(), None)[1])  # keeps nothing
    gc.collect()
    assert count() == 1
    program(*args)
    assert count() == 1


def test_torch_is_hidden_from_transformers_alone():
  code = (
    "import sys; from v05_jax import backend; backend.without_torch(); import transformers;"
    "from transformers import AutoTokenizer, PreTrainedTokenizerFast;"
    "assert not transformers.utils.is_torch_available() and 'torch' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_small_programs_are_compiled_with_options_that_the_compiler_knows(monkeypatch):
  backend.quick.cache_clear()
  assert backend.quick() == {"compiler_options": backend.QUICK}
  monkeypatch.setattr(backend, "QUICK", {"xla_no_such_option": 1})
  backend.quick.cache_clear()
  assert backend.quick() == {}
  backend.quick.cache_clear()
