"""What to expect where a context is too small for a learned head."""

import numpy as np

MIN_ROWS = 4  # of a context for a learned head


def smoothed(scores, labels):
  """What to expect of any prompt where a context is too small for a learned head, or None where it
  is not.

  The head was made for contexts of both classes, and for more than a few rows. With fewer than
  MIN_ROWS rows, or one class: (sum of scores + 1) / (rows + 2), Laplace's rule; .5 without any row.

  Args:
    scores: [n] in [0, 1]. labels: bool [n].
  """
  if len(scores) >= MIN_ROWS and 0 < np.sum(labels) < len(labels):
    return None
  return (float(np.sum(scores)) + 1.0) / (len(scores) + 2.0)
