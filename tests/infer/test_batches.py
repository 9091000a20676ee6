"""Fits of loaders: mini-batches as numbered rows, whatever brings them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_nfvi import NFVI, AutoPlateFlow, load
from pyro_nfvi._pyro_model.stored_rows import StoredRows
from pyro_nfvi.errors import DataError, FileError, ModelError, OptionError
from pyro_nfvi.infer._plate_fit import PlateFit

ROWS, BATCH = 50, 16  # the last batch of a pass is a ragged one
Y = 1.5 + torch.randn(ROWS, generator=torch.Generator().manual_seed(0))
OPTIONS = {"max_steps": 30, "seed": 0, "progress": False}


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", ROWS, subsample_size=len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 0.8))
        pyro.sample("y", dist.Normal(theta, 0.5), obs=y)


def numbered(y, index):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", ROWS, subsample=index):
        theta = pyro.sample("theta", dist.Normal(mu, 0.8))
        pyro.sample("y", dist.Normal(theta, 0.5), obs=y)


def inner(y):
    """The same with the data indexed by the model."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("groups", len(y), subsample_size=BATCH) as index:
        theta = pyro.sample("theta", dist.Normal(mu, 0.8))
        pyro.sample("y", dist.Normal(theta, 0.5), obs=y[index])


@pytest.mark.slow
def test_a_loader_of_any_kind_gives_the_fit_of_the_model_that_has_the_data():
    """Data set by number, list, factory, shuffled batches with numbers: number for number.

    The model that indexes its data starts elsewhere by a little: its first run has other rows.
    """
    expected = NFVI(inner, **OPTIONS, engine="eager").run(Y)
    data = DataLoader(TensorDataset(Y), batch_size=BATCH, shuffle=True)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    ways = {
        "data set": (model, data),
        "arrays": (model, [part.numpy() for part in Y.split(BATCH)]),
        "factory": (model, lambda: ({"y": part} for part in Y.split(BATCH))),
        "numbered": (numbered, [(Y[part], part) for part in order.split(BATCH)]),
    }
    first = None
    for name, (own, loader) in ways.items():
        fit = NFVI(own, **OPTIONS).run(loader, num_data=ROWS)
        assert isinstance(fit, PlateFit), name
        first = fit if first is None else first
        assert torch.allclose(fit.losses, first.losses, rtol=1e-5), name
        assert torch.allclose(fit.losses, expected.losses, rtol=0.01), name
        assert math.isclose(fit.elbo, expected.elbo, rel_tol=5e-3), name
        assert fit.log_joint.model.changing is False
        assert "loader" not in fit.engine_reason


class Squares(torch.utils.data.Dataset):
    """Rows that are computed when they are asked for."""

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return Y[row]


@pytest.mark.slow
def test_rows_that_are_computed_are_not_compiled():
    loader = DataLoader(Squares(), batch_size=BATCH)
    fit = NFVI(model, **OPTIONS).run(loader, num_data=ROWS)
    assert fit.engine == "eager"
    assert "come from a loader" in fit.engine_reason
    with pytest.raises(OptionError, match="come from a loader"):
        NFVI(model, **OPTIONS, engine="compiled").run(loader, num_data=ROWS)


def encoded(own):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 4))
    return AutoPlateFlow(own, encoder={"groups": net}, local="affine")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["data set", "numbered", "encoded"])
def test_compiled_steps_of_a_loader_are_the_eager_ones(way):
    """Rows are gathered by index, whichever way they came."""
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    loader = [(Y[part], part) for part in order.split(BATCH)]
    own, options = numbered, {"stop": False, "precondition": False, **OPTIONS, "max_steps": 60}
    if way != "numbered":
        own, loader = model, DataLoader(TensorDataset(Y), batch_size=BATCH)
    if way == "encoded":
        options["guide"] = encoded
    eager, compiled = (
        NFVI(own, **options, engine=engine).run(loader, num_data=ROWS)
        for engine in ("eager", "compiled")
    )
    assert (eager.engine, compiled.engine) == ("eager", "compiled"), compiled.engine_reason
    torch.testing.assert_close(compiled.losses, eager.losses, rtol=1e-3, atol=0.05)


def test_predicts_at_its_rows_and_comes_back_from_a_file(tmp_path):
    loader = DataLoader(TensorDataset(Y), batch_size=BATCH)
    fit = NFVI(model, **OPTIONS).run(loader, num_data=ROWS)
    assert fit.predict(num_samples=3, rows={"groups": [49, 3]}, seed=0)["y"].shape == (3, 2)
    with pytest.raises(ModelError, match="data from a loader"):
        fit.predict(Y)
    fit.save(tmp_path / "fit.nfvi")
    kwargs = {"num_data": ROWS}
    again = load(tmp_path / "fit.nfvi", model=model, args=(loader,), kwargs=kwargs)
    gap = again.row_gaps("groups", [7]).gap
    assert torch.equal(gap, fit.row_gaps("groups", [7]).gap)


def test_an_encoder_gets_the_data_of_each_row():
    """Rows without numbers: an amortised plate, and an encoder of the batch."""
    net = torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 4))
    fit = NFVI(
        model,
        guide=lambda own: AutoPlateFlow(own, encoder={"groups": net}, local=None),
        **OPTIONS | {"max_steps": 200},
    ).run([part for part in Y.split(BATCH)], num_data=ROWS)
    means = fit.sample(500, seed=0)["theta"].mean(0)
    assert float(torch.corrcoef(torch.stack([means, Y]))[0, 1]) > 0.9


def test_a_file_has_the_weights_of_an_encoder(tmp_path):
    def net():
        return torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 4))

    fit = NFVI(
        model, guide=lambda own: AutoPlateFlow(own, encoder={"groups": net()}), **OPTIONS
    ).run(Y.split(BATCH), num_data=ROWS)
    path = tmp_path / "fit.nfvi"
    fit.save(path)
    known = {"model": model, "args": (Y.split(BATCH),), "kwargs": {"num_data": ROWS}}
    with pytest.raises(FileError, match="encoder={'groups': ...}"):
        load(path, **known)
    with pytest.raises(FileError, match="encoders of the fit"):
        load(
            path,
            **known,
            encoder={"groups": torch.nn.Sequential(*net(), torch.nn.Tanh(), torch.nn.Linear(4, 4))},
        )
    again = load(path, **known, encoder={"groups": net()})
    for name, value in fit.sample(5, seed=2).items():
        assert torch.equal(again.sample(5, seed=2)[name], value)


def test_globals_alone_learn_from_batches():
    def mean(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", ROWS, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    options = OPTIONS | {"max_steps": 200}
    fit = NFVI(mean, guide="affine", **options).run(lambda: iter(Y.split(BATCH)), num_data=ROWS)
    posterior = float(Y.sum() / (ROWS + 1 / 25))
    assert abs(fit.summary()["mu"].mean - posterior) < 0.3 / ROWS**0.5
    assert fit.draws.exact  # weighed on all rows
    assert fit.predict(num_samples=3)["y"].shape == (3, ROWS)
    assert fit.predict(Y[:5], num_samples=3)["y"].shape == (3, 5)


def read_once():
    used = iter(Y.split(BATCH))
    next(used)
    return used


@pytest.mark.parametrize(
    ("loader", "num", "error", "words"),
    [
        (lambda: iter(()), ROWS, OptionError, "gave no batch"),
        (read_once(), ROWS, OptionError, "gave 34 rows.*can be read once"),
        (Y.split(BATCH), 40, OptionError, "more than num_data=40"),
        (DataLoader(TensorDataset(Y), batch_size=BATCH), 40, OptionError, "Pass num_data=50"),
        ([Y[:10], Y[10:].double()], ROWS, OptionError, "one shape and type"),
        ([(Y[:25],), Y[25:]], ROWS, OptionError, "built otherwise than the first"),
        ([["a"], ["b"]], ROWS, OptionError, "no tensor with rows"),
        (3 * [Y[:10]], 30, ModelError, "10 of num_data=30"),
    ],
)
def test_loaders_that_cannot_be_are_refused_with_the_cure(loader, num, error, words):
    with pytest.raises(error, match=words):
        NFVI(model, **OPTIONS).run(loader, num_data=num)


def test_rows_that_come_twice_or_are_out_of_range_are_named():
    index = torch.arange(ROWS)
    for wrong, words in ((3, "Row 3 .* twice in the loader, and row 40 never"), (77, "row 77")):
        bad = index.clone()
        bad[40] = wrong
        batches = [(Y[part], bad[part]) for part in index.split(BATCH)]
        with pytest.raises(DataError, match=words):
            NFVI(numbered, **OPTIONS).run(batches, num_data=ROWS)


def test_a_full_disk_of_rows_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    recipe = "pyro_nfvi._pyro_model.stored_rows.ROWS"
    monkeypatch.setattr(recipe, type("Small", (), {"memory": 0})())
    kept = StoredRows.read(Y.split(BATCH), ROWS)  # in a file
    assert torch.equal(kept.batch(torch.tensor([49, 0]))[0][0], Y[[49, 0]])
    del kept
    assert not list(tmp_path.iterdir())
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(
            "pyro_nfvi._pyro_model.stored_rows._Column.write",
            lambda *_: full.write(b"0"),
        )
        with pytest.raises(FileError, match="Set TMPDIR"):
            StoredRows.read(Y.split(BATCH), ROWS)
    assert not list(tmp_path.iterdir())
