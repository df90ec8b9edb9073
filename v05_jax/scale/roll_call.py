"""The roll call of a run's processes, before JAX connects them.

Where two processes have the same number, JAX takes the second for a restart of the first and ends
the run. So each process first tells process 0 who it is, at the coordinator's own address, where
process 0 listens until there is one process of each number; then JAX takes the address over. A
process whose number is taken, or that expects another count, is told who is there already, and
ends. Messages are lines of JSON. Between process 0 and JAX nobody listens at the address for a
moment: `claimed` keeps another process 0 from taking it then.
"""

from collections.abc import Iterator
import contextlib
import errno
import hashlib
import json
import os
import select
import socket
import sys
import time
from typing import NamedTuple

PATIENCE = 5.0  # seconds for one message of another process
NOTICE = 20.0  # seconds between two lines on who is awaited
MOST = 4096  # bytes of one message
GREETING = "b'\\x00"  # the beginning of HTTP/2's first frame, as `repr` writes it


class Member(NamedTuple):
  """A process of a run."""

  index: int
  count: int  # of the processes, as this one was told
  host: str
  pid: int

  def __str__(self):
    return f"pid {self.pid} on {self.host}"


def myself(index: int, count: int) -> Member:
  """This process."""
  return Member(index, count, socket.gethostname(), os.getpid())


def meet(address: str, me: Member, limit: float) -> str | None:
  """Returns when all processes are there, once each -> the address that JAX's service is to bind
  to, of process 0; None: any.

  Raises ValueError within seconds for a process too many, which names those that are there, and
  after `limit` seconds where one does not come.
  """
  return _call(address, me, limit) if me.index == 0 else _answer(address, me, limit)


def parts(address: str) -> tuple[str, int]:
  """(host, port) of host:port, an IPv6 host without its brackets."""
  host, _, port = address.rpartition(":")
  return host.strip("[]"), int(port)


# --- Process 0


@contextlib.contextmanager
def claimed(address: str, me: Member, limit: float):
  """While this is entered no other process of this machine can be process 0 at the address.

  To be held from before `meet` until JAX's service has bound to the address. The others of a run
  enter at once. Raises ValueError within `limit` seconds where another process 0 holds it. The
  claim is an abstract Unix socket, which ends with its process and which Linux alone has: elsewhere
  there is none.
  """
  if me.index or sys.platform != "linux":
    yield
    return
  name = f"\0v05_jax {hashlib.sha256(address.encode()).hexdigest()}"
  waiting = lambda: f"process 0: another process 0 is starting at {address}"
  with socket.socket(socket.AF_UNIX) as claim:
    for left in _waiting(limit, waiting):
      with contextlib.suppress(OSError):
        claim.bind(name)
        break
      if why := _refusal(address, me):
        raise ValueError(why)
      if not left:  # all this time nobody has answered
        raise ValueError(
          f"process 0 of {me.count} at {address}: another process 0 of this machine is starting "
          "there, expected each number once"
        )
      time.sleep(min(0.1, left))
    yield


def _call(address: str, me: Member, limit: float) -> str | None:
  server, bound = _listen(address, me)
  present: dict[int, tuple[Member, socket.socket]] = {}
  missing = lambda: [i for i in range(1, me.count) if i not in present]
  with server, contextlib.ExitStack() as opened:
    line = lambda: f"waiting for {_numbers(missing(), me.count)} at {address}"
    for left in _waiting(limit, line):
      waits = min(left, 1.0) if missing() else 0.0
      ready = select.select([server, *(x for _, x in present.values())], [], [], waits)[0]
      for i in [i for i, (_, x) in present.items() if x in ready]:
        del present[i]  # it has nothing more to say: the connection was closed
      if server in ready:
        opened.enter_context(_admit(server, me, present))
      elif not missing():
        break
      elif not left:
        raise ValueError(
          f"process 0 of {me.count} at {address}: {_numbers(missing(), me.count)} did not come "
          f"within {limit:.0f} s, expected all to be started by then and to reach process 0"
        )
    there = [me, *(found for _, (found, _) in sorted(present.items()))]
    _note(f"all {me.count} processes are there: {'; '.join(f'{x.index}: {x}' for x in there)}")
    for _, connection in present.values():
      _say(connection, {"begin": True})
    for _, connection in present.values():  # the side that closes first keeps the port busy
      with contextlib.suppress(OSError):
        connection.recv(1)
  return bound


def _listen(address: str, me: Member) -> tuple[socket.socket, str | None]:
  """(a socket that listens at the address given and nowhere else, that address); where the host is
  none of this machine's, as behind a translated address, everywhere, and None."""
  where = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or address
  host, port = parts(where)
  try:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family), where
  except OSError as error:
    foreign = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
    if error.errno == errno.EADDRINUSE or (foreign and _answers(address)):
      raise ValueError(_refusal(address, me) or _taken(address, me, "it says nothing")) from error
    if not foreign:
      raise ValueError(f"--coordinator={address}: cannot listen there: {error}") from error
  _note(
    f"--coordinator={address}: {host} is no address of this machine, which listens on all it has"
  )
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    return socket.create_server(("", port), family=family, dualstack_ipv6=both), None
  except OSError as error:
    raise ValueError(f"--coordinator={address}: cannot listen there: {error}") from error


def _admit(server: socket.socket, me: Member, present: dict) -> socket.socket:
  """Reads who has connected, and adds it to those present or tells it why not."""
  connection, _ = server.accept()
  connection.settimeout(PATIENCE)
  try:
    found = Member(**_hear(connection)["member"])
    if not all(type(x) is int for x in (found.index, found.count, found.pid)):
      raise TypeError
  except (OSError, EOFError, ValueError, KeyError, TypeError):  # a stranger
    connection.close()
    return connection
  if why := _objection(found, me, present):
    _say(connection, {"refused": why})
    _note(f"process {found.index}, {found}, was refused: {why}")
    connection.close()
  else:
    present[found.index] = found, connection
  return connection


def _objection(found: Member, me: Member, present: dict) -> str | None:
  """Why a process cannot be one of the run; None where it can."""
  if found.count != me.count:
    return (
      f"--num_processes={found.count}: process 0, {me}, was told {me.count}, expected the same in "
      "all"
    )
  if not 0 <= found.index < me.count:
    return f"--process_id={found.index}: expected 0 to {me.count - 1}"
  holder = me if found.index == 0 else present.get(found.index, (None,))[0]
  if holder:
    return f"--process_id={found.index}: {holder} has this number already, expected each once"
  return None


# --- The others


def _answer(address: str, me: Member, limit: float) -> None:
  why = "no answer"
  waiting = lambda: f"process {me.index}: waiting for process 0 at {address} ({why})"
  for left in _waiting(limit, waiting):
    if not left:
      raise ValueError(
        f"process {me.index} of {me.count} found no process 0 at {address} within {limit:.0f} s "
        f"({why}), expected all to be started by then"
      )
    try:
      with socket.create_connection(parts(address), min(left, PATIENCE)) as connection:
        _say(connection, {"member": me._asdict()})
        connection.settimeout(left)
        word = _hear(connection)
    except OSError as error:
      why = error.strerror or str(error)
    except EOFError:
      why = "it ended before all were there"
    except ValueError as error:
      raise ValueError(_taken(address, me, str(error))) from error
    else:
      if "refused" in word:
        raise ValueError(f"process {me.index} of {me.count} at {address}: {word['refused']}")
      return
    time.sleep(min(0.5, left))


def _refusal(address: str, me: Member) -> str | None:
  """Why another process 0 has to end, in the words of the one that listens at the address; None
  where nobody answers."""
  try:
    with socket.create_connection(parts(address), PATIENCE) as connection:
      _say(connection, {"member": me._asdict()})
      connection.settimeout(PATIENCE)
      return f"process 0 of {me.count} at {address}: {_hear(connection)['refused']}"
  except (OSError, EOFError):
    return None
  except (ValueError, KeyError) as error:
    return _taken(address, me, str(error))


def _taken(address: str, me: Member, word: str) -> str:
  """The error where something else than a roll call answers at the address: a run that has begun,
  whose service greets with HTTP/2, or another program."""
  begun = "a run has begun there, with all its processes, which its process 0 has named in its log"
  what = begun if word.startswith(GREETING) else f"another program listens there ({word})"
  return (
    f"process {me.index} of {me.count} at {address}: {what}; expected each number once, and a port "
    "of this run's own"
  )


def _answers(address: str) -> bool:
  with contextlib.suppress(OSError), socket.create_connection(parts(address), PATIENCE):
    return True
  return False


# --- Messages


def _say(connection: socket.socket, word: dict):
  with contextlib.suppress(OSError):  # whoever listens may be gone
    connection.sendall(json.dumps(word).encode() + b"\n")


def _hear(connection: socket.socket) -> dict:
  """The next message. Raises EOFError where the other side has closed the connection, ValueError
  where it is no message of a roll call."""
  text = b""
  while not text.endswith(b"\n"):
    part = connection.recv(MOST)
    text += part
    if not text:
      raise EOFError
    if not text.startswith(b"{") or not part or len(text) > MOST:
      raise ValueError(f"{text[:40]!r}")
  word = json.loads(text)
  if not isinstance(word, dict):
    raise ValueError(f"{text[:40]!r}")
  return word


def _waiting(limit: float, line) -> Iterator[float]:
  """Yields the seconds left of `limit` until they are 0, the last; logs `line()` now and then."""
  until, notice = time.monotonic() + limit, time.monotonic() + NOTICE
  while True:
    now = time.monotonic()
    if now >= notice:
      _note(f"{line()}, {until - now:.0f} s more")
      notice = now + NOTICE
    yield max(until - now, 0.0)


def _note(text: str):
  print(text, file=sys.stderr, flush=True)


def _numbers(numbers: list[int], count: int) -> str:
  return f"process {', '.join(map(str, numbers))} of {count}"
