r"""Where a response's final answer stands.

Reasoning blocks are cut out; then the last \boxed{...} counts, together with those beside it in one
sentence; without a box, an <answer> block, else what follows "the answer is", else the last
mathematics of the text.
"""

from collections.abc import Iterator
import re

from v05_jax.rewards.math.numerals import COUNTS

TAIL = 2000  # characters of an unboxed response in which the answer is looked for
MANY = 20  # boxes of one sentence that are read

_NAMES = (
  "think|thinking|thought|thoughts|reason|reasoning|reflection|scratch|scratchpad|seed:think|analysis"
  "|inner_monologue|chain_of_thought"
)
_TAG = re.compile(rf"[<\[◁](/?)\s*({_NAMES})\b[^<>\[\]◁▷\n]{{0,80}}[>\]▷]", re.IGNORECASE)
# A pair of tokens that are no tags, as some models write them.
_MARKS = (
  ("<|begin_of_thought|>", "<think>"),
  ("<|end_of_thought|>", "</think>"),
  ("<|channel|>analysis<|message|>", "<think>"),
  ("<|channel|>final<|message|>", "</think>"),
  ("assistantfinal", "</think>"),  # the same without its special tokens
  ("<unused94>", "<think>"),
  ("<unused95>", "</think>"),
  ("<|START_THINKING|>", "<think>"),
  ("<|END_THINKING|>", "</think>"),
)


def without_reasoning(response: str) -> str:
  """The response without its reasoning blocks (<think>, <thinking>, <reasoning>, [THINK], ...).

  A block that is never closed reaches to the end. Where a block is closed that was not opened, as
  after a chat template that opens it in the prompt, all before it is reasoning.
  """
  for mark, tag in _MARKS:
    response = response.replace(mark, tag)
  kept, opened, start = [], [], 0
  for tag in _TAG.finditer(response):
    name = tag[2].lower()
    if not tag[1]:
      if not opened:
        kept.append(response[start : tag.start()])
      opened.append(name)
    elif name in opened:  # with it end the blocks that it holds
      while opened.pop() != name:
        pass
    elif not opened:
      kept = []
    start = tag.end()
  if not opened:
    kept.append(response[start:])
  return " ".join(kept)


def boxed(text: str) -> str | None:
  r"""What the last complete \boxed{...}, \fbox{...} or \framebox{...} holds, without the boxes
  inside; \{ and \} are no braces."""
  found = _boxes(text)
  return _contents(text, found[-1]).strip() if found else None


_BOX = r"\\(?:boxed|fbox|framebox)"
_BRACE = re.compile(rf"({_BOX}\s*\{{)|{_BOX}(?:\s+|(?=\d))([^\s{{}}$\\]+)|\\.|[{{}}]", re.DOTALL)


def _contents(text: str, box: tuple) -> str:
  return re.sub(rf"{_BOX}\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}", r"\1", text[slice(*box[1:3])])


def _boxes(text: str) -> list[tuple[int, int, int, int]]:
  """(start, start of the contents, end of the contents, end) of complete boxes, those of one
  inside of another left out, in their order."""
  opened, found = [], []  # where each open brace starts, its contents, and whether it is a box's
  for token in _BRACE.finditer(text):
    if token[2]:  # \\boxed 5
      found.append((token.start(), *token.span(2), token.end()))
    elif token[1] or token[0] == "{":
      opened.append((token.start(), token.end(), bool(token[1])))
    elif token[0] == "}" and opened:
      start, inside, box = opened.pop()
      if box:
        found = [other for other in found if other[0] < start]
        found.append((start, inside, token.start(), token.end()))
  return found


# What may stand between two boxes of one answer: "$x = \boxed{2}$ or $x = \boxed{3}$".
_ORDINAL = (
  "other|second|third|fourth|next|last|latter|larger|largest|greater|greatest|smaller|smallest|least"
  "|maximum|minimum|maximal|minimal"
)
_ADVERB = (
  "also|either|both|maybe|perhaps|possibly|probably|else|even|alternatively|rather|just|simply"
)
_BETWEEN = re.compile(
  r"\s*(?:[,;&(/|]\s*(?:and\b|or\b)?|and\b|or\b|as well as\b|\\lor\b|alternatively\b)"
  rf"\s*(?:(?:{_ADVERB})\b\s*){{0,2}}"
  rf"\s*(?:the\s+(?:{_ORDINAL})\b(?:\s+\w+){{0,2}}\s+(?:is|are|equals)\b)?"
  r"\s*(?P<label>\\?[a-zA-Z]\w{0,9}(?:_\{?\w+\}?)?(?:\([a-zA-Z]\))?\s*(?:=|is|\\in))?\s*"
)
_LABEL = re.compile(r"(\\?[a-zA-Z]\w{0,9}(?:_\{?\w+\}?)?)\s*=\s*$")
_DELIMITERS = re.compile(r"\\[()\[\],;:! ]|\$|\*\*|~|\\q?quad\b|&|\\text\s*\{([^{}]*)\}")


# What changes the number in a box from outside: $x = -\\boxed{5}$, $x \\neq \\boxed{5}$.
_CHANGED = re.compile(r"(?:^|[$=(\[])\s*(-)$|(?:\\ne|\\neq|≠|\\not\s*=|!=)\s*$")


def _last_boxes(text: str) -> str | None:
  """The last box's contents, joined with those of the boxes that only connecting words divide."""
  found = _boxes(text)
  if not found:
    return None
  parts, again = [_whole(text, found[-1])], False
  labels = [_LABEL.search(_cleaned(text[max(0, found[-1][0] - 40) : found[-1][0]]))]
  for before, after in zip(found[-2::-1], found[:0:-1]):
    between = _cleaned(text[before[3] : after[0]])
    if len(parts) == MANY or not _BETWEEN.fullmatch(between) or _paragraph(text, before, after):
      break
    parts.append(_contents(text, before))
    again |= between.lstrip()[:1] in ("(", "/", "|")  # the second says the first once more
    labels.append(_LABEL.search(_cleaned(text[max(0, before[0] - 40) : before[0]])))
  names = [label[1] if label else "" for label in labels]
  if len(parts) > 1 and all(names) and not any("=" in part for part in parts):
    parts = [f"{name}={part}" for name, part in zip(names, parts)]
  return (" = " if again and len(parts) == 2 else ", ").join(parts[::-1])


def _whole(text: str, box) -> str:
  r"""The contents of a box with what belongs to them outside: $-\boxed{5}$ million."""
  start, *_, after = box
  sign = _CHANGED.search(text[max(0, start - 20) : start])
  count = _COUNT.match(_cleaned(text[after : after + 40]).strip())
  contents = _contents(text, box)
  if sign:
    contents = f"-({contents})" if sign[1] else rf"\neq {contents}"
  return contents + (f" {count[0].strip(' $')}" if count else "")


def _paragraph(text: str, before, after) -> bool:
  return re.search(r"\n\s*\n", text[before[3] : after[0]]) is not None


def _cleaned(text: str) -> str:
  """The text without what opens and closes formulas, a `\\text{...}` as what it holds."""
  return _DELIMITERS.sub(lambda m: m[1] if m[1] is not None else "&" if m[0] == "&" else " ", text)


_BLOCK = re.compile(r"<answer>((?:(?!<answer>).)*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
# "The answer is", "**Answer:**", "Final answer = ", "#### ".
_MARK = re.compile(
  r"####|\b(?:answers?|(?:option|choice)(?=\s+is))\b(?:\s+(?:to|of|for|in)\b[^.:=\n]{0,60}?)?\s*(?:\*\*|__)?\s*"
  r"(?:\bis\b|\bare\b|\bequals\b|\bwill be\b|\bwould be\b|:|=)\s*(?:\*\*|__)?\s*:?",
  re.IGNORECASE,
)
_BECAUSE = re.compile(r",?\s+(?:since|because|therefore|thus|hence)\b", re.IGNORECASE)
_NOT = re.compile(
  r"(?:\bnot|n't|\bnever|\bcannot|n’t)(?:\s+(?:be|equal|to|the|is|just|simply))*[\s$*(]*$"
)
# What makes a bound of the number behind it.
_BOUND = re.compile(
  r"\b(?:at least|at most|(?:less|more|fewer|greater|larger|smaller|higher|lower|bigger) than|up to"
  r"|between(?:\s[^.]{1,20}?\sand)?)[ \t$*(]*$"
  r"|(?:^\s*|\b(?:is|are|be|just|well) )(?:under|over|below|above)[ \t$*(]*$",
  re.IGNORECASE,
)
_REASONS = re.compile(
  r",?\s+(?:since|because|which|where|when|so that|as|with|given|therefore|thus|hence|after)\b"
  r"|\s+[—–(](?=\s*(?!or\b)[a-zA-Z]{2})|\s[—–-]\s",
  re.IGNORECASE,
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\$([^$]+?)\$|\\\((.+?)\\\)", re.DOTALL)
_COMMAND = (
  r"\\[a-zA-Z]+(?:\s*\[[^\[\]]*\])?(?:\s*\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*|\\[{}%,;!$]"
)
_NUMBER = r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_SIGN = r"[-+−–*/^_=×÷·⋅√π°²³½¼¾∞%!(){}\[\]<>≤≥]"
_ATOM = rf"(?:{_COMMAND}|\.\.\.|{_NUMBER}|{_SIGN}|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z'’]))"
_PLAIN = re.compile(rf"{_ATOM}(?:\s?{_ATOM})*")

_COUNTED = "|".join(sorted(COUNTS.keys() - {"score", "tens"}, key=len, reverse=True))
_COUNT = re.compile(rf"^\$?\s*(?:(?:{_COUNTED}|percent)s?(?![a-zA-Z])|%)")
_OR = re.compile(r"(\$[^$\n]+\$|\S+),?\s+\(?or\s+(?:\$[^$\n]+\$|\S+?)\)?[.!?]?\s*$")
_MARKUP = re.compile(r"</?(?:b|i|u|p|em|strong|code|span|center)>", re.IGNORECASE)


def candidates(response: str) -> Iterator[str]:
  """Texts that may be the response's final answer, the likeliest first; the first that can be read
  counts. A box is the only one."""
  text = _MARKUP.sub("", without_reasoning(response))
  if (box := _last_boxes(text)) is not None:
    yield box
    return
  if blocks := _BLOCK.findall(text):
    text = blocks[-1]
    yield _trimmed(text)
  text = text[-TAIL:]
  if marks := list(_MARK.finditer(text)):
    yield from _statement(text[marks[-1].end() :])
  elif len(text) < 100 and "\n" not in text.strip():
    yield _trimmed(text)
  formulas = [
    (m.end(), next(filter(None, m.groups()))) for m in _FORMULA.finditer(text) if _meant(m)
  ]
  numbers = [
    (m.end(), m[0]) for m in _PLAIN.finditer(text) if re.search(r"[\d\\π∞½¼¾]", m[0]) and _meant(m)
  ]
  last = sorted(formulas + numbers, reverse=True)[:3]
  for i, (end, found) in enumerate(last):
    found = found.lstrip("= ") + "".join(_COUNT.findall(text[end : end + 20]))
    if i == 0 and (others := _OR.search(text)):  # "maybe 12 or 13" names no answer
      yield f"{others[1]} or {found}"
      return
    yield found.partition("=")[2] or found if found.count("=") == 1 else found


def _meant(number: re.Match) -> bool:
  """Whether a number of a text is what the text says: not 7, at least 7 are no 7."""
  before = number.string[max(0, number.start() - 30) : number.start()]
  return not (_NOT.search(before) or _BOUND.search(before))


def _statement(text: str) -> Iterator[str]:
  """What is said after "the answer is": the sentence, its part before the reasons, and the first
  formula or number in it."""
  text = text.lstrip(" *_:\n").split("\n\n")[0]
  if not text.startswith(("$$", "\\[")):
    text = text.split("\n")[0]
  sentence = re.split(r"(?<=[^\s.])[.!?](?=\s|$|\*)", text, maxsplit=1)[0]
  sentence = _BECAUSE.split(sentence, maxsplit=1)[0]
  if re.match(r"not\b|n't", sentence, re.IGNORECASE):
    return
  yield _trimmed(sentence)
  yield _trimmed(_REASONS.split(sentence, maxsplit=1)[0])
  found = [(m.start(), next(filter(None, m.groups())), m) for m in _FORMULA.finditer(sentence)]
  found += [(m.start(), m[0], m) for m in _PLAIN.finditer(sentence) if re.search(r"\d", m[0])]
  for _, number, match in sorted(found, key=lambda one: one[:2])[:1]:
    if _meant(match) and not _OR.search(sentence):
      yield number


def _trimmed(text: str) -> str:
  text = text.strip().strip("*_`").strip()
  return text if text.endswith("...") else text.rstrip(".").strip()
