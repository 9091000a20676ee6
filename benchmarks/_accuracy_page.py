"""The page of ``benchmarks/accuracy.py``: tables of every method, and how they compare."""

import math
import statistics

from benchmarks._report import in_words, table
from benchmarks.posteriordb import MODELS

#: When a fit counts as right: worst mean error and worst sd error, in reference sds.
MEAN, SD = 0.1, 0.15


def right(row):
    return "error" not in row and row["max_mean_error"] < MEAN and row["max_sd_error"] < SD


def spread(values, digits=2):
    values = sorted(values)
    middle = statistics.median(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


#: Ours beside the rivals; how far above the best a W1 may be, in floors.
OURS, HALF = "auto", 0.5
#: How the title of a method that is no rival begins.
MINE = "NFVI"
NOTE = (
    "Processor seconds are those of one thread in double precision, without imports: the fit, its "
    "diagnostics and the capture of the model, but not the C++ compiler, which the engine starts "
    "as a process of its own when it has not seen a model and a flow before ([cold and "
    "warm](engine.md)). Rivals were run at other times, so theirs are not shown; sides that took "
    "turns stand on the page of the [time to a posterior](time_to_posterior.md). Guides of "
    "NumPyro are as they come (BNAF one flow with hidden factors 8 and 8, IAF three flows), with "
    "the steps, particles, rates and clipping of Pyro's. "
)


def grouped(rows):
    """The rows of all seeds, by method and posterior."""
    groups = {}
    for key, row in rows.items():
        name, who, _ = key.split("|")
        groups.setdefault((who, name), []).append(row)
    return groups


def median_of(group, field):
    """Over the seeds; infinite if there are none, or none succeeded."""
    fine = [row[field] for row in group or [] if "error" not in row]
    return statistics.median(fine) if fine else math.inf


def page(results, titles):
    rows, groups = results["rows"], grouped(results["rows"])
    parts = [
        "Worst error over all parameters of each posterior, in standard deviations of the "
        "reference draws: of the mean, and of the sd relative to the reference's. *W1* is the "
        "sliced Wasserstein distance over that of as many exact draws. A fit is *right* with a "
        f"mean error below {MEAN} and an sd error below {SD}. Medians over the seeds, with the "
        "range."
    ]
    errors = ["posterior", "mean error", "sd error", "W1"]
    head = [*errors, "k-hat", "verdict", "flow", "CPU s"]
    there = dict.fromkeys(key.split("|")[1] for key in rows)
    for who in sorted(there, key=list(titles).index):
        mine, lines, all_rows = is_mine(titles, who), [], []
        for name in MODELS:
            group = groups.get((who, name))
            if not group:
                continue
            all_rows += group
            fine = [row for row in group if "error" not in row]
            if not fine:
                lines.append([short(name), *["failed"] * 3, *[""] * 4 * mine])
                continue
            line = [
                short(name),
                spread([row["max_mean_error"] for row in fine]),
                spread([row["max_sd_error"] for row in fine]),
                spread([row["w1_over_floor"] for row in fine], 1),
            ]
            if mine:
                verdicts = [row["verdict"] for row in fine]
                line += [
                    spread([row["khat"] for row in fine]),
                    ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)),
                    ", ".join(dict.fromkeys(flow_of(row) for row in fine)),
                    spread([row["cpu"] for row in fine], 1),
                ]
            lines.append(line)
        parts += [
            f"## {titles.get(who, who)}",
            summary(all_rows),
            table(head if mine else errors, lines),
        ]
    parts += beside(groups, titles)
    parts.append(f"{in_words(results['environment'])} Written by `python benchmarks/accuracy.py`.")
    return "\n\n".join(parts)


def is_mine(titles, who):
    return titles.get(who, who).startswith(MINE)


def flow_of(row):
    """The flow's formula, with its bars escaped for a table."""
    return f"`{row['flow']}`".replace("|", "\\|") if row["flow"] else "Gaussian"


def summary(rows):
    fine = [row for row in rows if "error" not in row]
    if not fine:
        return "No fit succeeded."
    count = sum(map(right, rows))
    text = (
        f"{count} of {len(rows)} fits are right; median W1 "
        f"{statistics.median(row['w1_over_floor'] for row in fine):.2f} times the floor."
    )
    if "verdict" in fine[0]:
        text += f" Median {statistics.median(row['cpu'] for row in fine):.1f} CPU seconds."
        good = [row for row in fine if row["verdict"] == "good"]
        wrong = sum(row["max_mean_error"] > 0.3 or row["max_sd_error"] > 0.3 for row in good)
        text += (
            f" Of the {len(good)} fits called good, {wrong} have a mean off by more than 0.3 sd or "
            f"an sd off by more than 30 %; of the {count} right ones, "
            f"{sum(right(row) for row in good)} are called good."
        )
        mended = [{**row, **row["reweighted"]} for row in fine if "reweighted" in row]
        text += f" Reweighted, {sum(map(right, mended))} of {len(rows)} are right."
    return text


def beside(groups, titles):
    """The section that sets our default against the best rival."""
    ours = [name for name in MODELS if math.isfinite(median_of(groups.get((OURS, name)), "cpu"))]
    rivals = [who for who, _ in groups if not is_mine(titles, who)]
    parts = []
    if ours and rivals:
        parts += against_rivals(groups, titles, ours, list(dict.fromkeys(rivals)))
    versions = dict.fromkeys(
        f"NumPyro {row['numpyro']}, JAX {row['jax']}"
        for group in groups.values()
        for row in group
        if "numpyro" in row
    )
    if versions:
        parts.append(NOTE + "; ".join(versions) + ".")
    return ["## Beside the rivals", *parts] if parts else []


def against_rivals(groups, titles, names, rivals):
    lines, fine, meant = [], 0, 0
    for name in names:
        mine = median_of(groups[OURS, name], "w1_over_floor")
        found = {who: median_of(groups.get((who, name)), "w1_over_floor") for who in rivals}
        best = min(found, key=found.get)
        holds = mine <= found[best] + HALF
        fine += holds
        meant += found[best] <= mine
        run = sum((who, name) in groups for who in rivals)
        lines.append(
            [
                short(name),
                f"{mine:.2f}",
                f"{found[best]:.2f}",
                titles.get(best, best),
                run,
                "yes" if holds else "**no**",
            ]
        )
    text = (
        f"The median W1 of our default is no worse than that of the best rival plus {HALF} of a "
        f"floor on {fine} of {len(names)} posteriors (goal: 90 %), and the best rival's is the "
        f"lower one on {meant}. Rivals here: {', '.join(titles.get(who, who) for who in rivals)}; "
        f"the table says how many of these were run on each posterior."
    )
    head = ["posterior", "W1, ours", "W1, best rival", "best rival", "rivals run", "no worse"]
    return [text, table(head, lines)]


def short(name):
    return name.split("-")[-1]
