"""Random streams: named, independent, and made in one module alone."""

import itertools
import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from infer.models import Y, conjugate

from pyro_nfvi import NFVI, _random, load
from pyro_nfvi._random import fold_in, numpy_stream, seeded, stream
from pyro_nfvi._train import noise
from pyro_nfvi.errors import DataWarning

PACKAGE = Path(__file__).resolve().parent.parent / "pyro_nfvi"
LABELS = ["training", "judge", "sample", "resample", "gaussian", "modes", "keep", 0, 1, 2, 3]


def test_no_two_names_of_a_grid_give_one_stream():
    # Fixed numbers: this passes or fails for good. By chance it would fail once in 500 grids.
    names = [*itertools.product(range(100), LABELS), *itertools.product(range(100), LABELS, [0, 1])]
    heads = torch.stack(
        [torch.rand(2, generator=stream(*name), dtype=torch.float64) for name in names]
    )
    assert len(heads.unique(dim=0)) == len(names)
    raw = {fold_in(*name) for name in names}
    assert len(raw) == len(names)
    assert not raw & set(range(10_000))  # nor that of torch.manual_seed(seed)


def test_neighbouring_streams_are_uncorrelated():
    draws = torch.stack(
        [torch.randn(4000, generator=stream(seed, label)) for seed in range(12) for label in LABELS]
    )
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    # Largest of 8,646 correlations of sd 1/sqrt(4000); beyond 6 sd by chance once in 60,000 runs.
    assert correlation.abs().max() < 6 / 4000**0.5


def test_a_name_has_a_label():
    with pytest.raises(TypeError, match="label"):
        fold_in(0)


def test_streams_repeat_and_leave_the_global_state_alone():
    before = torch.get_rng_state()
    one, two = (torch.randn(3, generator=stream(3, "a", 1)) for _ in range(2))
    assert torch.equal(one, two)
    assert numpy_stream(3, "a").integers(99) == numpy_stream(3, "a").integers(99)
    with seeded(3, "a", 1):
        assert torch.equal(torch.randn(3), one)
    assert torch.equal(torch.get_rng_state(), before)


def training_noise(seed, monkeypatch, **options):
    """All base noise that a fit was trained with, and the fit."""
    seen = []
    with monkeypatch.context() as patch:
        draw = noise.Noise._draw

        def kept(self):
            draw(self)
            seen.append(self._eps.flatten())

        patch.setattr(noise.Noise, "_draw", kept)
        fit = NFVI(conjugate, "affine", seed=seed, progress=False, max_steps=100, **options).run(Y)
    return torch.cat(seen), fit


def test_fits_of_different_seeds_share_no_noise(monkeypatch):
    (one, fit), (other, _) = (training_noise(seed, monkeypatch) for seed in (0, 1))
    # Single numbers of single precision coincide by chance, three in a row never.
    rows = [{*map(tuple, part.unfold(0, 3, 1).tolist())} for part in (one, other)]
    assert not rows[0] & rows[1]
    # Nor does a fit's training with the draws that judge it, or with those that it gives.
    base = [
        fit.guide.density().flow.inverse(fit.latent.pack(draws))[0]
        for draws in (fit.latent.constrain(fit.draws.z)[0], fit.sample(2000, seed=0))
    ]
    sorted_noise = one.double().sort().values
    for points in base:
        values = points.detach().flatten().double()
        place = torch.searchsorted(sorted_noise, values).clamp(1, len(sorted_noise) - 1)
        near = torch.minimum(
            (values - sorted_noise[place - 1]).abs(), (values - sorted_noise[place]).abs()
        )
        # Shared noise would come back up to rounding; a few of 2000 come so near by chance.
        assert (near < 1e-6).double().mean() < 0.1


#: Streams of a constant seed, and why: what a model is refused by, and by which way it is
#: evaluated, must not depend on the seed of a fit.
SET_UP = {
    "log joint": "points at which ways to evaluate particles are compared",
    "dependence": "points at which an observed site has to depend on a latent one",
    "assignment": "noise with which ways to draw discrete sites are compared",
    "density": "mini-batches at which the log joint is recorded, and compared where it is compiled",
    "density check": "points at which a density of the user's own is examined",
    "second opinion": "points at which Pyro scores the model too",
    "engine inputs": "inputs of the step that is recorded",
    "engine check": "parameters at which recorded and eager steps are compared",
    "random rounding": "rounding errors by which these may differ",
    "mixture": "places of a mixture's components before anything is fitted",
    "tails": "noise by which the other latents are integrated at all places of a tail alike",
}


def test_every_stream_of_a_fit_is_named_by_its_seed(monkeypatch, tmp_path):
    """Two modes, one of which the guide misses, and more parameters than Newton's method takes."""

    def model(y):
        w = pyro.param("w", torch.zeros(45))
        x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 3.0))
        pyro.factor("modes", torch.logaddexp(-8 * (x - 2).square(), -8 * (x + 2).square()))
        pyro.sample("y", dist.Normal(w + x[..., None], 1.0).to_event(1), obs=y)

    seen, y = set(), torch.zeros(45)
    monkeypatch.setattr(_random, "fold_in", lambda *name: seen.add(name) or fold_in(*name))
    seed, path = 7_654_321, tmp_path / "fit"
    options = {"guide": "affine", "max_steps": 120, "progress": False}
    fit = NFVI(model, seed=seed, **options).run(y)
    fit.save(path)
    with pytest.warns(DataWarning):
        load(path, model=model, args=(y + 0.1,))
    labels = {name[1] for name in seen if name[0] == seed}
    assert labels >= {"training", "judge", "keep", "missed mass", "moments", "parameters"}
    assert labels >= {"missed modes", "improper", "rescoring"}
    others = {name[1] for name in seen if name[0] != seed}
    assert others <= {*SET_UP, "load"}, others


def test_only_one_module_makes_generators():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "_random.py":
            continue
        source = re.sub(r"^\s*(>>>|\.\.\.).*$", "", path.read_text("utf-8"), flags=re.MULTILINE)
        makers = r"manual_seed|RandomState\(|default_rng|SeedSequence|initial_seed"
        found = re.findall(makers, source)
        # Two fixed conventions of the literature: binarised MNIST and scikit-learn's digits.
        allowed = {"_pixels.py": 3, "_datasets.py": 1}.get(path.name, 0)
        assert len(found) <= allowed, (path, found)
