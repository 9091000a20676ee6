"""The shipped nets: sizes of the papers, labels, and shapes that do not fit."""

from __future__ import annotations

import pytest
import torch

from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder, FlowVAE


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_gated_dense_has_the_papers_size():
    # 784-300-300 gated, z 64, and back: 1.15 M as the public code of Sylvester flows has.
    size = count(DenseEncoder((28, 28), 64)) + count(DenseDecoder(64, (28, 28)))
    assert 1.14e6 < size < 1.16e6


@pytest.mark.parametrize("shape", [(28, 28), (28, 20), (8, 8)])
def test_convolutions_fit_any_multiple_of_four(shape):
    encoder, decoder = ConvEncoder(shape, 3, context_dim=256), ConvDecoder(3, shape, num_params=2)
    loc, scale, context = encoder(torch.rand(2, *shape))
    assert loc.shape == scale.shape == (2, 3)
    assert context.shape == (2, 256)
    assert decoder(loc).shape == (2, *shape, 2)
    with pytest.raises(OptionError, match="multiples of 4"):
        ConvEncoder((27, 28), 3)


@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_labels_enter_both_nets(kind):
    if kind == "conv":
        encoder = ConvEncoder((8, 8), 2, condition_dim=3)
        decoder = ConvDecoder(2, (8, 8), condition_dim=3)
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
