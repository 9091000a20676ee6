"""NLL by importance sampling: known evidence, tiles, ordering of bounds, doubt."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from vae.cases import images, linear_gaussian, make, spread

from pyro_nfvi.errors import OptionError, WeightError
from pyro_nfvi.vae import Categorical
from pyro_nfvi.vae import _memory_tiles as tiles
from pyro_nfvi.vae._architecture import Architecture
from pyro_nfvi.vae._memory_tiles import numbers_per_row


def test_exact_posterior_gives_the_evidence_without_error():
    vae, x, evidence = linear_gaussian()
    nll = vae.nll(x, num_samples=64)
    torch.testing.assert_close(-nll.value, evidence)
    assert float(nll.se.max()) < 1e-6
    torch.testing.assert_close(nll.ess, torch.full_like(nll.ess, 64))
    assert bool((nll.khat == 0).all())


@pytest.mark.parametrize("flow", [None, "planar*2"])
def test_converges_to_the_known_evidence_within_its_error(flow):
    vae, x, evidence = linear_gaussian(stretch=1.3, flow=flow)
    if flow:
        spread(vae.flow, 0.05)
    nll = vae.nll(x, num_samples=4000)
    # 20 images at 5 standard errors: false alarm < 2e-5.
    assert bool(((nll.value + evidence).abs() < 5 * nll.se).all())
    assert float(nll.se.max()) < 0.1
    # ELBO <= IWAE-K <= log p, in the mean over draws and images.
    log_w = vae.elbo(x, num_samples=8000).log_w
    iwae = torch.logsumexp(log_w.reshape(1000, 8, -1), 1).mean() - math.log(8)
    # Gaps of about 0.04 and 0.005 nats, errors of 0.001: false alarm < 1e-4.
    assert log_w.mean() < iwae < evidence.mean()
    assert bool((nll.value <= nll.bound + 1e-9).all())


def test_value_of_an_image_does_not_depend_on_tiles_or_neighbours():
    vae = spread(make("planar*3"))
    x = images(6)
    whole = vae.nll(x, num_samples=150)
    for tile in (1, 150, 325):
        torch.testing.assert_close(
            vae.nll(x, num_samples=150, tile=tile).value, whole.value, atol=1e-6, rtol=1e-6
        )
    part = vae.nll(x[4:], num_samples=150, first=4)
    torch.testing.assert_close(part.value, whole.value[4:], atol=1e-6, rtol=1e-6)
    assert not torch.equal(vae.nll(x, num_samples=150, seed=1).value, whole.value)


@pytest.mark.parametrize("flow", [None, "planar*2"])
def test_a_tile_counts_the_numbers_of_a_row(flow, monkeypatch):
    vae = spread(make(flow, likelihood=Categorical(levels=256)))
    x = (255 * images(3)).long()
    assert numbers_per_row(vae, x) == 6 * 256
    whole = vae.nll(x, num_samples=300)
    seen = []
    vae.decoder.register_forward_hook(lambda part, given, out: seen.append(out.numel()))
    for bound in (1, 10 * 6 * 256, 700 * 6 * 256):
        monkeypatch.setattr(tiles, "EVALUATION", replace(tiles.EVALUATION, tile_cpu=bound))
        seen.clear()
        found = vae.nll(x, num_samples=300)
        assert max(seen) <= max(bound, 6 * 256)
        torch.testing.assert_close(found.value, whole.value, atol=1e-4, rtol=1e-6)


def test_a_row_counts_the_widest_layer():
    vae = Architecture((8, 8), latent_dim=2, flow="none", nets="conv").build(seed=0)
    assert numbers_per_row(vae, torch.zeros(1, 8, 8)) > 64
    assert not any(part._forward_hooks for part in vae.decoder.modules())


def test_leaves_the_global_random_state_alone():
    vae, x = make(), images()
    before = torch.get_rng_state()
    vae.nll(x, num_samples=50)
    assert torch.equal(before, torch.get_rng_state())


def test_says_when_the_weights_are_not_to_be_trusted():
    vae, x, _ = linear_gaussian(stretch=0.25)
    nll = vae.nll(x, num_samples=500)
    assert float(nll.khat.median()) > 0.7
    assert "too large" in str(nll)
    good, x, _ = linear_gaussian(stretch=1.2)
    assert "too large" not in str(good.nll(x, num_samples=500))
    assert good.nll(x, num_samples=500).label == "NLL(500)"


def test_broken_parameters_are_an_error_not_a_number():
    vae = make()
    with torch.no_grad():
        vae.decoder.last.bias[0] = torch.nan
    with pytest.raises(WeightError, match="not finite"):
        vae.nll(images(), num_samples=20)
    with pytest.raises(OptionError):
        make().nll(images(), num_samples=0)
