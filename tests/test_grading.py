"""The reward of mathematics on labelled pairs, and what each kind of answer is worth."""

import time

import pytest

from experiments.grading import run as grading
from v05_jax.rewards import math as mathematics
from v05_jax.rewards.math import answers, dates, numerals


def verdict(response, answer):
  return mathematics.verify("", response, {"answer": answer})


def test_no_labelled_pair_is_paid_or_refused_wrongly():
  pairs = grading.read_pairs()
  assert len(pairs) >= 300 and len({(p["response"], p["answer"]) for p in pairs}) > 900
  wrong = [
    (pair["response"], pair["answer"], pair["right"])
    for pair in pairs
    if grading.ours(pair["response"], pair["answer"]) != bool(pair["right"])
  ]
  assert not wrong


def test_every_pair_has_its_fields_and_each_kind_both_labels():
  pairs = grading.read_pairs()
  assert all(p.keys() == {"response", "answer", "right", "kind", "note"} for p in pairs)
  for kind in {pair["kind"] for pair in pairs}:
    assert {pair["right"] for pair in pairs if pair["kind"] == kind} == {0, 1}, kind


def test_measures_count_what_is_paid():
  pairs = [{"right": 1}, {"right": 1}, {"right": 0}, {"right": 0}]
  found = grading.measures(pairs, [True, False, True, False])
  assert found == {"right": 2, "wrong": 2, "paid": 1, "false": 1, "precision": 0.5, "recall": 0.5}
  assert grading.measures(pairs[2:], [False, False])["precision"] is None


@pytest.mark.parametrize(
  "text, rest",
  [
    ("<think>5</think> 7", "7"),
    ("5</think> 7", "7"),
    ("7 <think>5", "7"),
    ("<think>a<think>b</think>c</think>7", "7"),
    ("<Thinking time=3>5</Thinking>7", "7"),
    ("<reasoning><think>5</reasoning>7", "7"),  # what it holds ends with it
    ("<|begin_of_thought|>5<|end_of_thought|>7", "7"),
    ("<think>5</think>a<think>6</think>7", "a 7"),
    ("<scratch>5</scratch>7", "7"),
    ("analysis 5 assistantfinal7", "7"),
    ("a < b and [thinkable]", "a < b and [thinkable]"),
  ],
)
def test_reasoning_is_no_answer(text, rest):
  assert " ".join(answers.without_reasoning(text).split()) == rest


@pytest.mark.parametrize(
  "text, digits",
  [
    ("twelve", "12"),
    ("Twenty-one", "21"),
    (r"\text{one hundred and five}", "105"),
    ("two million three hundred thousand", "2300000"),
    ("minus two thirds", r"-\frac{2}{3}"),
    ("five and a half", r"\frac{11}{2}"),
    ("five apples", r"5 \text{apples}"),
    ("five six", None),
    ("twenty ten", None),
    ("one hundred and two hundred", None),
    ("two and three", None),
    ("two or more", None),
    ("one-to-one", None),
    ("third", None),
    ("hundred", None),
  ],
)
def test_numbers_in_words(text, digits):
  assert numerals.in_digits(text) == digits


@pytest.mark.parametrize(
  "text, found",
  [
    ("January 5, 2024", "5 january 2024"),
    (r"\text{5th of Jan. 2024}", "5 january 2024"),
    ("2024-01-05", "5 january 2024"),
    (r"\text{Sept. 1st}", "1 september"),
    ("2024-13-05", None),
    ("Mat 5", None),
    ("5 apples", None),
    ("2024-1-5", None),
  ],
)
def test_dates_are_read_whatever_their_order(text, found):
  assert dates.date(text) == found


@pytest.mark.parametrize(
  "told, other, same",
  [
    (r"2:30 \text{ PM}", "14:30", 1),
    (r"2:30 \text{ PM}", "2:30", 1),
    (r"2:30 \text{ AM}", "14:30", 0),
    (r"12:00 \text{ AM}", "0:00", 1),
    (r"12:00 \text{ PM}", "0:00", 0),
    (r"\text{noon}", "12:00 PM", 1),
    (r"\text{midnight}", "12:00 PM", 0),
    ("2 PM", "2:00 PM", 1),
    ("2:00", "14:00", 0),
  ],
)
def test_times_of_12_and_of_24_hours(told, other, same):
  assert verdict(rf"\boxed{{{told}}}", other) == verdict(rf"\boxed{{{other}}}", told) == same


@pytest.mark.parametrize(
  "response, answer",
  [
    (r"\sqrt{2} + 10^{-500}", r"\sqrt{2}"),
    (r"x + 10^{-500}", "x"),
    (r"\sqrt{10^{1000} + 1}", "10^{500}"),
    (r"10^{10^{10^6}}", r"10^{10^{10^6}} + 1"),
  ],
)
def test_numbers_that_differ_far_behind_the_point_are_not_equal(response, answer):
  assert verdict(rf"\boxed{{{response}}}", answer) == 0
  assert verdict(rf"\boxed{{{response}}}", response) == 1


def test_what_is_said_of_a_number_is_no_answer():
  for text in ("at least 7", "between 5 and 7", "7 (or 8)", "more than $7$", "not 7"):
    assert verdict(f"The answer is {text}.", "7") == 0, text
  assert verdict("The answer is 7.", "7") == 1


@pytest.mark.parametrize(
  "response, answer, other",
  [
    ("Total cost = 5 * 3 = 15 dollars.", "15", "5"),
    (r"Cost = 5 \times 3 = 15", "15", "3"),
    ("Total = 3 + 5 = 8 apples.", "8", "3"),
    (r"\boxed{C: 15}", "C", "D"),
    ("Answer: C: 15", "C", "15:1"),
    (r"\boxed{\text{C: }15}", "C", "A"),
    (r"\boxed{A:B}", "A:B", "A"),
    (r"\boxed{2: 3}", "2:3", "3:2"),
    (r"\boxed{\large 9}", "9", "8"),
    (r"\boxed{{\frac{1}{2}}}", "0.5", "2"),
    (r"\boxed{{2}^{3}}", "8", "23"),
    (r"\boxed{{\Large \frac{1}{2}}}", "0.5", "2"),
  ],
)
def test_what_stands_around_an_answer_is_no_part_of_it(response, answer, other):
  assert verdict(response, answer) == 1 and verdict(response, other) == 0


@pytest.mark.parametrize(
  "response, answer",
  [
    ("{{1,3},{2,4}}", "{{1,2},{3,4}}"),
    ("{{4,3},{2,1}}", "{{1,2},{3,4}}"),
    ("{{1},{2,3}}", "{{1,2},{3}}"),
    ("1,2,3,4", "{{1,2},{3,4}}"),
    ("{1, {2, 3}}", "{1,2,3}"),
  ],
)
def test_braces_in_braces_are_no_flat_list(response, answer):
  assert verdict(rf"\boxed{{{response}}}", answer) == 0
  assert verdict(rf"\boxed{{{answer}}}", answer) == 1


def test_the_answer_of_a_whole_solution_is_its_last():
  assert verdict(r"\boxed{5}", r"We have 3 + 2 = 5, so it is $\boxed{5}$.") == 1
  assert verdict(r"\boxed{3}", r"We have 3 + 2 = 5, so it is $\boxed{5}$.") == 0


@pytest.mark.parametrize(
  "answer", ["2 apples", "25 people", "12 apples and 3 pears", "12 red, 3 blue", "5 years"]
)
def test_an_answer_that_counts_things_is_right_as_it_stands(answer):
  number = answer.split()[0]
  for response in (rf"\boxed{{{answer}}}", rf"\boxed{{\text{{{answer}}}}}", answer):
    assert mathematics.verify("", response, {"answer": answer}) == 1
  alone = len(answer.split()) == 2
  assert mathematics.verify("", rf"\boxed{{{number}}}", {"answer": answer}) == alone
  assert mathematics.verify("", r"\boxed{3}", {"answer": answer}) == 0


def test_several_counts_in_latex_and_a_sentence():
  gold = {"answer": "12 apples and 3 pears"}
  for response in (r"12\text{ apples and }3\text{ pears}", r"12 \text{ apples and 3 pears}"):
    assert mathematics.verify("", rf"\boxed{{{response}}}", gold) == 1
  assert mathematics.verify("", r"\boxed{3}", {"answer": "12 answers and 3 questions"}) == 0
  sentence = {"answer": "He buys 3 books for 36 dollars"}
  assert mathematics.verify("", r"\boxed{36}", sentence) == 1


@pytest.mark.parametrize("answer", ["", " ", "$", r"\boxed{}", "?"])
def test_nothing_equals_nothing(answer):
  assert verdict(r"\boxed{}", answer) == verdict("", answer) == 0


@pytest.mark.parametrize(
  "response",
  [
    r"\boxed{" * 100_000,
    "<think>" * 20_000 + "</think>" * 20_000,
    "the answer is " * 5_000,
    "$1$ or " * 5_000,
    r"\boxed{" + "(" * 300 + "1" + ")" * 300 + "}",
    r"\boxed{" + "1 " * 900 + "}",
    r"\boxed{" + r"\frac{1}{" * 60 + "1" + "}" * 60 + "}",
    r"\boxed{" + ", ".join([r"1 \pm 2"] * 12) + "}",
    r"\boxed{2^{10^{12}}}",
    r"\boxed{(10^9)!}",
    r"\boxed{" + r"\frac" * 300 + "12}",
    r"\boxed{" + r"\sqrt" * 300 + "2}",
    r"\boxed{" + "twelve " * 280 + "}",
    r"\boxed{" + "(1,2)+" * 300 + "(1,2)}",
    r"\boxed{1, 2, \ldots, 10^{30}}",
    r"\boxed{1, 10^{600}, 10^{1200}, \ldots, 7}",
    r"\boxed{7^{10^{15}} \bmod (10^{40} + 1)}",
    r"\boxed{5 h " + "30 min " * 250 + "}",
    r"\boxed{x" + " " * 1900 + "}",
    "It is not $5$. " * 5_000,
  ],
)
def test_what_a_policy_may_write_costs_no_time(response):
  began = time.process_time()
  assert verdict(response, r"x^2+7") == 0
  assert time.process_time() - began < 20
