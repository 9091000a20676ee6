"""Evaluation, collapse in words, pictures, and the table of many runs."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from vae.cases import images, linear_gaussian, make, spread
from vae.test_training import options, silent

from benchmarks.vae.sweep.papers import PUBLISHED, in_columns, published_for
from benchmarks.vae.sweep.plots import depths
from benchmarks.vae.sweep.table import Row, main, sweep, table, write_tables
from pyro_nfvi.errors import DataError, OptionError
from pyro_nfvi.vae import (
    evaluate,
    plot_interpolation,
    plot_posterior,
    plot_reconstructions,
    plot_samples,
)
from pyro_nfvi.vae._architecture import Architecture
from pyro_nfvi.vae._datasets import ImageData
from pyro_nfvi.vae._evaluation import active_units, collapse_warning
from pyro_nfvi.vae.train._run_folder import RunFolder

STATIC = published_for((28, 28), "as-is", "bernoulli", "mnist_static.npz")


def test_numbers_are_those_of_the_vae():
    vae, x, evidence = linear_gaussian()
    result = evaluate(vae, x, nll_samples=200)
    assert result.elbo == pytest.approx(float(evidence.mean()), abs=1e-5)
    assert result.nll is not None
    assert result.nll.mean == pytest.approx(-float(evidence.mean()), abs=1e-5)
    assert result.bits == pytest.approx(-float(evidence.mean()) / 4 / np.log(2), abs=1e-5)
    assert result.active == 2
    assert result.warning == ""
    shifted = evaluate(vae, x, nll_samples=0, log_volume=-3.0)
    assert shifted.bits == pytest.approx((3 - result.elbo) / 4 / np.log(2), abs=1e-5)
    assert shifted.elbo_bits == shifted.bits
    assert "bits per dimension" in str(result)
    assert "-ELBO of its images" in str(result)
    assert "negative ELBO" in str(result)
    assert result.record()["nll_samples"] == 200


def test_a_single_image_has_numbers_but_no_errors():
    vae, x, evidence = linear_gaussian()
    result = evaluate(vae, x[:1], nll_samples=50)
    assert result.elbo == pytest.approx(float(evidence[0]), abs=1e-5)
    assert (result.elbo_se, result.kl_se, result.record()["nll_se"]) == (None, None, None)
    assert "nan" not in json.dumps(result.record()).lower()
    text = str(result)
    assert "±" not in text
    assert "nats, 1 image\n" in text
    assert "single image" in text
    assert "collapse" not in text
    with pytest.raises(DataError, match="batch of images"):
        evaluate(vae, x[:0])


def test_active_units_see_through_the_noise_of_the_draws():
    vae = make(None)
    with torch.no_grad():
        head = vae.encoder.head.gaussian
        head.weight.zero_()
        head.bias.zero_()
        head.weight[0] = 5.0  # only the first coordinate knows the image
    units = active_units(vae, images(400), num_samples=2)
    # The noise of 2 draws has variance 0.25, far above the threshold of 0.01; its covariance
    # between halves has sd 0.0125 over 400 images: seeds are fixed.
    assert units[0]
    assert int(units.sum()) <= 2
    assert active_units(vae, images(400), num_samples=64).tolist() == [True, False, False]


def test_collapse_is_said_in_words():
    assert "posterior collapse: 0 of 40" in collapse_warning(0.02, 0, 40)
    assert "--free-bits" in collapse_warning(5.0, 1, 40)
    assert collapse_warning(20.0, 30, 40) == ""


def test_pictures_for_labels_levels_and_shapes():
    vae = make("planar*2", dim=2, condition_dim=3)
    x, y = images(9), torch.arange(9) % 3
    for figure in (
        plot_reconstructions(vae, x, y), plot_samples(vae), plot_interpolation(vae, x, y),
        plot_posterior(vae, x, y, points=15),
    ):  # fmt: skip
        assert figure.axes
    with pytest.raises(OptionError, match="latent_dim=2"):
        plot_posterior(make("planar*2"), images())
    with pytest.raises(OptionError, match="at least 2"):
        plot_interpolation(make(), images(1))


def test_contours_are_those_of_the_exact_posterior():
    # The exact posterior of the linear Gaussian VAE: areas and lines coincide.
    vae, x, _ = linear_gaussian()
    grid_posterior = vae.encode(x[:1])
    z = torch.randn(1000, 1, 2, dtype=torch.float64)
    log_p = vae.likelihood.log_prob(vae.decode(z), x[:1]) + vae.prior_log_prob(z)
    difference = (log_p - grid_posterior.log_prob(z)).squeeze(1)
    assert float(difference.detach().std()) < 1e-9


@pytest.fixture
def grey(tmp_path):
    rng = np.random.RandomState(0)
    path = tmp_path / "grey.npz"
    np.savez_compressed(path, x=rng.randint(0, 256, (60, 4, 4)).astype(np.uint8))
    return path


def test_a_sweep_writes_tables_and_does_not_repeat_itself(grey, tmp_path):
    given = options(grey, tmp_path / "sweep", epochs=1)
    said = []
    flows = ["none", "planar*2", "sylvester*1:rank=1,kind=householder"]
    rows = sweep(given, flows, [0, 1], say=said.append)
    assert sum(str(text).startswith("== ") for text in said) == 6
    again = sweep(given, flows, [0, 1], say=silent)
    assert [row.results for row in again] == [row.results for row in rows]
    folder = RunFolder(tmp_path / "sweep")
    write_tables(folder, rows, STATIC)
    text = (folder.path / "table.md").read_text()
    assert "NLL(20)" in text
    assert "NLL(200)" in text  # Rezende and Mohamed's
    with (folder.path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 + len(STATIC)
    assert all(line["quantity"] for line in lines)
    assert (folder.path / "sweep.png").exists()
    assert not (folder.path / "curve.png").exists()  # no flow came with two depths
    mean, sd = rows[0].mean_sd("elbo", -1.0)
    values = [-result["elbo"] for result in rows[0].results]
    assert (mean, sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert rows[1].parameters > rows[0].parameters
    with pytest.raises(OptionError, match="takes"):
        sweep(given, ["planar*2:depth=3"], [0], say=silent)
    for names, seeds in ((["none", "none"], [0]), (["none"], [0, 1, 0])):
        with pytest.raises(OptionError, match="twice"):
            sweep(given, names, seeds, say=silent)


def test_runs_of_earlier_versions_are_in_the_table_with_what_they_hold(tmp_path):
    old = {
        "elbo": -100.0, "kl": 20.0, "active": 5, "latent_dim": 40, "images": 10_000,
        "nll": 90.0, "nll_samples": 5000, "nll_images": 500, "khat_above_0.7": 0.98,
    }  # fmt: skip
    no_nll = {key: value for key, value in old.items() if not key.startswith("nll")}
    rows = [Row("none", (0, 1), (old, old), 9), Row("planar*2", (0, 1), (old, no_nll), 9)]
    write_tables(RunFolder(tmp_path), rows)
    one, two = table(rows)
    assert (one["NLL"], one["-ELBO of its images"]) == ("90.00 ± 0.00", "not kept")
    assert "not reliable" in one["NLL weights"]
    assert two["NLL"] == ""


def test_command_line_of_the_sweep(grey, tmp_path, capsys):
    arguments = [
        "--data", str(grey), "--out", str(tmp_path / "s"),
        "--flows", "none,iaf*1:gate=sigmoid,iaf*2:gate=sigmoid",
        "--seeds", "3", "--epochs", "1", "--hidden", "8", "--latent-dim", "2", "--quiet",
        "--nll-samples", "20", "--no-pictures",
    ]  # fmt: skip
    assert main(arguments) == 0
    assert "iaf*1:gate=sigmoid" in capsys.readouterr().out
    assert (tmp_path / "s" / "curve.png").exists()
    assert main(["--seeds", "a"]) == 1


def test_rows_are_grouped_by_what_differs_in_depth_alone():
    flows = ["none", "planar*4", "planar", "iaf*2:gate=sigmoid", "iaf*4", "radial|planar"]
    found = depths([Row(flow, (0,), (), 1) for flow in flows])
    assert {kind: [depth for depth, _ in group] for kind, group in found.items()} == {
        "planar": [1, 4]
    }


def test_published_rows_say_what_they_are():
    assert all(row.source and row.quantity for row in PUBLISHED)
    frey = published_for((28, 20), "as-is", "categorical", "freyfaces.npz")
    assert {row.data for row in frey} == {"Frey faces"}
    assert in_columns(frey[0]) == {"-ELBO": "", "NLL": "", "-ELBO bits/dim": "4.53 ± 0.02"}
    assert in_columns(STATIC[0]) == {"-ELBO": "", "NLL": "89.90", "-ELBO bits/dim": ""}
    assert all(set(in_columns(row)) == set(in_columns(frey[0])) for row in PUBLISHED)


@pytest.mark.parametrize(
    ("shape", "kind", "likelihood", "name", "data"),
    [
        (
            (28, 28),
            "dynamic",
            "bernoulli",
            "mnist.npz, (28, 28), 50000/10000/10000",
            "dynamic MNIST",
        ),
        ((28, 28), "dynamic", "bernoulli", "MNIST", "dynamic MNIST"),
        ((28, 28), "dynamic", "bernoulli", "mnist.npz, 800/100/100", None),
        ((28, 28), "as-is", "categorical", "mnist.npz", None),
        ((28, 28), "as-is", "bernoulli", "omniglot28_binary.npz", None),
        ((28, 28), "as-is", "bernoulli", "kmnist.npz", None),
        ((28, 28), "dynamic", "bernoulli", "fashion-mnist.npz", None),
        ((28, 28), "threshold", "bernoulli", "mnist.npz", None),
        ((28, 28), "as-is", "bernoulli", "x.npz", None),
        ((28, 20), "as-is", "categorical", "x.npz", None),
        ((28, 20), "dequantize", "gaussian", "freyfaces.npz", None),
        ((8, 8), "dynamic", "bernoulli", "mnist.npz", None),
    ],
)
def test_published_rows_need_the_data_of_the_papers(shape, kind, likelihood, name, data):
    found = {row.data for row in published_for(shape, kind, likelihood, name)}
    assert found == ({data} if data else set())


def test_published_rows_know_data_by_their_content():
    def of(first, last):
        parts = [torch.zeros(n, 28, 28, dtype=torch.uint8) for n in (50000, 10000, 10000)]
        parts[0][0].view(-1)[:first] = 1
        parts[2][0].view(-1)[:last] = 1
        return ImageData("unnamed", *parts, levels=2)

    assert published_for((28, 28), "as-is", "bernoulli", of(123, 147)) == STATIC
    assert published_for((28, 28), "as-is", "bernoulli", of(123, 146)) == ()
    assert published_for((28, 28), "as-is", "categorical", of(123, 147)) == ()


def test_vaes_of_one_seed_share_their_nets_whatever_the_flow():
    plain, bent = (
        Architecture((4, 4), latent_dim=2, flow=flow, hidden=(8,)).build(seed=3)
        for flow in ("none", "planar*3")
    )
    for name, value in plain.state_dict().items():
        assert torch.equal(bent.state_dict()[name], value), name
    x, eps = torch.bernoulli(torch.full((5, 4, 4), 0.5)), torch.randn(1, 5, 2)
    torch.testing.assert_close(plain.elbo(x, eps=eps).bound, bent.elbo(x, eps=eps).bound)
    spread(bent)
    assert not torch.equal(plain.elbo(x, eps=eps).bound, bent.elbo(x, eps=eps).bound)
