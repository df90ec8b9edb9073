"""A page in a real browser: Chromium without a window, over the pipe of its DevTools protocol."""

import base64
import contextlib
import json
import os
from pathlib import Path
import select
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT = 120.0  # seconds for an answer
FLAGS = (
  "--headless",
  "--no-sandbox",  # which a container's root cannot use
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-extensions",
  "--disable-background-networking",
  "--no-first-run",
  "--hide-scrollbars",
  "--remote-debugging-pipe",
)
# Chromium reads the protocol from descriptor 3 and writes it to 4.
LAUNCHER = (
  "import fcntl, os, sys\n"
  "read, write = (fcntl.fcntl(int(x), fcntl.F_DUPFD, 10) for x in sys.argv[1:3])\n"
  "os.dup2(read, 3), os.dup2(write, 4)\n"
  "os.execvp(sys.argv[3], sys.argv[3:])\n"
)


def program() -> str | None:
  """The browser's; None where there is none."""
  return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
  """One page of one browser. `problems` collects what its console has called an error, and `asked`
  the addresses that it wanted to load."""

  def __init__(self, profile: Path):
    theirs, self._to = os.pipe()
    self._from, there = os.pipe()
    command = [sys.executable, "-c", LAUNCHER, str(theirs), str(there), program(), *FLAGS]
    self._process = subprocess.Popen(
      [*command, f"--user-data-dir={profile}", "about:blank"],
      pass_fds=(theirs, there),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      env=os.environ | {"HOME": str(profile)},
    )
    os.close(theirs), os.close(there)
    self._number, self._rest, self._session = 0, b"", None
    self.problems, self.asked, self._events = [], [], []
    target = next(x for x in self.call("Target.getTargets")["targetInfos"] if x["type"] == "page")
    attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.call(f"{domain}.enable")

  def close(self):
    self._session = None
    with contextlib.suppress(OSError, TimeoutError):
      self.call("Browser.close")
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    os.close(self._to), os.close(self._from)

  def call(self, method: str, **parameters) -> dict:
    """Raises RuntimeError for an error, TimeoutError without an answer."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": parameters}
    message |= {"sessionId": self._session} if self._session else {}
    data = json.dumps(message).encode() + b"\0"
    while data:
      data = data[os.write(self._to, data) :]
    while True:
      answer = self._next()
      if answer.get("id") == self._number:
        if "error" in answer:
          raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

  def _next(self) -> dict:
    end = time.monotonic() + TIMEOUT
    while b"\0" not in self._rest:
      ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
      part = os.read(self._from, 1 << 16) if ready else b""
      if not part:
        raise TimeoutError("the browser does not answer")
      self._rest += part
    text, _, self._rest = self._rest.partition(b"\0")
    message = json.loads(text)
    self._note(message.get("method"), message.get("params", {}))
    return message

  def _note(self, event: str | None, said: dict):
    self._events += [event]
    if event == "Runtime.exceptionThrown":
      details = said["exceptionDetails"]
      self.problems.append(details.get("exception", {}).get("description") or details["text"])
    elif event == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
      self.problems.append(" ".join(str(x.get("value")) for x in said["args"]))
    elif event == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
      self.problems.append(said["entry"]["text"])
    elif event == "Network.requestWillBeSent":
      self.asked.append(said["request"]["url"])

  def open(self, path: Path, width: int, height: int, touch: bool = False, dark: bool = False):
    """Loads a file into a window of this size, and waits until it is drawn."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=touch,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self.call("Emulation.setEmulatedMedia", features=[scheme])
    self.problems, self.asked, self._events = [], [], []
    self.call("Page.navigate", url=path.resolve().as_uri())
    while "Page.loadEventFired" not in self._events:
      self._next()
    self.settle()

  def settle(self):
    """Waits until what was asked for is drawn."""
    frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    for _ in range(2):
      self.run(frame)

  def run(self, script: str):
    """The value of an expression of JavaScript, awaited where it is a promise."""
    found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
    if "exceptionDetails" in found:
      raise RuntimeError(found["exceptionDetails"]["exception"].get("description", script))
    return found["result"].get("value")

  def move(self, x: float, y: float):
    """The mouse, to a place of the window."""
    self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    self.settle()

  def touch(self, x: float, y: float):
    """A finger, put on a place of the window and lifted."""
    self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    self.settle()

  def key(self, name: str):
    for kind in ("keyDown", "keyUp"):
      self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)
    self.settle()

  def picture(self, path: Path):
    """Writes what the window shows."""
    data = self.call("Page.captureScreenshot", format="png")["data"]
    path.write_bytes(base64.b64decode(data))
