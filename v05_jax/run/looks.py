"""How the curves of a comparison are told apart: by colour, by dashes and by marks."""

from typing import NamedTuple

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888888", "#b8a500")
DASHES = ((), (4, 1.5), (1, 1.2), (5, 1.5, 1, 1.5), (8, 2))  # in line widths; () = solid
# Matplotlib's name of a mark -> its outline around 0, 0 as an SVG path.
MARKS = {
  "o": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
  "s": "M-2.7-2.7h5.4v5.4h-5.4z",
  "^": "M0-3.6L3.4 2.6H-3.4z",
  "D": "M0-3.9L3.4 0L0 3.9L-3.4 0z",
}
LINE = 1.6  # width of a curve, points in a figure and pixels on a page


class Look(NamedTuple):
  """Colour, dashes and mark of a curve: 20 in a row differ without colour, 40 with it."""

  number: int  # of its colour
  dashes: tuple[float, ...]
  mark: str

  @property
  def colour(self) -> str:
    return COLOURS[self.number]


def look(number: int) -> Look:
  """The look of method `number`."""
  return Look(
    number % len(COLOURS), DASHES[number % len(DASHES)], tuple(MARKS)[number % len(MARKS)]
  )
