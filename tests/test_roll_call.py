"""Who may be of a run of several processes: real sockets, one thread a process; and what they must
have in common."""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import shutil
import socket
import sys
import time

from jax._src.lib import _jax
import pytest

from tests.test_distributed import free_port
from v05_jax.configs import default
from v05_jax.scale import roll_call, sources
from v05_jax.scale.roll_call import Member, meet

LIMIT = 60.0  # seconds, never used up where all is well


def member(index, count=2, name=None):
  return Member(index, count, f"host-{name or index}", 100 + index)


@pytest.fixture
def address():
  return f"127.0.0.1:{free_port()}"


@pytest.fixture
def threads():
  with ThreadPoolExecutor(8) as pool:
    yield pool


def reachable(host, address):
  with (
    contextlib.suppress(OSError),
    socket.create_connection((host, roll_call.parts(address)[1]), 5),
  ):
    return True
  return False


def until(condition):
  end = time.monotonic() + LIMIT
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def said(address, word: bytes):
  """What the roll call answers to bytes, until it hangs up."""
  with socket.create_connection(roll_call.parts(address), LIMIT) as connection:
    connection.sendall(word)
    connection.shutdown(socket.SHUT_WR)
    return connection.recv(4096)


def test_all_meet_whoever_comes_first(address, threads):
  others = [threads.submit(meet, address, member(i, 4), LIMIT) for i in (2, 3, 1)]
  time.sleep(0.1)
  assert meet(address, member(0, 4), LIMIT) == address
  assert [other.result(LIMIT) for other in others] == [None] * 3
  assert meet(address, member(0, 1), LIMIT) == address  # alone, at the same port again


def test_one_too_many_is_told_who_is_there_and_the_others_go_on(address, threads, capfd):
  first = threads.submit(meet, address, member(0, 3), LIMIT)
  until(lambda: reachable("127.0.0.1", address))
  second = socket.create_connection(roll_call.parts(address), LIMIT)  # heard before who comes later
  roll_call._say(second, {"member": member(1, 3)._asdict()})
  for stranger, message in (
    (member(1, 3, "again"), r"--process_id=1: pid 101 on host-1 has this number already"),
    (member(0, 3, "again"), r"--process_id=0: pid 100 on host-0 has this number already"),
    (member(3, 4), r"--num_processes=4: process 0, pid 100 on host-0, was told 3, expected the sa"),
    (member(3, 3), r"--process_id=3: expected 0 to 2"),
  ):
    with pytest.raises(ValueError, match=f"process {stranger.index} of .* at {address}: {message}"):
      meet(address, stranger, LIMIT)
  # nor does who speaks another language disturb it
  assert said(address, b"") == said(address, b"GET / HTTP/1.1\r\n\r\n") == b""
  assert said(address, b'{"member": {"index": "1", "count": 3, "host": "", "pid": 1}}\n') == b""
  assert not first.done()
  assert meet(address, member(2, 3), LIMIT) is None
  assert roll_call._hear(second) == {"begin": True}
  second.close()
  assert first.result(LIMIT) == address
  log = capfd.readouterr().err
  assert "process 1, pid 101 on host-again, was refused" in log
  there = "0: pid 100 on host-0; 1: pid 101 on host-1; 2: pid 102 on host-2"
  assert f"all 3 processes are there: {there}" in log


def test_a_process_that_leaves_frees_its_number(address, threads):
  first = threads.submit(meet, address, member(0, 3), LIMIT)
  until(lambda: reachable("127.0.0.1", address))
  with socket.create_connection(roll_call.parts(address), LIMIT) as connection:
    roll_call._say(connection, {"member": member(1, 3)._asdict()})
  others = [threads.submit(meet, address, member(i, 3, "again"), LIMIT) for i in (1, 2)]
  assert [other.result(LIMIT) for other in others] == [None] * 2
  assert first.result(LIMIT) == address


def test_who_does_not_come_is_named(address, capfd, monkeypatch):
  monkeypatch.setattr(roll_call, "NOTICE", 0.1)
  with pytest.raises(ValueError, match=r"process 0 of 3 .*: process 1, 2 of 3 did not come within"):
    meet(address, member(0, 3), 0.5)
  assert f"waiting for process 1, 2 of 3 at {address}" in capfd.readouterr().err
  with pytest.raises(ValueError, match=r"process 1 of 2 found no process 0 at .* \(Connection ref"):
    meet(address, member(1), 0.5)
  assert f"process 1: waiting for process 0 at {address}" in capfd.readouterr().err


def test_it_listens_at_the_address_given_alone(address, threads):
  first = threads.submit(meet, address, member(0), LIMIT)
  until(lambda: reachable("127.0.0.1", address))
  assert not reachable("127.0.0.2", address)
  meet(address, member(1), LIMIT)
  first.result(LIMIT)


def test_an_address_of_another_machine_is_listened_to_everywhere(threads, capfd, monkeypatch):
  """As where a name stands for a translated address."""
  monkeypatch.setattr(roll_call, "PATIENCE", 0.2)
  port = free_port()
  first = threads.submit(meet, f"192.0.2.1:{port}", member(0), LIMIT)
  assert meet(f"127.0.0.1:{port}", member(1), LIMIT) is None
  assert first.result(LIMIT) is None
  assert "192.0.2.1 is no address of this machine" in capfd.readouterr().err
  with socket.create_server(("127.0.0.1", 0)) as server:  # another program's, which says nothing
    with pytest.raises(ValueError, match=r"another program listens there \(it says nothing\)"):
      meet(f"127.0.0.1:{server.getsockname()[1]}", member(0), LIMIT)


@contextlib.contextmanager
def begun(address):
  """A client of JAX's service at the address."""
  service = _jax.get_distributed_runtime_service(address, 1)
  client = _jax.get_distributed_runtime_client(address, 0)
  try:
    client.connect()
    yield client
  finally:
    client.shutdown()
    service.shutdown()


def test_a_run_that_has_begun_takes_nobody(address):
  with begun(address) as client:
    for index in (0, 1):
      with pytest.raises(
        ValueError, match=f"process {index} of 2 at {address}: a run has begun there"
      ):
        meet(address, member(index), LIMIT)
    client.key_value_set("here", "still")  # it was not disturbed
    assert client.blocking_key_value_get("here", 60_000) == "still"


def claim(address, limit=LIMIT):
  with roll_call.claimed(address, member(0, name="again"), limit):
    return meet(address, member(0, 1), LIMIT)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract Unix sockets are Linux's")
def test_before_jax_listens_nobody_takes_the_place_of_process_0(address, threads):
  """Neither while the roll call goes on, nor in the moment after it in which nobody listens."""
  with roll_call.claimed(address, member(0), LIMIT):
    first = threads.submit(meet, address, member(0), LIMIT)
    until(lambda: reachable("127.0.0.1", address))
    with pytest.raises(ValueError, match=r"--process_id=0: pid 100 on host-0 has this number alr"):
      claim(address)
    with roll_call.claimed(address, member(1), LIMIT):  # the others take nothing
      meet(address, member(1), LIMIT)
    assert first.result(LIMIT) == address
    with pytest.raises(ValueError, match="another process 0 of this machine is starting there"):
      claim(address, 0.3)
    second = threads.submit(claim, address)
    with pytest.raises(TimeoutError):
      second.result(0.5)
    with begun(address), pytest.raises(ValueError, match="a run has begun there"):
      second.result(LIMIT)
    third = threads.submit(claim, address)
    with pytest.raises(TimeoutError):
      third.result(0.5)
  assert third.result(LIMIT) == address  # the first one has ended


# --- What they have in common


def told(package, **command):
  return sources.of(default.get_config(), command, package)


def test_what_differs_between_processes_is_named(tmp_path):
  package, other = tmp_path / "a" / "v05_jax", tmp_path / "b" / "v05_jax"
  shutil.copytree(sources.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
  shutil.copytree(package, other)
  same = told(package, mode="train")
  sources.check([same, told(other, mode="train"), told(sources.PACKAGE, mode="train")])
  (other / "notes.txt").write_text("no code")
  (other / "step.py~").write_text("no code")
  sources.check([same, told(other, mode="train")])
  with open(other / "step.py", "a") as file:
    file.write("\n")
  (other / "estimators" / "new.py").write_text("")
  (other / "tasks" / "value_model" / "v0.json").unlink()
  message = (
    r"the code: process 2 of 3 differs from process 0 in v05_jax/step.py, "
    r"v05_jax/tasks/value_model/v0.json, v05_jax/estimators/new.py, expected the same in all"
  )
  with pytest.raises(ValueError, match=message):
    sources.check([same, same, told(other, mode="train")])
  with pytest.raises(ValueError, match=r"the command: process 1 of 2 differs .* in mode, expected"):
    sources.check([same, told(package, mode="eval")])


def test_keys_of_the_config_and_versions_are_named():
  config = default.get_config()
  first = sources.of(config, {})
  config.seed, config.loss.kl_coef = 7, 0.5
  message = r"the config: process 1, 3 of 4 differs from process 0 in (seed, loss|loss.kl_coef, se)"
  with pytest.raises(ValueError, match=message):
    sources.check([first, sources.of(config, {}), first, sources.of(config, {})])
  newer = {**first, "the code": {**first["the code"], "jax": "9"}}
  with pytest.raises(ValueError, match=r"the code: .* in jax, expected"):
    sources.check([first, newer])
  many = {**first, "the code": dict.fromkeys(first["the code"], "")}
  with pytest.raises(ValueError, match=r"and \d+ more, expected"):
    sources.check([first, many])


def test_files_of_the_user_that_the_config_names_are_compared(tmp_path, monkeypatch):
  """A reward's, and any plug's; a module that one of them lacks is left to who looks for it."""
  monkeypatch.syspath_prepend(tmp_path)
  config = default.get_config()
  config.reward, config.observe = "mine_reward:score", ("mine_observer:seen", "scoreboard")
  lacking = sources.of(config, {})
  found = []
  for text in ("a = 1", "a = 2"):
    for name in ("mine_reward", "mine_observer"):
      (tmp_path / f"{name}.py").write_text(text)
    found.append(sources.of(config, {}))
  message = (
    r"the code: process 1 of 2 differs from process 0 in mine_observer:seen, mine_reward:score"
  )
  with pytest.raises(ValueError, match=message):
    sources.check(found)
  sources.check([found[0], lacking])
  sources.check([lacking, found[1]])
