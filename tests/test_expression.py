"""The reward `expression`: arithmetic that is right, arithmetic that is not, and what is none."""

from fractions import Fraction
import time

import numpy as np
import pytest

from v05_jax import rewards
from v05_jax.rewards import expression

RIGHT = [
  ("7 * 8 = 56", "56"),
  ("7 * 8 = 57", "56"),  # the equation counts, not what it was miscalculated to
  ("7 * 8", "56"),
  ("7 * 8 =", "56"),
  ("= 7 * 8", "56"),
  ("x = 7 * 8", "56"),
  ("x = 7 * 8 = 57", "56"),
  ("56", "56"),
  ("Let me think.\nThere are 3 boxes.\n\n3 * 4 = 12.\n  \n", "12"),
  ("1 + 1\r\n3 * 4 = 12 apples", "12"),
  ("Answer: 3 * (4 + 5) = 27 dollars", "27"),
  ("Total cost = $2.50 × 4 = $10", "10"),
  ("7 × 8 ÷ 2 − 3", "25"),
  ("7 x 8", "56"),
  ("7x8", "56"),
  ("10x2.0x(3)", "60"),
  ("0 x 5", "0"),
  ("20 – 5", "15"),
  ("3² + 2¹⁰", "1033"),
  ("２ ＋ ３", "5"),
  (r"\boxed{7 \times 8}", "56"),
  (r"So it is $\boxed{\frac{1}{2} \cdot 12}$.", "6"),
  (r"Final answer: $\boxed{7 \times 8} \text{ apples}$", "56"),
  (r"\boxed{1} or \boxed{\frac{1}{2}} \text{m}", "0.5"),
  (r"\left(8 + 4\right) \div 3 = 4", "4"),
  ("<answer>6 * 7</answer>", "42"),
  ("`12 / 5`", "2.4"),
  ("1,000 + 2,345,678.5", "2346678.5"),
  ("2(3 + 4)(1 + 1)", "28"),
  ("-2^2", "-4"),
  ("2^3^2", "512"),
  ("2**-1", "0.5"),
  ("5 - - 3 + + 2", "10"),
  ("7 // 2 + 7 % 4", "6"),
  ("20% * 50", "10"),
  ("(100 - 15%)", "99.85"),
  ("1.5e3 / .5", "3000"),
  ("10 / 4", "5/2"),
  ("10 / 3", "3.33"),
  ("10 / 3", "3.333333333333333"),
  ("0.1 + 0.2", "0.30000000000000004"),
  ("1 / 2", "0.50"),
  ("70 * 1000", "$70,000"),
  ("9 - 4", "5.0"),
  ("0 / 7", "0"),
  ("0 ** 0", "1"),
]
WRONG = [
  ("7 + 8 = 56", "56"),
  ("5.04", "5.0"),  # zeros at the end are no decimals to round to
  ("0.54", "0.5"),
  ("10 / 3", "3"),
  ("10 / 3", "3.4"),
  ("3.34", "3.33"),
  ("10000000001", "10000000000"),
  ("7 * 8\nThat is all.", "56"),  # the last line counts
  ("7 * 8 apples", "56"),
]
# No expression, or one that is too large: worth 0, whatever the answer.
NONE = [
  "",
  " \n ",
  "=",
  "()",
  "1 +",
  "* 3",
  "1 2",
  "3 1/2",
  "(1",
  "1)",
  "1, 2",
  "1,23",
  "1/0",
  "0**-1",
  "1 % 0",
  "1 // (2 - 2)",
  "1 / (1 / 0)",
  "9**9**9",
  "9^9^9^9^9^9",
  "2**101",
  "2**0.5",
  "(2**100)**100",
  "1e999",
  "1e-999",
  "1e99999999999999999999",
  "9" * 300,
  "(" * 10_000 + "1" + ")" * 10_000,
  "(" * 100 + "1" + ")" * 100,
  "(" * 200,
  "2^" * 120 + "1",
  "-" * 100_000 + "1",
  "1" * 1_000_000,
  "1+" * 500_000 + "1",
  "a" * 1_000_000,
  "=" * 1_000_000,
  "\n" * 1_000_000,
  "\\frac{" * 160,
  "\\boxed{" * 140 + "}" * 10,
  "<answer>" * 120,
  " " * 900 + ".",
  "__import__('os').system('true')",
  "__import__('os')",
  "(lambda: 1)()",
  "[x for x in ().__class__.__bases__]",
  "exec('1')",
  "print(56)",
  "abs(-56)",
  "open('/etc/passwd').read()",
  "1 if True else 2",
  "True",
  "None",
  "0x38",
  "5_6",
  "56j",
  "1 and 56",
  "1 << 3",
  "56; 56",
  "'56'",
  "inf",
  "nan",
  "1e",
  "½",
  "x",
  "\x00",
  "\ud800",
  "7 ⟨ 8",
]


def judge(response, answer):
  return expression.verify("", response, {"answer": answer})


@pytest.mark.parametrize(("response", "answer"), RIGHT)
def test_what_is_right(response, answer):
  assert judge(response, answer) == 1.0


@pytest.mark.parametrize(("response", "answer"), WRONG)
def test_what_is_wrong(response, answer):
  assert judge(response, answer) == 0.0


@pytest.mark.parametrize("response", NONE, ids=range(len(NONE)))
def test_what_is_no_expression_is_worth_nothing_and_takes_no_time(response):
  begun = time.process_time()
  for answer in ("56", "1", "0", "inf", "nan", response, ""):
    assert judge(response, answer) == 0.0
  assert time.process_time() - begun < 5.0
  with pytest.raises(ValueError):
    expression.calculate(expression.expression(response))


@pytest.mark.parametrize("answer", ["Tuesday", "3:30", "5, 15", "", "1/0", None, [1], "9" * 400])
def test_an_answer_that_is_no_number_is_never_met(answer):
  assert judge("7 * 8", answer) == 0.0
  assert expression.verify("", "7 * 8", {}) == 0.0


def test_answers_that_are_no_numbers_are_counted_before_a_run(monkeypatch):
  said = []
  monkeypatch.setattr(rewards.log, "warning", lambda text, *values: said.append(text % values))
  rows = [{"answer": answer} for answer in ("5", "February 3rd", "1,000", "5, 15", "3.5")]
  rewards.check_answers("expression", rows, "asdiv")
  assert said == [
    "asdiv: 2 of 5 answers are no numbers, such as 'February 3rd': their responses are worth 0"
  ]
  rewards.check_answers("expression", rows[::2], "asdiv")
  rewards.check_answers("math", rows, "asdiv")
  assert len(said) == 1
  with pytest.raises(ValueError, match=r"asdiv: found 'February 3rd' .* no number among 1 of them"):
    rewards.check_answers("expression", rows[1:2], "asdiv")


def test_anything_but_a_text_is_worth_nothing():
  assert [judge(response, "56") for response in (None, 56, b"56", ["56"])] == [0.0] * 4
  assert judge("7 * 8", 56) == judge("7 * 8", 56.0) == 1.0


def test_expressions_are_calculated_as_python_calculates_them():
  """Random expressions, against Python's own evaluation in fractions."""
  draw = np.random.default_rng(0)

  def make(depth):
    if depth == 0 or draw.random() < 0.2:
      return str(draw.integers(1, 50))
    parts = (
      "{} + {}",
      "{} - {}",
      "{} * {}",
      "{} / {}",
      "({} - {})",
      "-{} + {}",
      "({}) * {}",
      "{} // {}",
    )
    part = parts[draw.integers(len(parts))]
    return part.format(make(depth - 1), make(depth - 1))

  compared = 0
  for _ in range(300):
    text = make(4)
    names = expression.re.sub(r"\d+", lambda match: f"Fraction({match[0]})", text)
    try:
      expected = eval(names, {"Fraction": Fraction})
    except ZeroDivisionError:
      with pytest.raises(ValueError, match="divides by zero"):
        expression.calculate(text)
    else:
      compared += 1
      assert expression.calculate(text) == expected, text
  assert compared > 250


def test_the_verifier_of_a_run_needs_no_process():
  from v05_jax.configs import default

  config = default.get_config()
  config.reward = "expression"
  with rewards.load(config) as verifier:
    assert isinstance(verifier, rewards.Direct)
    handles = verifier.submit([""] * 2, ["7 * 8 = 1", "9**9**9"], [{"answer": "56"}] * 2)
    assert [handle.result(0)[:2] for handle in handles] == [(1.0, ""), (0.0, "")]
