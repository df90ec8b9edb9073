"""A language model as a judge, against a server in this process."""

import contextlib
import http.server
import json
import logging
import math
import sqlite3
import threading
import time
from types import SimpleNamespace

import pytest

from v05_jax import rewards
from v05_jax.rewards import llm_judge
from v05_jax.rewards.llm_judge import LLMJudge

ROW = {"answer": "4"}


class Server(http.server.ThreadingHTTPServer):
  """Says what `answers` has for what is asked, a list of (status, reply, headers) in turn; the last
  one stays."""

  daemon_threads = True

  def __init__(self, **answers):
    super().__init__(("127.0.0.1", 0), Handler)
    self.answers, self.seen, self.lock = answers, [], threading.Lock()
    self.now = self.most = 0  # requests at the same time

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):
    server = self.server
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    text = body["messages"][0]["content"]
    name = next((name for name in server.answers if f"\n{name}\n" in text), "")
    with server.lock:
      server.seen.append((self.path, body, dict(self.headers)))
      server.now += 1
      server.most = max(server.most, server.now)
      found = server.answers.get(name, [(200, "Fine.\nScore: 7", {})])
      status, reply, headers = found.pop(0) if len(found) > 1 else found[0]
    try:
      self.answer(status, reply, headers)
    except OSError:  # the client has gone
      pass
    with server.lock:
      server.now -= 1

  def answer(self, status, reply, headers):
    if status == "slow":
      time.sleep(0.3)
    if status == "hang":
      time.sleep(60)
    if status == "meet":  # waits for others, for a while
      end = time.monotonic() + 30
      while self.server.most < 4 and time.monotonic() < end:
        time.sleep(0.01)
    if status == "close":
      return self.connection.close()
    said = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
    if status == "cut":
      said["choices"][0]["finish_reason"] = "length"
    data = reply if isinstance(reply, bytes) else json.dumps(said).encode()
    self.send_response(status if isinstance(status, int) else 200)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if status == "drip":
      for i in range(len(data)):
        self.wfile.write(data[i : i + 1])
        self.wfile.flush()
        time.sleep(0.2)
    self.wfile.write(data)

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serving(**answers):
  with Server(**answers) as server:
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
  """No replies of an earlier test, and pauses that take no time."""
  llm_judge._cache.cache_clear()
  monkeypatch.setattr(llm_judge, "LONGEST_PAUSE", 0.01)


def number(reward):
  """The reward, or what is wrong with it."""
  try:
    return float(reward)
  except Exception as error:
    return str(error)


def ask(server, *responses, **options):
  judge = LLMJudge(server.url, "small", **options)
  return [number(x) for x in judge("2+2=", list(responses), ROW)]


def test_scores_come_from_the_judges_last_line(monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", "secret")
  answers = {"bold": [(200, "score: 3? No.\n**Score:** 9.5", {})], "bare": [(200, " 10\n", {})]}
  answers["scale"] = [(200, "Score (0-10): 8", {})]
  answers["thought"] = [(200, "<think>Score: 1, or</think>\nScore: 6", {})]
  with serving(**answers) as server:
    assert ask(server, "four", "bold", "bare", "four") == [0.7, 0.95, 1.0, 0.7]
    assert ask(server, "scale", "thought") == [0.8, 0.6]
  assert len(server.seen) == 5  # the same response is asked about once
  path, body, headers = server.seen[0]
  assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
  assert body["model"] == "small" and body["temperature"] == 0.0
  text = body["messages"][0]["content"]
  assert all(f">\n{x}\n<" in text for x in ("2+2=", "4"))


def test_what_cannot_be_read_fails_alone():
  answers = {
    "none": [(200, "I like it.", {})],
    "large": [(200, "Score: 11", {})],
    "negative": [(200, "Score: -1", {})],
    "json": [(200, b"<html>", {})],
    "shape": [(200, b'{"choices": []}', {})],
    "null": [(200, None, {})],
    "key": [(401, b"no such key", {})],
    "cut": [("cut", "I lean to a score: 2, but the last", {})],
    "thinks": [(200, "<think>Score: 1, or", {})],
  }
  with serving(**answers) as server:
    good, *bad = ask(server, "four", *answers)
  assert good == 0.7
  for found, expected in zip(
    bad,
    ["expected a line Score: N", "is 11, expected 0 to 10", "is -1, expected 0 to 10"]
    + ["expected choices[0].message.content"] * 3
    + ["HTTP 401: no such key", "is cut off: raise max_tokens", "expected a line Score: N"],
    strict=True,
  ):
    assert expected in found
  assert len(server.seen) == 10  # nothing of it is asked again


def test_a_busy_server_is_asked_again():
  fine = (200, "Score: 5", {})
  answers = {
    "busy": [(503, b"", {}), (429, b"", {"Retry-After": "0.01"}), (500, b"", {}), fine],
    "closing": [("close", b"", {}), fine],
    "gone": [(502, b"bad gateway", {})],
  }
  with serving(**answers) as server:
    busy, closing, gone = ask(server, *answers)
    assert (busy, closing) == (0.5, 0.5)
    assert f"{server.url}: no reply in 5 attempts: HTTP 502: bad gateway" in gone
  assert len(server.seen) == 4 + 2 + 5


def test_no_wait_is_without_a_limit():
  answers = {"hang": [("hang", b"", {})], "drip": [("drip", b"x" * 1000, {})]}
  with serving(**answers) as server:
    began = time.monotonic()
    found = ask(server, "four", "hang", "drip", timeout=0.5, attempts=2)
    assert time.monotonic() - began < 40  # the server would take 60 and 200 s
    assert "no reply in 1 attempts" in ask(server, "hang", timeout=60.0, limit=0.5)[0]
    assert time.monotonic() - began < 40
  assert found[0] == 0.7 and all("no reply in 2 attempts" in x for x in found[1:])
  with serving() as server:
    url = server.url
  judge = LLMJudge(url, "small", limit=5.0)  # nobody listens there
  assert "no reply in 5 attempts" in number(judge("2+2=", ["four"], ROW)[0])


def test_responses_are_judged_at_the_same_time():
  names = [f"r{i}" for i in range(4)]
  with serving(**{name: [("meet", "Score: 5", {})] for name in names}) as server:
    assert ask(server, *names) == [0.5] * 4 and server.most == 4


def test_the_same_responses_are_asked_about_once_at_the_same_time():
  with serving(slow=[("slow", "Score: 5", {})]) as server:
    assert ask(server, *["slow"] * 4) == [0.5] * 4 and len(server.seen) == 1


def test_what_was_asked_once_is_not_asked_again(tmp_path, caplog):
  cache = str(tmp_path / "judge.sqlite")
  with serving() as server:
    assert ask(server, "four", cache=cache) == [0.7]
    assert ask(server, "four", cache=cache) == [0.7] and len(server.seen) == 1
    llm_judge._cache.cache_clear()  # as another process
    assert ask(server, "four", cache=cache) == [0.7] and len(server.seen) == 1
    assert ask(server, "four", cache=cache, options={"seed": 1}) == [0.7] and len(server.seen) == 2
    with serving(four=[(200, "Score: 1", {})]) as other:  # another judge
      assert ask(other, "four", cache=cache) == [0.1]
      with sqlite3.connect(cache) as file:
        file.execute("delete from replies where said = 'Score: 1'")
    assert sqlite3.connect(cache).execute("select count(*) from replies").fetchone() == (2,)
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database" * 100)
    with caplog.at_level(logging.WARNING):
      for _ in range(2):
        assert ask(server, "four", cache=str(broken)) == [0.7]
    (said,) = caplog.records
    assert f"{broken}: the judge's replies are not kept there" in said.getMessage()


def test_a_cache_that_fails_costs_no_reply_of_those_that_wait_for_it(tmp_path, caplog):
  cache = llm_judge._cache(str(tmp_path / "judge.sqlite"))
  cache._file.execute("drop table replies")
  failed = []

  def keep(i):
    try:
      cache.put(f"{i}", "Score: 7")
      cache.get(f"other {i}")
    except Exception as error:
      failed.append(error)

  threads = [threading.Thread(target=keep, args=(i,)) for i in range(8)]
  with caplog.at_level(logging.WARNING):
    with cache._lock:
      for thread in threads:
        thread.start()
      time.sleep(0.1)  # until they wait
    for thread in threads:
      thread.join()
  assert not failed and len(caplog.records) == 1
  assert [cache.get(f"{i}") for i in range(8)] == ["Score: 7"] * 8


def test_wrong_settings_are_named():
  for keys, message in (
    ({"url": "localhost:8000"}, "url: found 'localhost:8000', expected http"),
    ({"url": "https:///v1"}, "url: found 'https:///v1', expected http"),
    ({"url": None}, "url: found None, expected http"),
    ({"model": " "}, "model: found ' ', expected the name"),
    ({"timeout": 0}, "timeout: found 0, expected a number above 0"),
    ({"limit": math.inf}, "limit: found inf, expected a number above 0 and at most 86400"),
    ({"highest": math.nan}, "highest: found nan, expected a number above 0"),
    ({"highest": "10"}, "highest: found '10', expected a number above 0"),
    ({"attempts": 2.5}, "attempts: found 2.5, expected a whole number above 0"),
    ({"together": True}, "together: found True, expected a whole number above 0"),
    ({"options": ["seed"]}, r"options: found \['seed'\], expected a dictionary"),
    ({"read": 10}, "read: found 10, expected a function"),
    ({"template": "{prompt} {"}, "template: cannot be filled in"),
  ):
    with pytest.raises(ValueError, match=message):
      LLMJudge(**({"url": "http://x/v1", "model": "m"} | keys))
  judge = LLMJudge("http://x/v1", "m", template="{prompt} {rubric}")
  assert "KeyError('rubric')" in number(judge("p", ["r"], {})[0])


def test_it_is_a_reward_in_the_workers(tmp_path, monkeypatch):
  with serving(bad=[(200, "nothing", {})]) as server:
    (tmp_path / "my_judge.py").write_text(
      f"from v05_jax.rewards.llm_judge import LLMJudge\nscore = LLMJudge({server.url!r}, 'small')\n"
    )
    monkeypatch.chdir(tmp_path)
    options = SimpleNamespace(workers=1, timeout=60.0)
    with rewards.load(SimpleNamespace(reward="my_judge:score", rewards=options)) as verifier:
      handles = verifier.submit(["2+2="] * 2, ["four", "bad"], [ROW] * 2)
      good, bad = [handle.result(120) for handle in handles]
  assert good.reward == 0.7 and math.isnan(bad.reward)
  assert bad.failure == "crash" and "expected a line Score: N" in bad.detail


def test_in_a_run_a_judge_gives_up_before_the_time_of_a_verdict_is_over():
  """So that a server that is not there is said, and no timeout hides it."""
  judge = LLMJudge("http://x/v1", "m", template="{prompt}")
  assert judge.within(10.0).limit == 9.0 and judge.within(1000.0).limit == 100.0
  assert judge.within(10.0).template == "{prompt}"
