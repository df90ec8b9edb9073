"""Dates and times in words: January 5, 2024, 5 Jan 2024 and 2024-01-05 are one, and no difference
of numbers."""

import re

_MONTHS = (
  "january february march april may june july august september october november december".split()
)
_MONTH = r"(?P<month>[A-Za-z]{3,9})\.?"
_DAY = r"(?P<day>\d{1,2})(?:\s*\^?\s*\{?\s*(?:st|nd|rd|th)\s*\}?)?"
_YEAR = r"(?:,?\s+(?P<year>\d{4}))?"
_FORMS = (
  re.compile(rf"{_MONTH}\s+(?:the\s+)?{_DAY}{_YEAR}"),
  re.compile(rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}{_YEAR}"),
)
_ISO = re.compile(r"(?P<year>[12]\d{3})-(?P<month>0[1-9]|1[0-2])-(?P<day>[0-3]\d)")


def date(text: str) -> str | None:
  r"""The date that a text is, as "5 january 2024" or "5 january"; None if it is none."""
  text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
  text = re.sub(r"\s+", " ", text).strip()
  if match := _ISO.fullmatch(text):
    return f"{int(match['day'])} {_MONTHS[int(match['month']) - 1]} {match['year']}"
  for form in _FORMS:
    if (match := form.fullmatch(text)) and (month := _month(match["month"])):
      return f"{int(match['day'])} {month} {match['year'] or ''}".strip()
  return None


def _month(name: str) -> str | None:
  """The month that a name or its first letters are: "Sept" is "september"."""
  return next((month for month in _MONTHS if month.startswith(name.lower())), None)


def time(text: str) -> str | None:
  r"""12:00 pm for noon, 12:00 am for midnight; None for anything else."""
  word = re.sub(r"\\text|[{} ]", "", text).lower()
  return {"noon": "12:00 pm", "midnight": "12:00 am"}.get(word)
