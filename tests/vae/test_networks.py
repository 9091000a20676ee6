"""The shipped nets: sizes of the papers, labels, and shapes that do not fit."""

from __future__ import annotations

import pytest
import torch

from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae import (
    Categorical,
    ConvDecoder,
    ConvEncoder,
    DenseDecoder,
    DenseEncoder,
    FlowVAE,
    LogisticMixture,
    Masked,
    ResNetDecoder,
    ResNetEncoder,
    fit,
    load,
    plot_samples,
)
from pyro_nfvi.vae._image_axes import ImageAxes


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_gated_dense_has_the_papers_size():
    # 784-300-300 gated, z 64, and back: 1.15 M as the public code of Sylvester flows has.
    size = count(DenseEncoder((28, 28), 64)) + count(DenseDecoder(64, (28, 28)))
    assert 1.14e6 < size < 1.16e6


KINDS = {"conv": (ConvEncoder, ConvDecoder), "resnet": (ResNetEncoder, ResNetDecoder)}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("shape", [(28, 20), (8, 8), (3, 8, 4), (8, 4, 3), (1, 8, 8), (8, 8, 4)])
def test_convolutions_fit_any_multiple_of_four(shape, kind):
    encoder, decoder = KINDS[kind][0](shape, 3, context_dim=256), KINDS[kind][1](3, shape)
    loc, scale, context = encoder(torch.rand(2, *shape))
    assert loc.shape == scale.shape == (2, 3)
    assert context.shape == (2, 256)
    assert decoder(loc).shape == (2, *shape)
    assert KINDS[kind][1](3, shape, num_params=2)(loc).shape == (2, *shape, 2)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("shape", [(27, 28), (28,), (5, 8, 8), (8, 8, 5)])
def test_shapes_that_do_not_fit_convolutions_are_refused(shape, kind):
    for make in (lambda: KINDS[kind][0](shape, 3), lambda: KINDS[kind][1](3, shape)):
        with pytest.raises(OptionError, match="multiples of 4"):
            make()


@pytest.mark.parametrize("shape", [(8, 4), (3, 8, 4), (8, 4, 3)])
@pytest.mark.parametrize("params", [1, 2])
def test_maps_go_to_the_pixels_that_they_are_of(shape, params):
    """Value of a pixel: 100 times its row, 10 times its column, and the channel."""
    axes = ImageAxes.of(shape, 4)
    grid = torch.cartesian_prod(*(torch.arange(size) for size in (axes.channels, 8, 4)))
    values = (grid * torch.tensor([1, 100, 10])).sum(-1).reshape(1, axes.channels, 8, 4).float()
    image = {None: values[:, 0], 0: values, -1: values.permute(0, 2, 3, 1)}[axes.place]
    assert torch.equal(axes.to_maps(image), values)
    stacked = torch.stack([values + 0.25 * k for k in range(params)], 2).flatten(1, 2)
    want = image if params == 1 else torch.stack([image, image + 0.25], -1)
    assert torch.equal(axes.from_maps(stacked, params), want)


@pytest.mark.parametrize(("kind", "shape"), [("conv", (8, 8, 3)), ("resnet", (3, 8, 8))])
def test_colour_images_train_with_a_discretised_likelihood(kind, shape, tmp_path):
    pixels = LogisticMixture(levels=256, components=2)
    torch.manual_seed(0)
    vae = FlowVAE(
        KINDS[kind][0](shape, 2, context_dim=5),
        KINDS[kind][1](2, shape, num_params=pixels.num_params),
        2, 5, "planar*2", pixels,
    )  # fmt: skip
    x = torch.randint(256, (12, *shape))
    before = float(vae.elbo(x, num_samples=5).bound.detach().mean())
    fit(vae, x, out=tmp_path, epochs=3, batch_size=6, progress=False)
    assert float(vae.elbo(x, num_samples=5).bound.detach().mean()) > before
    eps = torch.randn(1, 12, 2)
    assert torch.equal(load(tmp_path).elbo(x, eps=eps).bound, vae.elbo(x, eps=eps).bound)
    pytest.importorskip("matplotlib")
    assert plot_samples(vae, rows=1, columns=2) is not None


def test_categories_are_looked_up(tmp_path):
    """Any names of the categories give the same VAE: their order says nothing."""
    torch.manual_seed(0)
    answers = Categorical(7, ordered=False)
    encoder = DenseEncoder((4,), 2, (8,), context_dim=3, levels=7, embedding=3)
    decoder = DenseDecoder(2, (4,), (8,), num_params=7)
    vae = FlowVAE(encoder, decoder, 2, 3, "planar*2", answers)
    x = torch.randint(7, (20, 4))
    eps = torch.randn(1, 20, 2)
    found = vae.elbo(x, eps=eps).bound
    order = torch.randperm(7)
    with torch.no_grad():
        encoder.table.weight[order] = encoder.table.weight.clone()
        for part in (decoder.last.weight, decoder.last.bias):
            table = part.view(4, 7, *part.shape[1:])
            table[:, order] = table.clone()
    torch.testing.assert_close(vae.elbo(order[x], eps=eps).bound, found)
    fit(vae, x, out=tmp_path, epochs=1, progress=False)
    assert torch.equal(load(tmp_path).elbo(x, eps=eps).bound, vae.elbo(x, eps=eps).bound)
    assert set(vae.reconstruct(x).unique().tolist()) <= set(map(float, range(7)))
    vae.encoder.bfloat16()
    assert bool((vae.encode(x).loc.isfinite()).all())
    with pytest.raises(OptionError, match="category of its own"):
        Masked(answers)


def test_ordered_levels_are_described_as_before():
    assert Categorical(5).spec() == {"name": "categorical", "levels": 5}
    assert "levels" not in DenseEncoder((4,), 2).made_of


@pytest.mark.parametrize("kind", ["conv", "resnet", "dense"])
def test_labels_enter_both_nets(kind):
    if kind in KINDS:
        encoder = KINDS[kind][0]((8, 8), 2, condition_dim=3)
        decoder = KINDS[kind][1](2, (8, 8), condition_dim=3)
    else:
        encoder = DenseEncoder((8, 8), 2, (5,), condition_dim=3)
        decoder = DenseDecoder(2, (8, 8), (5,), condition_dim=3)
    vae = FlowVAE(encoder, decoder, 2, flow=None, condition_dim=3).double()
    # Double precision: fresh convolutions hand on a label's effect of 1e-7.
    x = torch.bernoulli(torch.full((2, 8, 8), 0.5, dtype=torch.float64))
    eps = torch.randn(1, 2, 2, dtype=torch.float64)
    one, two = (vae.elbo(x, torch.full((2,), k), eps=eps) for k in (0, 1))
    assert bool((one.kl != two.kl).all())
    assert bool((one.reconstruction != two.reconstruction).all())


def test_a_context_as_wide_as_the_last_layer_is_that_layer():
    wide, narrow = (DenseEncoder((4, 4), 2, (7,), context_dim=c) for c in (7, 3))
    assert wide.head.context is None
    assert narrow.head.context is not None
    with pytest.raises(OptionError, match="positive widths"):
        DenseEncoder((4, 4), 2, ())
