"""Files that are damaged, foreign or hostile: each a FileError, in bounded memory and time."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import textwrap
import warnings
import zipfile

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_nfvi as nfvi
from pyro_nfvi import AutoFlow
from pyro_nfvi.distributions import GaussianMixture
from pyro_nfvi.errors import FileError

Y = torch.tensor([1.0, 2.0, 4.0])
HUGE = 10**9


def model(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    tau = pyro.sample("tau", dist.Uniform(0.1, 9.0))
    pyro.deterministic("twice", 2 * mu)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu.sum(-1, keepdim=True), tau[..., None]), obs=y)


def guide(model):
    return AutoFlow(model, "planar*2|iaf", base=lambda dim: GaussianMixture(dim, 3))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("fits") / "fit.nfvi"
    nfvi.NFVI(model, guide, max_steps=30, seed=0, progress=False).run(Y).save(path)
    return path


def at(tree, *path):
    for key in path:
        tree = tree[key]
    return tree


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(header, tensors):
        where = tensors if path and path[0] == "tensors" else header["spec"]
        at(where, *(path[1:] if path and path[0] == "tensors" else path))[last] = value

    return change


def drop(*path):
    def change(header, tensors):
        where = tensors if path[0] == "tensors" else header["spec"]
        del at(where, *path[1 if path[0] == "tensors" else 0 : -1])[path[-1]]

    return change


def header(**values):
    return lambda header, tensors: header.update(values)


def cast(name, dtype):
    def change(header, tensors):
        tensors[name] = {key: value.to(dtype) for key, value in tensors[name].items()}

    return change


def swapped(part, one, other):
    def change(header, tensors):
        held = tensors[part]
        held[one], held[other] = held[other], held[one]

    return change


def nested(depth, inner):
    for _ in range(depth):
        inner = {"kind": "independent", "base": inner, "ndims": 0}
    return inner


def in_guide(change):
    def changed(header, tensors):
        name = next(n for n, v in tensors["guide"].items() if v.is_floating_point() and v.dim())
        tensors["guide"][name] = change(tensors["guide"][name])

    return changed


def reversed_rows(header, tensors):
    tensors["draws"]["z"] = tensors["draws"]["z"].flip(0)


def nan_in_draws(header, tensors):
    tensors["draws"]["z"][7, 0] = torch.nan


def sparse(header, tensors):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors["params"] = {"a": torch.sparse_coo_tensor(size=(HUGE, HUGE))}


def laughs(header, tensors):
    lines = [0.0]
    for _ in range(40):
        lines = [lines] * 10
    tensors["params"] = {"a": lines}


SITE, BOUNDED = ("latent", "sites", 0), ("latent", "sites", 1)
TENSORS = ("draws", "guide", "losses", "init_loc")


def interval(lower):
    return {"kind": "interval", "lower_bound": lower, "upper_bound": 1}


CHANGES = {
    "no kind": lambda header, tensors: header.pop("kind"),
    "kind a list": header(kind=[1] * 1000),
    "layout a word": header(layout="one"),
    "layout of the future": header(layout=99, versions=None),
    "versions a list": header(layout=99, versions=[1]),
    "spec a list": header(spec=[]),
    "spec a number": header(spec=3),
    **{f"no {key}": drop(key) for key in ("latent", "guide", "training", "exact")},
    **{f"no tensors {key}": drop("tensors", key) for key in TENSORS},
    "sites a number": put("latent", "sites", 5),
    "no sites": put("latent", "sites", []),
    "dtype another": put("latent", "dtype", "float64"),
    "shape negative": put(*SITE, "unconstrained_shape", [-2]),
    "shape negative twice": put(*SITE, "unconstrained_shape", [-1, -2]),
    "shape giant": put(*SITE, "unconstrained_shape", [HUGE]),
    "shape beyond 64 bits": put(*SITE, "unconstrained_shape", [10**30]),
    "shape a fraction": put(*SITE, "unconstrained_shape", [2.0]),
    "shape a word": put(*SITE, "unconstrained_shape", "22"),
    "constrained shape giant": put(*SITE, "shape", [HUGE]),
    "constrained shape other": put(*SITE, "shape", [1, 2]),
    "event dim giant": put(*SITE, "event_dim", HUGE),
    "event dim negative": put(*SITE, "event_dim", -1),
    "name a number": put(*SITE, "name", 3),
    "name of another": put(*SITE, "name", "tau"),
    "no support": drop(*SITE, "support"),
    "support unheard of": put(*SITE, "support", {"kind": "exec"}),
    "support a word": put(*SITE, "support", "real"),
    "support deep": put(*SITE, "support", nested(900, {"kind": "real"})),
    "support of many dims": put(
        *SITE, "support", {"kind": "independent", "base": {"kind": "real"}, "ndims": HUGE}
    ),
    "bound a word": put(*BOUNDED, "support", interval("a")),
    "bound a table": put(*BOUNDED, "support", interval([[1, 2]] * 900)),
    "plates odd": put(*SITE, "plates", [["rows", -1]]),
    "plate giant": put(*SITE, "plates", [["rows", -HUGE, HUGE]]),
    "flow unheard of": put("guide", "flow", "exec"),
    "flow a number": put("guide", "flow", 3),
    "flow of many layers": put("guide", "flow", f"iaf*{HUGE}"),
    "flow of many planar layers": put("guide", "flow", f"planar*{HUGE}"),
    "flow of many permutations": put("guide", "flow", f"nsf*{HUGE}"),
    "flow of too many digits": put("guide", "flow", "iaf*" + "9" * 30),
    "flow of far too many digits": put("guide", "flow", "iaf*" + "9" * 5000),
    "flow of many terms": put("guide", "flow", "|".join(["iaf*3"] * 300_000)),
    "flow wide": put("guide", "options", {"hidden_dim": HUGE}),
    "flow rather wide": put("guide", "options", {"hidden_dim": 60_000}),
    "flow of no width": put("guide", "options", {"hidden_dim": -5}),
    "option unheard of": put("guide", "options", {"exec": 1}),
    "option twice": put("guide", "options", {"outer": "full"}),
    "options a list": put("guide", "options", [1]),
    "outer unheard of": put("guide", "outer", "exec"),
    "flows rather many": put("guide", "flows", ["iaf"] * 20_000),
    "flows many": put("guide", "flows", ["iaf"] * 200_000),
    "flows none": put("guide", "flows", []),
    "flows numbers": put("guide", "flows", [1, 2]),
    "base of many components": put("guide", "base", "options", {"num_components": HUGE}),
    "base of negative components": put("guide", "base", "options", {"num_components": -3}),
    "base of a giant size": put("guide", "base", "dim", HUGE),
    "base of another size": put("guide", "base", "dim", 7),
    "base abstract": put("guide", "base", "class", "Base"),
    "base unheard of": put("guide", "base", "class", "os"),
    "why_stopped a number": put("training", "why_stopped", 3),
    "why_stopped a list": put("training", "why_stopped", [1, 2, 3, 4, 5]),
    "timing words": put("training", "timing", {"training": "long"}),
    "timing negative": put("training", "timing", {"total": -1.0}),
    "timing infinite": put("training", "timing", {"total": float("inf")}),
    "timing unheard of": put("training", "timing", {"nights": 1.0}),
    "timing of 0.1 words": put("training", "timing", {"fit": "long"}),
    "timing a list": put("training", "timing", [1.0]),
    "notes numbers": put("training", "notes", [1]),
    "engine a list": put("training", "engine", []),
    "training a list": put("training", []),
    "training more": put("training", "more", 1),
    "findings unheard of": put("training", "findings", [{"kind": "exec"}]),
    "findings of odd values": put("training", "findings", [{"kind": "Improper", "names": 3}]),
    "tie short": put("tie", "inverse", [0.0]),
    "tie words": put("tie", "inverse", ["a"] * 256),
    "exact a word": put("exact", "yes"),
    "guide NaN": in_guide(lambda x: x.clone().fill_(torch.nan)),
    "guide infinite": in_guide(lambda x: x.clone().fill_(torch.inf)),
    "guide moved a little": in_guide(lambda x: x + 0.01),
    "guide of another shape": in_guide(lambda x: torch.cat([x, x])),
    "guide without one": in_guide(lambda x: None),
    "guide half": cast("guide", torch.float16),
    "guide double": cast("guide", torch.float64),
    "guide whole numbers": cast("guide", torch.int64),
    "draws half": cast("draws", torch.float16),
    "draws double": cast("draws", torch.float64),
    "log p for log q": swapped("draws", "log_p", "log_q"),
    "draws in another order": reversed_rows,
    "NaN in draws": nan_in_draws,
    "z for log p": swapped("draws", "z", "log_p"),
    "more in draws": put("tensors", "draws", "more", torch.zeros(2)),
    "log q short": put("tensors", "draws", "log_q", torch.zeros(3)),
    "log p NaN": put("tensors", "draws", "log_p", torch.full((2000,), torch.nan)),
    "log p zero": put("tensors", "draws", "log_p", torch.zeros(2000)),
    "draws none": put("tensors", "draws", {}),
    "losses words": put("tensors", "losses", "none"),
    "losses a table": put("tensors", "losses", torch.zeros(2, 2)),
    "params a list": put("tensors", "params", [torch.zeros(1)]),
    "params NaN": put("tensors", "params", {"a": torch.tensor(torch.nan)}),
    "deterministic short": put("tensors", "deterministic", {"twice": torch.zeros(3, 2)}),
    "deterministic odd": put("tensors", "deterministic", {3: 4}),
    "first values NaN": put("tensors", "init_loc", torch.full((3,), torch.nan)),
    "first values fewer": put("tensors", "init_loc", torch.zeros(2)),
    "first values a table": put("tensors", "init_loc", torch.zeros(3, 1)),
    "a number repeated": put("tensors", "params", {"a": torch.zeros(1).expand(10**12)}),
    "a number repeated in draws": put(
        "tensors", "deterministic", {"twice": torch.zeros(1, 1).expand(2000, HUGE)}
    ),
    "tensors sparse": sparse,
    "tensors without numbers": put("tensors", "params", {"a": torch.empty(10**12, device="meta")}),
    "containers in themselves": laughs,
    "tensors a list": None,
    "header deep": None,
    "header no JSON": None,
}  # fmt: skip


def rewrite(saved, path, name):
    held = torch.load(saved, weights_only=True)
    told = json.loads(held["pyro_nfvi"])
    change = CHANGES[name]
    if name == "tensors a list":
        held["tensors"] = [1, 2]
    elif name == "header deep":
        held["pyro_nfvi"] = "[" * 100_000
    elif name == "header no JSON":
        held["pyro_nfvi"] = "{"
    else:
        change(told, held["tensors"])
        held["pyro_nfvi"] = json.dumps(told)
    torch.save(held, path)


def squeezed(path, out, text=None):
    """The same archive, compressed; or one whose description is a flood of zeros."""
    with (
        zipfile.ZipFile(path) as given,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made,
    ):
        for part in given.namelist():
            if text is not None and part.endswith("data.pkl"):
                with made.open(part, "w") as file:
                    for _ in range(text >> 20):
                        file.write(bytes(1 << 20))
            else:
                made.writestr(part, given.read(part))


ARCHIVES = (
    "compressed",
    "bomb",
    "empty",
    "cut",
    "cut twice",
    "no description",
    "two of a name",
    "text",
    "pipe",
)


def archive(saved, path, name):
    data = saved.read_bytes()
    if name == "compressed":
        squeezed(saved, path)
    elif name == "bomb":
        squeezed(saved, path, 1 << 29)
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif name == "cut twice":
        path.write_bytes(data[100 : len(data) - 100])
    elif name == "no description":
        with zipfile.ZipFile(path, "w") as made:
            made.writestr("archive/version", "3")
    elif name == "two of a name":
        path.write_bytes(data)
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as made:
            made.writestr(made.namelist()[0], "again")
    elif name == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("no archive")


#: One of each kind; the others are slow.
FAST = {
    "kind a list", "layout of the future", "no guide", "no tensors draws", "shape giant",
    "shape negative", "name of another", "support unheard of", "support deep", "bound a word",
    "plate giant", "flow of many layers", "flow wide", "flows rather many",
    "base of many components", "why_stopped a list", "findings of odd values", "tie words",
    "guide NaN", "guide moved a little", "guide of another shape", "guide half", "log p for log q",
    "NaN in draws", "log p zero", "params a list", "deterministic odd", "first values NaN",
    "a number repeated", "tensors sparse", "containers in themselves", "header deep", "compressed",
    "bomb", "cut", "pipe", "two of a name",
}  # fmt: skip
ALL = (*CHANGES, *ARCHIVES)
assert set(ALL) >= FAST
each = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in ALL]
)


@pytest.fixture(scope="module")
def outcomes(saved, tmp_path_factory):
    """What the process below says of the fast ones."""
    return _outcomes(saved, tmp_path_factory, [name for name in ALL if name in FAST])


@pytest.fixture(scope="module")
def slow_outcomes(saved, tmp_path_factory):
    return _outcomes(saved, tmp_path_factory, [name for name in ALL if name not in FAST])


def _outcomes(saved, tmp_path_factory, names):
    """What a process of bounded memory says of hostile files, each within some seconds."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = {}
    for number, name in enumerate(names):
        path = folder / str(number)
        (rewrite if name in CHANGES else archive)(saved, path, name)
        paths[name] = str(path)
    paths["whole"] = str(saved)
    code = """
        import json, resource, sys, time, warnings
        import torch, pyro_nfvi as nfvi
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        nfvi.load(sys.argv[1])
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (700 << 20),) * 2)
        for name, path in json.loads(sys.stdin.read()).items():
            begin, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                nfvi.load(path).report
                found, words = "loaded", ""
            except Exception as error:
                found, words = type(error).__name__, str(error)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
            print(json.dumps([name, found, words, time.process_time() - begin, grown]), flush=True)
        """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(saved)],
        input=json.dumps(paths), capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


def test_the_file_itself_loads(outcomes):
    assert outcomes["whole"][:2] == ["loaded", ""]


@each
def test_a_hostile_file_is_refused_in_bounded_memory_and_time(request, name):
    found, words, seconds, grown = request.getfixturevalue(
        "outcomes" if name in FAST else "slow_outcomes"
    )[name]
    assert found == "FileError", (found, words[:300])
    assert len(words) < 800
    assert words.rstrip().endswith(".")
    assert seconds < 5
    assert grown < 300 << 10  # KiB


def test_a_loaded_fit_is_the_one_that_was_saved(saved):
    again = nfvi.load(saved)
    again.save(saved.parent / "again.nfvi")
    assert nfvi.load(saved.parent / "again.nfvi").elbo == again.elbo


def test_exchanged_parameters_of_one_shape_are_refused_or_of_no_consequence(saved, tmp_path):
    """Every pair of a guide's parameters that have the same shape and differ."""
    held = torch.load(saved, weights_only=True)
    guide, whole, refused = held["tensors"]["guide"], nfvi.load(saved), 0
    z = whole.draws.z[:50]
    expected = whole.guide.density().log_prob(z)
    for one, other in itertools.combinations(guide, 2):
        if guide[one].shape != guide[other].shape or torch.equal(guide[one], guide[other]):
            continue
        guide[one], guide[other] = guide[other], guide[one]
        torch.save(held, tmp_path / "fit.nfvi")
        guide[one], guide[other] = guide[other], guide[one]
        try:
            again = nfvi.load(tmp_path / "fit.nfvi")
        except FileError:
            refused += 1
        else:
            torch.testing.assert_close(again.guide.density().log_prob(z), expected)
    assert refused


def test_a_device_is_no_file():
    with pytest.raises(FileError, match="no plain file"):
        nfvi.load("/dev/zero")


# -------------------------------------------------------------------------------- checkpoints


def first_values(change):
    def changed(header, tensors):
        values = tensors["snapshots"]["now"]["values"]
        values[0] = change(values[0])

    return changed


CHECKPOINTS = {
    "values of another shape": first_values(lambda x: x.sum()),
    "values of another type": first_values(lambda x: x.double()),
    "values NaN": first_values(lambda x: torch.full_like(x, torch.nan)),
    "no snapshots": lambda header, tensors: tensors.pop("snapshots"),
    "a state of its own": put("state", "step", 3),
    "a state of words": put("state", "rate", "fast"),
    "no state": drop("state"),
    "identity a list": put("identity", []),
    "decay short": put("state", "decay", [1]),
    "losses words": put("tensors", "losses", "none"),
    "random state short": put("tensors", "rng", torch.zeros(3, dtype=torch.uint8)),
    "counts words": put("counts", "since_kept", "many"),
    "optimizer of another shape": lambda header, tensors: tensors["snapshots"]["now"]["optimizer"][
        "state"
    ][0].update(exp_avg=torch.zeros(77)),
    "optimizer NaN": lambda header, tensors: tensors["snapshots"]["now"]["optimizer"]["state"][0][
        "exp_avg"
    ].fill_(torch.nan),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "state"
    resumed(path, 20).run(Y)
    return path


def resumed(path, steps):
    options = {"engine": "eager", "precondition": False, "checkpoint_every": 10, "resume": True}
    return nfvi.NFVI(
        model, "planar*2", max_steps=steps, seed=0, progress=False, checkpoint=path, **options
    )


#: One of each kind; the others are slow.
FAST_CHECKPOINTS = {"values of another shape", "a state of words", "optimizer NaN"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST_CHECKPOINTS else pytest.mark.slow)
        for name in CHECKPOINTS
    ],
)
def test_a_hostile_checkpoint_is_refused(checkpoint, tmp_path, name):
    held = torch.load(checkpoint, weights_only=True)
    told = json.loads(held["pyro_nfvi"])
    CHECKPOINTS[name](told, held["tensors"])
    held["pyro_nfvi"] = json.dumps(told)
    torch.save(held, tmp_path / "state")
    with pytest.raises(FileError, match=r"Remove the file, or pass resume=False\."):
        resumed(tmp_path / "state", 30).run(Y)


def test_the_checkpoint_itself_goes_on(checkpoint):
    assert len(resumed(checkpoint, 30).run(Y).losses) == 20  # its decay had come to the end
