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


#: Ours beside the rivals, NUTS apart; how far above the best a W1 may be, in floors.
OURS, NUTS, HALF = "auto", "nuts_numpyro", 0.5
#: How the title of a method that is no rival begins.
MINE = "NFVI"
NOTE = (
    "CPU seconds of one thread in double precision, without imports. The times of ours were taken "
    "in other runs than those of NUTS, on a machine with other work, so ratios near 1 say nothing. "
    "Ours contain the fit, its diagnostics and the capture of the model, but not the C++ compiler, "
    "which the engine starts as a process of its own when it has not seen a model and a flow "
    "before ([cold and warm](engine.md)). For guides of NumPyro the CPU seconds above contain "
    "tracing and compiling as well, all steps in one compiled loop; guides are as they come (BNAF "
    "one flow with hidden factors 8 and 8, IAF three flows), with the steps, particles, rates and "
    "clipping of Pyro's. "
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


def goal_of(rows, name):
    """The W1 that NUTS is to reach, or None: that of our default, and half a floor."""
    goal = median_of(grouped(rows).get((OURS, name)), "w1_over_floor") + HALF
    return goal if math.isfinite(goal) else None


def page(results, titles):
    rows, groups = results["rows"], grouped(results["rows"])
    parts = [
        "Worst error over all parameters of each posterior, in standard deviations of the "
        "reference draws: of the mean, and of the sd relative to the reference's. *W1* is the "
        "sliced Wasserstein distance over that of as many exact draws. A fit is *right* with a "
        f"mean error below {MEAN} and an sd error below {SD}. Medians over the seeds, with the "
        "range."
    ]
    head = ["posterior", "mean error", "sd error", "W1", "k-hat", "verdict", "flow", "CPU s"]
    there = dict.fromkeys(key.split("|")[1] for key in rows)
    for who in sorted(there, key=list(titles).index):
        if who == NUTS:
            continue
        lines, all_rows = [], []
        for name in MODELS:
            group = groups.get((who, name))
            if not group:
                continue
            all_rows += group
            fine = [row for row in group if "error" not in row]
            if not fine:
                lines.append([name, *["failed"] * 3, "", "", "", ""])
                continue
            verdicts = [row.get("verdict", "") for row in fine]
            lines.append(
                [
                    short(name),
                    spread([row["max_mean_error"] for row in fine]),
                    spread([row["max_sd_error"] for row in fine]),
                    spread([row["w1_over_floor"] for row in fine], 1),
                    spread([row["khat"] for row in fine]) if "khat" in fine[0] else "",
                    ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts) if v),
                    ", ".join(dict.fromkeys(flow_of(row) for row in fine))
                    if "flow" in fine[0]
                    else "",
                    spread([row["cpu"] for row in fine], 1),
                ]
            )
        parts += [f"## {titles.get(who, who)}", summary(all_rows), table(head, lines)]
    parts += beside(groups, titles)
    parts.append(f"{in_words(results['environment'])} Written by `python benchmarks/accuracy.py`.")
    return "\n\n".join(parts)


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
        f"{statistics.median(row['w1_over_floor'] for row in fine):.2f} times the floor; median "
        f"{statistics.median(row['cpu'] for row in fine):.1f} CPU seconds."
    )
    if "verdict" in fine[0]:
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
    """The section that sets our default against the best rival and against NUTS."""
    ours = [name for name in MODELS if math.isfinite(median_of(groups.get((OURS, name)), "cpu"))]
    rivals = [who for who, _ in groups if who != NUTS and not titles.get(who, who).startswith(MINE)]
    parts = []
    if ours and rivals:
        parts += against_rivals(groups, titles, ours, list(dict.fromkeys(rivals)))
    timed = [name for name in ours if (NUTS, name) in groups]
    if timed:
        parts += against_nuts(groups, timed)
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


def against_nuts(groups, names):
    lines, faster, warm_faster, short_of, errors = [], 0, 0, 0, 0
    for name in names:
        group, mine = groups[NUTS, name], median_of(groups[OURS, name], "cpu")
        fine = [row for row in group if "error" not in row]
        if not fine:
            errors += 1
            lines.append([short(name), f"{mine:.1f}", "failed", *[""] * 7])
            continue
        cpu, warm = median_of(group, "cpu"), median_of(group, "warm_cpu")
        reached = all(row["reached"] for row in fine)
        short_of += not reached
        faster += mine < cpu
        warm_faster += mine < warm
        more = "" if reached else "> "
        lines.append(
            [
                short(name),
                f"{mine:.1f}",
                f"{more}{cpu:.1f}",
                f"{more}{cpu / mine:.2g}",
                f"{more}{warm:.2g}",
                f"{more}{warm / mine:.2g}",
                f"{median_of(group, 'size'):.0f}",
                f"{median_of(group, 'w1_over_floor'):.2f}",
                f"{median_of(group, 'goal'):.2f}",
                f"{median_of(group, 'divergences'):.0f}",
            ]
        )
    text = (
        "NUTS for its time, on the same posteriors: one chain, NumPyro's settings as they come "
        "(diagonal mass matrix), with as many draws as steps of warm-up. Sizes were tried in "
        "turn, each compiled and run by itself, until the draws (at most 2000 of them) scored the "
        f"W1 of our default plus {HALF} of a floor; the time is that of this one size, so NUTS is "
        f"not charged for the smaller ones. Our default takes fewer CPU seconds on {faster} of "
        f"{len(names)} posteriors (goal: half) when NUTS has to be traced and compiled, as it has "
        f"in every new process, and on {warm_faster} when only its compiled run is counted. "
    )
    if short_of:
        text += (
            f"On {short_of} NUTS did not get there with the longest chain; the time of that one "
            "is then a lower bound, and we count as faster only where we are below it. "
        )
    else:
        text += "NUTS got there on all of them. "
    if errors:
        text += f"It failed on {errors}, which count as neither. "
    head = ["posterior", "CPU s, ours", "NUTS", "ratio", "compiled NUTS", "ratio", "draws"]
    return [text.strip(), table([*head, "W1", "to reach", "divergences"], lines)]


def short(name):
    return name.split("-")[-1]
