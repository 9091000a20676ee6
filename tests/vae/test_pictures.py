"""Pictures: scales, colours, what cannot be drawn, bounded memory, windows, full disks."""

from __future__ import annotations

import dataclasses
import errno
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from vae.cases import images, linear_gaussian, make
from vae.test_training import options, silent

from pyro_nfvi.errors import FileError, OptionError
from pyro_nfvi.plots._style import pyplot
from pyro_nfvi.vae import (
    _memory_tiles as tiles,
)
from pyro_nfvi.vae import (
    _posterior_picture as posterior_picture,
)
from pyro_nfvi.vae import (
    plot_interpolation,
    plot_posterior,
    plot_reconstructions,
    plot_samples,
)
from pyro_nfvi.vae._architecture import Architecture
from pyro_nfvi.vae._pictures import plot_curves, save_figure, span_of
from pyro_nfvi.vae.train._command import train


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot().close("all")


def shown(figure):
    return figure.axes[0].images[0]


def test_images_and_reconstructions_share_a_scale_and_white_is_bright():
    vae, x, _ = linear_gaussian()
    x = x.reshape(-1, 2, 2)
    vae.reconstruct = lambda x, y=None, generator=None: x / 2
    picture = shown(plot_reconstructions(vae, x, columns=5))
    low, high = span_of(vae, x)
    assert (low, high) == (float(x.min()), float(x.max()))
    grid = np.asarray(picture.get_array())
    torch.testing.assert_close(
        torch.from_numpy(grid[4:6, 1:3]), ((x[0] / 2 - low) / (high - low)).float()
    )
    assert picture.get_cmap()(1.0)[:3] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5, 3)])
def test_colour_images_are_drawn_in_colour(shape):
    vae = Architecture(shape, latent_dim=2, flow="none", hidden=(8,)).build(seed=0)
    x = torch.bernoulli(torch.full((6, *shape), 0.5))
    for figure in (plot_reconstructions(vae, x), plot_samples(vae), plot_interpolation(vae, x)):
        assert shown(figure).get_array().shape[-1] == 3
    first = x[0].movedim(0, -1) if shape[0] == 3 else x[0]
    grid = np.asarray(shown(plot_reconstructions(vae, x)).get_array())
    assert np.array_equal(grid[1:5, 1:6], first.numpy())


def test_nothing_to_draw_is_said():
    vae, x = make(), images()
    with pytest.raises(OptionError, match="images x needs.*at least 1; got 0"):
        plot_reconstructions(vae, x[:0])
    with pytest.raises(OptionError, match="columns needs.*at least 1; got 0"):
        plot_reconstructions(vae, x, columns=0)
    with pytest.raises(OptionError, match="rows"):
        plot_samples(vae, rows=0)
    with pytest.raises(OptionError, match="panels of at least 1"):
        plot_posterior(make("planar*2", dim=2), x, panels=0)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_curves_leave_out_what_is_not_finite(bad):
    def line(epoch, elbo):
        part = {"elbo": -100.0 + epoch, "kl": 20.0}
        return {"epoch": epoch, "train": part, "valid": {"elbo": elbo, "kl": elbo}}

    figure = plot_curves([line(1, -90.0), line(2, bad), line(3, -80.0)])
    assert list(figure.axes[0].lines[1].get_xdata()) == [1, 3]
    assert figure.axes[0].get_ylim()[1] == pytest.approx(90.1)
    assert plot_curves([line(1, bad)]).axes


def test_posteriors_are_decoded_in_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "EVALUATION", replace(tiles.EVALUATION, tile_cpu=6 * 50))
    vae = make("planar*2", dim=2)
    seen = []
    vae.decoder.register_forward_hook(lambda part, given, out: seen.append(out.numel()))
    plot_posterior(vae, images(3), points=30)
    assert max(seen) <= 6 * 50


def test_a_large_decoder_gets_a_coarser_grid(monkeypatch):
    vae, x = make("planar*2", dim=2), images(3)
    assert posterior_picture._afford(vae, x, None, 3, 120).side == 120
    small = dataclasses.replace(posterior_picture.PICTURE, work=1e6)
    monkeypatch.setattr(posterior_picture, "PICTURE", small)
    plan = posterior_picture._afford(vae, x, None, 3, 120)
    assert (plan.side, plan.wide, plan.shown) == (16, 16, 1)
    assert len(plot_posterior(vae, x, points=40).axes) == 3


def test_a_panel_shows_the_posterior_where_it_is():
    vae, x, _ = linear_gaussian(noise=0.05)
    axes = plot_posterior(vae, x[:1]).axes[0]
    q = vae.encode(x[:1])
    sd, loc = float(q.scale.max().detach()), q.loc[0].tolist()
    for (low, high), middle in zip((axes.get_xlim(), axes.get_ylim()), loc, strict=True):
        assert (low + high) / 2 == pytest.approx(middle, abs=sd)
        assert 4 * sd < high - low < 12 * sd


def test_the_least_gaussian_posteriors_are_picked():
    vae, x, _ = linear_gaussian()
    plain = vae.likelihood.log_prob

    def log_prob(params, one):  # the posterior of image 3 has two modes
        if torch.equal(one, x[3:4]):
            return torch.logaddexp(plain(params, one), plain(-params, one))
        return plain(params, one)

    object.__setattr__(vae.likelihood, "log_prob", log_prob)
    figure = plot_posterior(vae, x[:6], panels=1, points=20)
    assert figure.axes[0].get_title("left") == "image 3"
    assert "the 1 least Gaussian of the first 6 images" in figure.get_suptitle()


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    part = {"elbo": -1.0, "kl": 1.0}
    figure = plot_curves([{"epoch": 1, "train": part, "valid": part}])
    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(FileError, match=r"curves\.png: No space left.*results .* complete"):
        save_figure(figure, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [((40, 6), {"curves"}), ((40, 3, 4, 4), {"curves", "reconstructions", "samples"}),
     ((10, 4, 5), {"curves", "reconstructions", "samples"})],
)  # fmt: skip
def test_a_run_says_what_it_does_not_draw(shape, drawn, tmp_path):
    x = np.random.RandomState(0).randint(0, 2, shape).astype(np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    said = []
    given = options(
        tmp_path / "x.npz",
        tmp_path / "run",
        pictures=True,
        epochs=1,
        latent_dim=3,
        flow="none",
        **({"shape": "6", "levels": 2} if len(shape) == 2 else {}),
    )
    train(given, say=lambda line: said.append(str(line)))
    found = {path.stem for path in (tmp_path / "run").glob("*.png")}
    assert found - {"interpolation"} == drawn
    lines = [line for line in said if line.startswith("Not drawn")]
    if len(found) < 4:
        assert len(lines) == 1
        assert "interpolation.png" in lines[0]
    else:
        assert not lines


def test_a_run_shows_posteriors_whatever_the_shape(tmp_path):
    x = np.random.RandomState(0).randint(0, 2, (40, 6)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    given = options(
        tmp_path / "x.npz",
        tmp_path / "run",
        pictures=True,
        epochs=1,
        flow="none",
        shape="6",
        levels=2,
    )
    train(given, say=silent)
    assert (tmp_path / "run" / "posteriors.png").exists()
