"""Speed of every flow against Zuko's and Pyro's, where they have it, at D = 10, 100 and 1000.

    python benchmarks/speed.py            # writes docs/benchmarks/speed.{md,json}
    python benchmarks/speed.py --smoke    # seconds, writes to out/benchmarks

A pass "forward and backward" maps a batch in the flow's fast direction, with log-determinants, and
takes the gradient in all parameters; a pass "inverse" maps it the other way, without gradient.
Each library runs in a process of its own (Zuko changes torch when it is imported) and they take
turns within a round; a ratio is taken within rounds, of CPU time. All weights are moved away from
their start by the same noise, so that nobody is timed on a map of zeros.
"""

import argparse
import functools
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for benchmarks/

BATCH, HIDDEN, BINS = 64, (128, 128), 8
DIMS = (10, 100, 1000)
#: A flow whose name ends so has nets as the peers have them, without a skip.
EQUAL = "-equal"
#: What is timed: key -> what the page says.
FLOWS = {
    "maf": "affine autoregressive, 3 layers",
    "maf-equal": "affine autoregressive, 3 layers, no skip",
    "nsf-ar": "spline autoregressive, 3 layers",
    "nsf-ar-equal": "spline autoregressive, 3 layers, no skip",
    "realnvp": "affine coupling, 4 layers",
    "realnvp-equal": "affine coupling, 4 layers, no skip",
    "nsf": "spline coupling, 4 layers",
    "nsf-equal": "spline coupling, 4 layers, no skip",
    "naf": "neural autoregressive, 1 layer",
    "naf-equal": "neural autoregressive, 1 layer, no skip",
    "bnaf": "block neural autoregressive, 1 layer",
    "ffjord": "continuous, 1 layer",
    "spline": "elementwise spline",
    "planar": "planar, 16 layers",
    "radial": "radial, 4 layers",
    "sylvester": "Sylvester, 1 layer of rank 8",
    "householder": "Householder, 4 reflections",
}
#: Pairs that would take minutes for one call.
LEFT_OUT = {
    (name, 1000, "inverse") for name in ("naf", "nsf-ar", "maf-equal", "naf-equal", "nsf-ar-equal")
}


def split(key, dim):
    """Name and hidden widths of a flow, and whether it has no skip."""
    name = key.removesuffix(EQUAL)
    equal = name != key
    # A masked net of fewer units than inputs does not let every output see every input before it.
    narrow = equal and name in ("maf", "nsf-ar", "naf") and dim > HIDDEN[0]
    return name, (1024, 1024) if narrow else HIDDEN, equal


def ours(key, dim):
    from pyro_nfvi.flows import Elementwise, Householder, SplineTransformer, Sylvester, make_flow

    key, hidden, equal = split(key, dim)
    nets = {"hidden_dim": hidden, "activation": "relu", "skip_connections": not equal}
    made = {
        "maf": lambda: make_flow("maf*3", dim, **nets).inv,
        "nsf-ar": lambda: make_flow("nsf-ar*3", dim, **nets),
        "realnvp": lambda: make_flow("realnvp*4", dim, **nets),
        "nsf": lambda: make_flow("nsf*4", dim, **nets),
        "naf": lambda: make_flow("naf*1", dim, units=16, **nets),
        "bnaf": lambda: make_flow("bnaf*1", dim, hidden_factor=8),
        "ffjord": lambda: make_flow("ffjord*1", dim),
        "spline": lambda: Elementwise(dim, transformer=SplineTransformer(BINS)),
        "planar": lambda: make_flow("planar*16", dim),
        "radial": lambda: make_flow("radial*4", dim),
        "sylvester": lambda: Sylvester(dim, rank=8),
        "householder": lambda: Householder(dim, num_pairs=2),
    }
    flow = made[key]()
    inverse = None if key in ("planar", "radial", "sylvester", "bnaf") else flow.inverse
    return flow, flow, inverse


def zukos(key, dim):
    import zuko
    from torch import nn

    key, hidden, _ = split(key, dim)
    rqs = zuko.transforms.MonotonicRQSTransform
    shapes = [(BINS,), (BINS,), (BINS - 1,)]

    def couplings():
        mask = torch.arange(dim) < dim // 2
        layers = [
            zuko.flows.GeneralCouplingTransform(
                dim, mask=mask if i % 2 else ~mask, univariate=rqs, shapes=shapes,
                hidden_features=hidden,
            )
            for i in range(4)
        ]  # fmt: skip
        return zuko.lazy.LazyComposedTransform(*layers)

    naf = {"hidden_features": (16,)}
    made = {
        "maf": lambda: zuko.flows.MAF(dim, transforms=3, hidden_features=hidden).transform,
        "nsf-ar": lambda: (
            zuko.flows.NSF(dim, bins=BINS, transforms=3, hidden_features=hidden).transform
        ),
        "realnvp": lambda: zuko.flows.RealNVP(dim, transforms=4, hidden_features=hidden).transform,
        "nsf": couplings,
        "naf": lambda: (
            zuko.flows.NAF(dim, transforms=1, network=naf, hidden_features=hidden).transform
        ),
        "ffjord": lambda: zuko.flows.CNF(dim, exact=dim <= 10).transform,
        "spline": lambda: zuko.flows.ElementWiseTransform(dim, univariate=rqs, shapes=shapes),
    }
    if key not in made:
        return None
    module: nn.Module = made[key]()

    def forward(x):
        return module().call_and_ladj(x)

    return module, forward, lambda y: module().inv.call_and_ladj(y)


def pyros(key, dim):
    import pyro.distributions.transforms as T
    from torch import nn

    key, widths, _ = split(key, dim)
    widths = list(widths)
    turn = T.Permute(torch.arange(dim).flip(0))
    made = {
        "maf": (3, lambda: T.affine_autoregressive(dim, hidden_dims=widths)),
        "nsf-ar": (
            3,
            lambda: T.spline_autoregressive(dim, hidden_dims=widths, count_bins=BINS, bound=5.0),
        ),
        "realnvp": (4, lambda: T.affine_coupling(dim, hidden_dims=widths)),
        "nsf": (
            4, lambda: T.spline_coupling(dim, hidden_dims=widths, count_bins=BINS, bound=5.0)
        ),
        "naf": (1, lambda: T.neural_autoregressive(dim, hidden_dims=widths, width=16)),
        "bnaf": (1, lambda: T.block_autoregressive(dim, hidden_factors=[8])),
        "spline": (1, lambda: T.spline(dim, count_bins=BINS, bound=5.0)),
        "planar": (16, lambda: T.planar(dim)),
        "radial": (4, lambda: T.radial(dim)),
        "sylvester": (1, lambda: T.sylvester(dim, count_transforms=8)),
        "householder": (1, lambda: T.householder(dim, count_transforms=4)),
    }  # fmt: skip
    if key not in made or (key in ("maf", "nsf-ar", "naf") and dim > widths[0]):
        return None  # the helpers of masked nets refuse fewer hidden units than inputs
    count, make = made[key]
    parts = nn.ModuleList(make() for _ in range(count))
    mixes = key in ("maf", "nsf-ar", "realnvp", "nsf")

    def forward(x):
        total = 0.0
        for part in parts:
            part.clear_cache()
            y = part(x)
            ladj = part.log_abs_det_jacobian(x, y)
            total = total + (ladj.sum(-1) if ladj.dim() > 1 else ladj)
            x = turn(y) if mixes else y
        return x, total

    def inverse(y):
        total = 0.0
        for part in reversed(parts):
            part.clear_cache()
            y = turn.inv(y) if mixes else y
            x = part.inv(y)
            ladj = part.log_abs_det_jacobian(x, y)
            total = total - (ladj.sum(-1) if ladj.dim() > 1 else ladj)
            y = x
        return y, total

    # The others have no inverse: only a memory of the last call.
    invertible = key in ("maf", "nsf-ar", "realnvp", "nsf", "spline", "householder")
    return parts, forward, inverse if invertible else None


def inputs_seen(dim):
    """Count the inputs on which an output of one of Zuko's masked layers depends, at most."""
    import zuko

    torch.manual_seed(0)
    layer = zuko.flows.MAF(dim, transforms=1, hidden_features=HIDDEN).transform
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(dim, requires_grad=True)
    y = layer()(x)
    depends = [torch.autograd.grad(y[i], x, retain_graph=True)[0] != 0 for i in range(dim)]
    return int(torch.stack(depends).sum(1).max())


PEERS = {"pyro_nfvi": ours, "Zuko": zukos, "Pyro": pyros}


@functools.lru_cache(maxsize=2)
def passes(peer, key, dim):
    """Both passes of a flow, as functions of nothing; None for what the peer does not have."""
    torch.manual_seed(0)
    built = PEERS[peer](key, dim)
    if built is None:
        return {}
    module, forward, inverse = built
    parameters = list(module.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.02 * torch.randn_like(parameter))
    x = torch.randn(BATCH, dim)

    def train():
        y, ladj = forward(x)
        loss = (y.square().sum() / 2 - ladj.sum()) / BATCH
        torch.autograd.grad(loss, parameters, allow_unused=True)

    def invert():
        with torch.no_grad():
            inverse(x)

    return {"forward and backward": train} | ({"inverse": invert} if inverse else {})


def serve(peer):
    """Answer lines ``[flow, D, pass, seconds]`` with CPU seconds per call, or null."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        key, dim, what, seconds = json.loads(line)
        if what == "inputs seen":
            print(json.dumps(inputs_seen(dim)), flush=True)
            continue
        run = passes(peer, key, dim).get(what)
        answer = None
        if run is not None:
            run()
            count, start = 0, time.process_time()
            while (spent := time.process_time() - start) < seconds or count == 0:
                run()
                count += 1
            answer = spent / count
        print(json.dumps(answer), flush=True)


def worker(peer):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", __file__, "--serve", peer],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def ask(process, *question):
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"A worker ended at {question}.")
    return json.loads(answer)


def measure(workers, key, dim, what, rounds, seconds):
    if (key, dim) in LEFT_OUT or (key, dim, what) in LEFT_OUT:
        return None
    times = {peer: [] for peer in workers}
    for _ in range(rounds):
        for peer, process in workers.items():
            times[peer].append(ask(process, key, dim, what, seconds))
    if times["pyro_nfvi"][0] is None:
        return None
    row = {"flow": key, "dim": dim, "pass": what}
    row["ms"] = {peer: 1e3 * statistics.median(t) for peer, t in times.items() if t[0]}
    row["ratios"] = {
        peer: sorted(theirs / mine for theirs, mine in zip(t, times["pyro_nfvi"]))
        for peer, t in times.items()
        if t[0] is not None and peer != "pyro_nfvi"
    }
    return row if row["ratios"] or what == "forward and backward" else None


#: Why a flow of ours may be behind, told where it is.
REASONS = {
    "maf": "a linear skip of D x D weights per output beside the hidden layers",
    "nsf-ar": "the skip, for 25 outputs per coordinate: it grows with D squared, the peers' last "
    "layer with D; it is kept for the likelihood that it buys",
    "realnvp": "the skip from every coordinate kept to every one moved",
    "nsf": "the skip, a shift and a scale behind the splines, and a Newton step in their inverse",
    "naf": "the skip, and 50 numbers per coordinate where Zuko has 16 signals into one shared net",
    "maf-equal": "pages of fresh memory that the system hands out; the computation takes as long",
    "nsf-ar-equal": "a shift and a scale behind the splines",
    "realnvp-equal": "by the spread of the timing",
    "nsf-equal": "a shift and a scale behind the splines, and a Newton step in their inverse",
    "naf-equal": "50 numbers per coordinate, where Zuko has 16 signals into one shared net; beside "
    "Pyro fresh memory, as above",
    "bnaf": "the skip and its bound, which keep the codomain all reals",
    "ffjord": "16 Runge-Kutta steps, whatever the field; Zuko's adaptive ones (at tolerances of "
    "1e-6 and 1e-5) are few for a field as smooth as an untrained one",
    "spline": "a shift and a scale behind the spline, and a Newton step in its inverse, for ten "
    "times the digits in float32",
    "planar": "",
    "radial": "log-determinants that stay accurate as a layer contracts to a point",
    "sylvester": "the triangular maps are rebuilt in every call",
    "householder": "",
}


def reasons(found, seen):
    """List the rows that are behind, with what they pay for."""
    lines = []
    for key, name in FLOWS.items():
        behind = [
            f"D = {row['dim']}, {row['pass']} ({', '.join(peers)})"
            for row in found
            if row["flow"] == key
            and (peers := [p for p, r in row["ratios"].items() if statistics.median(r) < 0.97])
        ]
        if behind:
            why = REASONS[key] or "by the spread of the timing"
            lines.append(f"- **{name}**: {'; '.join(behind)}. Reason: {why}.")
    text = "\n".join(lines) if lines else "None."
    return (
        "## Where ours is behind\n\nRows with a median below 0.97, and what they pay for:\n\n"
        + text
        + "\n\nThe skip is kept for its likelihood ([density estimation](density.md), where the "
        "peers have none); rows\nwithout it compare equal nets. "
        + (
            f"At D = 1000 an output of Zuko's masked layers of {HIDDEN[0]} units sees\n{seen} of "
            "the inputs before it at most, ours all. "
            if seen
            else ""
        )
        + "Neural\nautoregressive: 16 monotone units here and at Pyro's, a "
        "monotone net with 16 hidden units and 16 signals\nat Zuko's. Pyro's spline "
        "autoregressive layer is rational-linear."
    )


def cell(row, peer):
    ratios = row["ratios"].get(peer)
    if ratios is None:
        return "–"
    middle = statistics.median(ratios)
    shown = f"{middle:.2f}" if middle < 10 else f"{middle:.0f}"
    return f"{'**' if middle >= 1 else ''}{shown}{'**' if middle >= 1 else ''} " + (
        f"({ratios[0]:.2g} to {ratios[-1]:.2g})"
    )


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one short round at D = 10")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dims", nargs="+", type=int, default=list(DIMS))
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument("--render", action="store_true", help="write the page from speed.json")
    parser.add_argument("--serve", choices=PEERS, help="used by the script itself")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    from benchmarks._report import DOCS, ROOT, environment, write

    if options.render:
        results = json.loads((DOCS / "speed.json").read_text())
        print(write("speed", "Speed against Zuko and Pyro", results, page(results)))
        return

    torch.set_num_threads(1)
    rounds, seconds, dims = (
        (1, 0.01, (10,)) if options.smoke else (options.rounds, 0.1, options.dims)
    )
    peers = [peer for peer in PEERS if peer != "Zuko" or importlib.util.find_spec("zuko")]
    workers = {peer: worker(peer) for peer in peers}
    found = []
    for key in options.flows:
        for dim in dims:
            for what in ("forward and backward", "inverse"):
                row = measure(workers, key, dim, what, rounds, seconds)
                if row is not None:
                    found.append(row)
                    shown = {p: f"{ms:.2f}" for p, ms in row["ms"].items()}
                    print(f"{key:12s} D={dim:<5d} {what:20s} {shown}", flush=True)
    seen = None
    if "Zuko" in workers and 1000 in dims:
        seen = ask(workers["Zuko"], "maf", 1000, "inputs seen", 0.0)
    for process in workers.values():
        process.stdin.close()
        process.wait()
    folder = ROOT / "out" / "benchmarks" if options.smoke else None
    results = {"environment": environment(), "rounds": rounds, "found": found, "inputs seen": seen}
    print(write("speed", "Speed against Zuko and Pyro", results, page(results), folder))


def page(results):
    from benchmarks._report import in_words, table

    rows = [
        [
            FLOWS[row["flow"]], row["dim"], row["pass"], f"{row['ms']['pyro_nfvi']:.2f}",
            *(cell(row, peer) for peer in PEERS if peer != "pyro_nfvi"),
        ]
        for row in results["found"]
    ]  # fmt: skip
    header = ["flow", "D", "pass", "ours, ms", "Zuko's time / ours", "Pyro's time / ours"]
    left_out = "D = 1000 was left out of this run (`--dims`)."
    if any(row["dim"] == 1000 for row in results["found"]):
        left_out = (
            "Left out, as one call takes long: inverses of the spline and neural autoregressive\n"
            "flows at D = 1000, and of wide nets there."
        )
    return f"""
CPU time of a batch of {BATCH} in eager PyTorch, float32; ratios above 1 (bold) mean that ours is
faster. Median (min to max) of {results["rounds"]} rounds, in which the libraries take turns. Nets
have {HIDDEN[0]}-{HIDDEN[1]} hidden ReLU units, splines {BINS} bins. "Forward and backward" is the
fast direction with log-determinants and the gradient of all parameters, "inverse" the other
direction with log-determinants, without gradient. "No skip" is `skip_connections=False`: nets as
the peers have them (autoregressive ones at D = 1000: 1024-1024 units, with fewer of which outputs
would not see all inputs before them). A dash: the peer does not have it (Pyro's planar,
radial, Sylvester and neural flows have no inverse, and its masked nets refuse fewer hidden units
than inputs).

{table(header, rows)}

{reasons(results["found"], results.get("inputs seen"))}

{left_out}

{in_words(results["environment"])} `python benchmarks/speed.py` writes this page.
"""


if __name__ == "__main__":
    main()
