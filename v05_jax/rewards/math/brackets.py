r"""The brackets of a text: what stands outside of all, and what means nothing around it."""

import re

OPENING = {"(": "(", "[": "[", r"\{": "{", r"\langle": "<", "{": ""}
CLOSING = {")": ")", "]": "]", r"\}": "}", r"\rangle": ">", "}": ""}
_FENCES = {r"\lfloor": 1, r"\lceil": 1, r"\rfloor": -1, r"\rceil": -1}
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|\b(?:and|or)\b|.", re.DOTALL)
# What is said around an answer.
_TALK = re.compile(
  r"^\\(?:therefore|implies|Rightarrow|Longrightarrow|iff)\s*"
  r"|^(?:(?:so|thus|therefore|hence),?|answer:|the answer is|there (?:is|are)"
  r"|(?:it|that)(?:'s| is)|(?:i|we) (?:get|got|have)|only|approximately|about)"
  r"\s+"
  r"|\s+is (?:correct|right|the answer)$",
  re.IGNORECASE,
)


def unwrapped(text: str) -> str:
  r"""Without what means nothing around an answer: a full stop, {...}, \text{...} or \boxed{...}."""
  before = None
  while text != before:
    before = text
    text = text.strip().strip("*").strip()
    if not text.endswith(r"\ldots"):
      text = text.rstrip(",;").strip()
    if text.endswith(".") and not text.endswith(r"\."):
      text = text[:-1]
    if match := re.fullmatch(r"(?:\\(?:boxed|fbox)\s*)?\{([^{}]*)\}", text):
      text = match[1]
    if _is_group(text):
      text = text[1:-1]
    text = _TALK.sub("", text)
    if match := re.fullmatch(r"\\text\s*\{([^{}]*\d[^{}]*)\}", text):
      text = match[1]
    text = re.sub(
      r"^\\text\s*\{\s*(?![A-J]:)(?:so|thus|hence|therefore|only|approximately|about|exactly|[^{}]*(?:\bis|\bare|:)),?\s*\}"
      r"|^\\(?:approx|sim)(?![a-zA-Z])\s*",
      "",
      text,
    ).strip()
  return text


def _is_group(text: str) -> bool:
  """Whether the text is {...}, the braces belong together, and they hold no list: {1, 2} may be
  meant as a set, of which the order does not matter and that of its parts does."""
  inside = (depth for place, _, depth in depths(text) if 0 < place < len(text) - 1)
  braced = text[:1] == "{" and text[-1:] == "}" and all(inside)
  return braced and not split(text[1:-1], (",", ";"))[1]


def depths(text: str):
  """(start of each token, the token, how many brackets are open before it)."""
  depth = 0
  for match in _TOKEN.finditer(text):
    token = match[0]
    change = token in OPENING or token == r"\begin"
    change = change - (token in CLOSING or token == r"\end") + _FENCES.get(token, 0)
    depth += min(change, 0)
    yield match.start(), token, depth
    depth += max(change, 0)


def split(text: str, at) -> tuple[list[str], list[str]]:
  """The text divided at those tokens that stand outside of all brackets, and these tokens."""
  parts, signs, start = [], [], 0
  for place, token, depth in depths(text):
    if depth == 0 and token in at:
      parts.append(text[start:place])
      signs.append(token)
      start = place + len(token)
  return [*parts, text[start:]], signs
