"""The tables of the README, in Markdown, from results.json."""

NAMES = {
  "mean": "group mean",
  "value": "prior alone",
  "v05": "V0.5",
  "beta_shrink": "BetaShrink",
  "batch_shrink": "batch mean, Beta",
  "james_stein": "James-Stein",
  "ewa": "EWA-Beta",
}
KINDS = {
  "oracle": "true mean",
  "ewa": "EWA-Beta",
  "beta_shrink": "BetaShrink",
  "v05_loo": "V0.5, leave-one-out",
  "v05": "V0.5",
  "value": "prior alone",
  "james_stein": "James-Stein",
  "batch_shrink": "batch mean, Beta",
  "rloo": "RLOO",
  "dr_grpo": "Dr.GRPO",
  "grpo": "GRPO",
}
RULES = {"neyman": "Neyman", "value": "from V alone", "uniform": "uniform"}


def everything(results) -> str:
  parts = (
    acceptance,
    estimators,
    ratios,
    budgets,
    spending,
    calibration,
    gradient,
    adaptive,
    test,
    bars,
  )
  return "\n\n".join(f(results) for f in parts)


def table(head, rows) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(x, digits=4) -> str:
  """.0123 for 0.0123."""
  text = f"{x:.{digits}f}"
  return text.removeprefix("0") if text.startswith("0.") else text


def with_error(x, digits=3) -> str:
  return number(x["mean"], digits) + (
    f" ({number(x['error'], digits)})" if x["error"] is not None else ""
  )


def where(row) -> list[str]:
  return [number(row["sd"], 1), "0" if row["h"] == 0 else number(row["h"], 1)]


def acceptance(results) -> str:
  names = (
    "v05_1",
    "v05_2",
    "v05_4",
    "v05_8",
    "v05_16",
    "oslaK",
    "oslaM",
    "tsK",
    "tsM",
    "n0",
    "bb4",
    "bb16",
  )
  head = [
    "sd",
    "h",
    "RMSE",
    "V0.5 k=1",
    "k=2",
    "k=4",
    "k=8",
    "k=16",
    "sequential k",
    "MSE",
    "two-stage k",
    "MSE",
    "n0",
    "BetaShrink k=4",
    "k=16",
  ]
  digits = {"oslaK": 3, "tsK": 3, "n0": 2}
  rows = [
    [*where(row), number(row["rmse"], 3), *(number(row[n], digits.get(n, 5)) for n in names)]
    for row in results["table"]
  ]
  off = ", ".join(f"{name} {x:.2g}" for name, x in results["largest_difference"].items())
  return f"Largest differences: {off}\n\n" + table(head, rows)


def estimators(results) -> str:
  """MSE of each estimator at k = 4."""
  rows = [
    [*where(row), number(row["rmse"], 3), *(number(row["mse"][n]["mean"]) for n in NAMES)]
    for row in results["estimators"]
    if row["k"] == 4
  ]
  return "k = 4\n\n" + table(["sd", "h", "RMSE", *NAMES.values()], rows)


def ratios(results) -> str:
  """EWA-Beta over V0.5 at each k."""
  ks = sorted({row["k"] for row in results["estimators"]})
  at = {(row["sd"], row["h"], row["k"]): row["ewa_over_v05"] for row in results["estimators"]}
  rows = [
    [*where({"sd": sd, "h": h}), *(with_error(at[sd, h, k]) for k in ks)]
    for sd, h in dict.fromkeys((sd, h) for sd, h, _ in at)
  ]
  return "EWA-Beta over V0.5\n\n" + table(["sd", "h", *(f"k={k}" for k in ks)], rows)


def budgets(results) -> str:
  """EWA-Beta by budget, and V0.5 at a uniform k, over V0.5 with the sequential rule."""
  at = {(row["sd"], row["h"], row["rule"], row["k_init"]): row for row in results["budgets"]}
  kinds = list(dict.fromkeys(key[2:] for key in at))
  head = [
    "sd",
    "h",
    "rollouts",
    *(RULES[rule] + (f", {k} first" if k else "") for rule, k in kinds),
    "V0.5, uniform",
  ]
  rows = []
  for row in results["spending"]:
    sd, h = row["sd"], row["h"]
    cells = [with_error(at[sd, h, *kind]["ewa_over_osla"]) for kind in kinds]
    rows.append([*where(row), number(row["k"], 2), *cells, number(1 / row["ratio"], 3)])
  return "MSE over that of V0.5 with the sequential rule\n\n" + table(head, rows)


def spending(results) -> str:
  """Where the sequential rule spends."""
  head = [
    "sd",
    "h",
    "mean k",
    "MSE over uniform k",
    "two-stage over uniform k",
    "stops at 4",
    "stops at 16",
    "k, sound prior",
    "k, hallucinated prior",
  ]
  rows = []
  for row in results["spending"]:
    stops = {int(k): x for k, x in row["stops"].items()}
    wrong = row.get("hallucinated")
    rows.append(
      [
        *where(row),
        number(row["k"], 2),
        number(row["ratio"], 2),
        number(row["two_stage_ratio"], 2),
        f"{stops[4]:.1%}",
        f"{stops[16]:.2%}",
        number(row["sound"]["k"], 2),
        number(wrong["k"], 2) if wrong else "-",
      ]
    )
  names = {
    "mean_k4": "group mean of 4",
    "mse_k4": "V0.5, k = 4",
    "mse": "V0.5, sequential",
    "missed": "of it, priors accepted at once",
  }
  wrong = next(row["hallucinated"] for row in results["spending"] if "hallucinated" in row)
  hallucinated = table(
    ["MSE where the prior is hallucinated", ""], [[x, number(wrong[n])] for n, x in names.items()]
  )
  return "The sequential rule\n\n" + table(head, rows) + "\n\n" + hallucinated


def calibration(results) -> str:
  """The plug-in MSE against the true one at k = 4, and EWA's own expectation against its error."""
  head = [
    "sd",
    "h",
    "plug-in",
    "true",
    "true / plug-in",
    "k=8",
    "k=16",
    "prior accepted",
    "true MSE there",
    "EWA expects",
    "EWA's true MSE",
  ]
  ewa = {(row["sd"], row["h"]): row["mse"] for row in results["estimators"] if row["k"] == 4}
  rows = []
  for row in results["calibration"]:
    at = {int(k): x for k, x in row["k"].items()}
    four, learnt = at[4], ewa[row["sd"], row["h"]]
    rows.append(
      [
        *where(row),
        number(four["estimate"]),
        number(four["true"]),
        *(number(at[k]["true_over_estimate"], 2) for k in (4, 8, 16)),
        f"{four['accepted']:.1%}",
        number(four["true_where_accepted"]),
        number(learnt["ewa_var"]["mean"]),
        number(learnt["ewa"]["mean"]),
      ]
    )
  return "Calibration, k = 4\n\n" + table(head, rows)


def gradient(results) -> str:
  """Bias and noise of each kind of advantage at k = 4."""
  head = [
    "advantage",
    "E[A^2]",
    "gradient / true",
    "of one prompt",
    "cosine",
    "E[A^2], scaled",
    "noise",
    "noise, prompts drawn",
  ]
  parts = []
  for sd, h in dict.fromkeys((row["sd"], row["h"]) for row in results["gradient"]):
    rows = [
      [
        KINDS[row["kind"]],
        number(row["a2"]),
        number(row["gradient"], 3),
        f"{number(row['least'], 2)} to {number(row['most'], 2)}",
        number(row["cosine"], 3),
        number(row["a2_scaled"], 3),
        number(row["noise"], 3),
        number(row["noise_drawn"], 3),
      ]
      for row in results["gradient"]
      if (row["sd"], row["h"], row["k"]) == (sd, h, 4)
    ]
    parts.append(f"Gradient, k = 4, sd {sd}, h {h}\n\n" + table(head, rows))
  parts.append(gradient_by_k(results))
  off = (
    f"identity off by {results['identity_off']:.1g}, leave-one-out bias "
    f"{results['leave_one_out_bias']:.1g}"
  )
  return "\n\n".join([*parts, off])


def gradient_by_k(results) -> str:
  """Noise at equal rollouts, prompts drawn, over k."""
  ks = sorted({row["k"] for row in results["gradient"]})
  parts = []
  for sd, h in dict.fromkeys((row["sd"], row["h"]) for row in results["gradient"]):
    at = {
      (row["kind"], row["k"]): row
      for row in results["gradient"]
      if (row["sd"], row["h"]) == (sd, h)
    }
    columns = [(field, k) for field in ("noise_drawn", "noise") for k in ks]
    rows = [
      [label, *(number(at[kind, k][field], 2) for field, k in columns)]
      for kind, label in KINDS.items()
    ]
    head = ["advantage", *(f"drawn, k={k}" for k in ks), *(f"given, k={k}" for k in ks)]
    parts.append(f"Gradient variance at equal rollouts, sd {sd}, h {h}\n\n" + table(head, rows))
  return "\n\n".join(parts)


def adaptive(results) -> str:
  """What a number of rollouts chosen by the outcome does to the gradient."""
  head = [
    "sd",
    "h",
    "rule",
    "mean k",
    "gradient / true",
    "of one prompt",
    "cosine",
    "cosine, rollouts added up",
  ]
  rows = [
    [
      *where(x),
      f"{x['rule']}, {NAMES[x['estimator']]}",
      number(x["k"], 2),
      number(x["gradient"], 3),
      f"{number(x['least'], 2)} to {number(x['most'], 2)}",
      number(x["cosine"], 3),
      number(x["cosine_sum"], 3),
    ]
    for x in results["adaptive"]
  ]
  return "Numbers of rollouts that depend on the outcome\n\n" + table(head, rows)


def test(results) -> str:
  found = results["test"]
  rows = [
    [
      k,
      f"{found['mean_size'][k]:.1%}",
      f"{max(found['size'][k]):.1%}",
      *(f"{x:.1%}" for x in found["mean_power"][k].values()),
    ]
    for k in found["mean_size"]
  ]
  biases = [f"bias {b}" for b in next(iter(found["mean_power"].values()))]
  return "The test\n\n" + table(["k", "mean size", "largest size", *biases], rows)


def bars(results) -> str:
  rows = [
    [x["bar"], *where(x), with_error(x), number(x["at_most"], 2), "PASS" if x["met"] else "FAIL"]
    for x in results["bars"]
  ]
  return table(["bar", "sd", "h", "measured", "at most", ""], rows)
