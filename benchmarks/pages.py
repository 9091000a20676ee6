"""The numbers of README.md and docs/trust.md, from what the other benchmarks have measured.

    python benchmarks/pages.py           # rewrites what stands between the marks of both pages
    python benchmarks/pages.py --smoke   # prints only

Measures nothing. A test compares the pages with what this script would write.
"""

import argparse
import json
import statistics
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

from benchmarks import _accuracy_page as judged
from benchmarks import accuracy, calibration, engine, time_to_posterior
from benchmarks._report import DOCS, ROOT, put, table
from benchmarks.vae import digits_2d

#: Guides in the table, ours first.
SHOWN = ("auto", "iaf_pyro", "planar_pyro", "mvn", "diagonal", "iaf_numpyro", "bnaf_numpyro")


def kept(name):
    return json.loads((DOCS / f"{name}.json").read_text())


def accuracy_in_short():
    lines, rows = [], kept("accuracy")["rows"]
    for who in SHOWN:
        mine = [row for key, row in rows.items() if key.split("|")[1] == who]
        fine = [row for row in mine if "error" not in row]
        if not fine:
            continue
        title = "`NFVI(model).run(data)`" if who == "auto" else accuracy.TITLES[who]
        distance = statistics.median(row["w1_over_floor"] for row in fine)
        right = f"{sum(map(judged.right, mine))} of {len(mine)}"
        lines.append([title, right, f"{distance:.1f}"])
    return table(["sixteen posteriors", "fits that are right", "distance, median"], lines)


def times_in_short():
    """Count where a default fit, and exact chains through it, beat NUTS, which took turns."""
    rows = kept("time_to_posterior")["rows"]

    def against(ours, field):
        pairs = time_to_posterior.pairs_of(rows, ours, "nuts_numpyro", field)
        less = sum(a < b for a, b in pairs)
        return less, len(pairs), statistics.median(b / a for a, b in pairs)

    cold, count, ratio = against("nfvi_cold", "cpu")
    warm, _, warm_ratio = against("nfvi_warm", "warm_cpu")
    chains, _, chains_ratio = against("chains_warm", "cpu")
    return (
        "The default fit takes less processor time than NumPyro's NUTS in turn with it (four "
        f"chains of 1,000 draws after as many) on {cold} of {count} posteriors, compiling counted "
        f"on both sides: NUTS takes {ratio:.1f} times as long in the median. Compiled before on "
        f"both sides, it is {warm} of {count}, and {warm_ratio:.1f} times as long. A fit that was "
        "compiled before, with 500 draws of 64 exact chains, takes less than NUTS with its "
        f"compiling on {chains} of {count}, and NUTS {chains_ratio:.1f} times as long "
        "([time to a posterior](docs/benchmarks/time_to_posterior.md))."
    )


def verdicts():
    auto = [row for key, row in kept("accuracy")["rows"].items() if key.split("|")[1] == "auto"]
    good = [row for row in auto if row.get("verdict") == "good"]
    return len(good), sum(calibration_outcome(row) == "wrong" for row in good)


def calibration_outcome(row):
    pair = {"mean_error": row["max_mean_error"], "sd_error": row["max_sd_error"]}
    return calibration.outcome(pair)


def speed():
    """How often our step fits into Pyro's and NumPyro's, by row of the engine's table."""
    return {
        tuple(result["row"]): tuple(
            statistics.median(engine.ratios(result, rival)) for rival in ("pyro", "numpyro")
        )
        for result in kept("engine")["steps"]
    }


def measured():
    good, wrong = verdicts()
    rows = speed()
    small = {flow: rows["schools", flow, 1] for flow in ("iaf", "planar")}
    iaf, planar = ((f"{pyro:.0f}", f"{numpyro:.1f}") for pyro, numpyro in small.values())
    equal = [numpyro for (_, flow, _), (_, numpyro) in rows.items() if flow in small]
    larger = [rows["wide", "iaf with skip", particles][1] for particles in (1, 32)]
    words = [
        f"A fit is right when every mean is within {judged.MEAN} sds and every sd within "
        f"{100 * judged.SD:.0f} % of long reference runs; the distance is the sliced Wasserstein "
        "one, over that of as many exact draws. The others had "
        f"{accuracy.STEPS:,} steps of {accuracy.PARTICLES} particles "
        f"([accuracy](docs/benchmarks/accuracy.md)). Of the {good} "
        f"default fits that called themselves good, {wrong or 'none'} "
        f"{'were' if wrong > 1 else 'was'} wrong ([more fits](docs/benchmarks/calibration.md)).",
        times_in_short(),
        f"A training step on eight schools, with one particle: IAF {iaf[0]} times faster "
        f"than Pyro's `SVI.step` and {iaf[1]} times faster than NumPyro's compiled loop; "
        f"sixteen planar layers {planar[0]} and {planar[1]} times. With nets of equal size NumPyro "
        f"takes {min(equal):.1f} to {max(equal):.0f} times as long in all rows, up to 500 latents. "
        "There our default nets, half as large again, take as long as its own "
        f"({min(larger):.2f} and {max(larger):.2f}; [all rows](docs/benchmarks/engine.md)).",
    ]
    return "\n\n".join([accuracy_in_short(), *map(wrapped, words)])


def wrapped(text):
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def calibrated():
    rows = [
        row
        for key, row in kept("calibration")["rows"].items()
        if "error" not in row and key.split("|")[0] in calibration.MODELS
    ]
    return wrapped(
        f"What its words are worth was measured on {len(rows)} fits of sixteen posteriors with "
        "reference draws, most of them poor on purpose ([calibration](benchmarks/calibration.md)). "
        f"{calibration.in_numbers(rows)}"
    )


def digits():
    found = kept("vae_digits_2d")["found"]
    flow = digits_2d.FLOWS[1]
    words = [
        f"{mean:.2f} ± {error:.2f} nats of {name}"
        for name, (mean, error, _) in (
            ("-ELBO", digits_2d.gain(found, flow, "negative_elbo")),
            ("NLL", digits_2d.gain(found, flow, "nll")),
        )
    ]
    plain = digits_2d.mean_of(found, None, "negative_elbo")
    return wrapped(
        f"With two latents `{flow}` saves {' and '.join(words)} per test image, paired, of "
        f"{plain:.2f} nats of -ELBO without a flow "
        "([three seeds, and a posterior](docs/benchmarks/vae_digits_2d.md))."
    )


#: Page, mark in it, and what stands there.
MARKS = (
    ("README.md", "measured", measured),
    ("README.md", "digits", digits),
    ("docs/trust.md", "calibrated", calibrated),
)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="print only")
    given = parser.parse_args()
    for name, mark, text in MARKS:
        if given.smoke:
            print(text())
            continue
        path = ROOT / name
        path.write_text(put(path.read_text("utf-8"), mark, text()), "utf-8")
        print(path)


if __name__ == "__main__":
    main()
