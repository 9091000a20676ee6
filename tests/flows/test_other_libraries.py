"""The table of docs/coming_from.md: which flow of nflows and normflows is which of ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pyro_nfvi import FlowDensity, flows
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows import adapt, make_flow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming_from.md"


def of_nflows():
    nflows = pytest.importorskip("nflows.transforms")
    from nflows.nn.nets import ResidualNet

    def net(inputs, outputs):
        return ResidualNet(inputs, outputs, hidden_features=8, num_blocks=1)

    mask = torch.tensor([1, 0, 1, 0])
    tails = {"tails": "linear", "tail_bound": 3.0, "num_bins": 4}
    return {
        "MaskedAffineAutoregressiveTransform": lambda: nflows.MaskedAffineAutoregressiveTransform(
            4, 16
        ),
        "MaskedPiecewiseRationalQuadraticAutoregressiveTransform": lambda: (
            nflows.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(4, 16, **tails)
        ),
        "AffineCouplingTransform": lambda: nflows.AffineCouplingTransform(mask, net),
        "AdditiveCouplingTransform": lambda: nflows.AdditiveCouplingTransform(mask, net),
        "PiecewiseRationalQuadraticCouplingTransform": lambda: (
            nflows.PiecewiseRationalQuadraticCouplingTransform(mask, net, **tails)
        ),
        "LULinear": lambda: nflows.LULinear(4),
        "HouseholderSequence": lambda: nflows.HouseholderSequence(4, 2),
        "RandomPermutation": lambda: nflows.RandomPermutation(4),
        "PointwiseAffineTransform": lambda: nflows.PointwiseAffineTransform(
            torch.ones(4), torch.full((4,), 2.0)
        ),
    }


def of_normflows():
    flows = pytest.importorskip("normflows.flows")
    nets = pytest.importorskip("normflows.nets")
    return {
        "MaskedAffineAutoregressive": lambda: flows.MaskedAffineAutoregressive(4, 16),
        "AutoregressiveRationalQuadraticSpline": lambda: (
            flows.AutoregressiveRationalQuadraticSpline(4, 1, 16)
        ),
        "CoupledRationalQuadraticSpline": lambda: flows.CoupledRationalQuadraticSpline(4, 1, 16),
        "AffineCouplingBlock": lambda: flows.AffineCouplingBlock(nets.MLP([2, 8, 4])),
        "MaskedAffineFlow": lambda: flows.MaskedAffineFlow(
            torch.tensor([1.0, 0.0, 1.0, 0.0]), nets.MLP([4, 8, 4]), nets.MLP([4, 8, 4])
        ),
        "LULinearPermute": lambda: flows.LULinearPermute(4),
        "AffineConstFlow": lambda: flows.AffineConstFlow(4),
        "Permute": lambda: flows.Permute(4),
    }


#: What is which of ours: a formula, or a class of ``pyro_nfvi.flows``.
NFLOWS = {
    "MaskedAffineAutoregressiveTransform": "maf",
    "MaskedPiecewiseRationalQuadraticAutoregressiveTransform": "nsf-ar",
    "AffineCouplingTransform": "realnvp",
    "AdditiveCouplingTransform": "nice",
    "PiecewiseRationalQuadraticCouplingTransform": "nsf",
    "LULinear": "LULinear",
    "HouseholderSequence": "Householder",
    "RandomPermutation": "Permute",
    "PointwiseAffineTransform": "affine",
}
NORMFLOWS = {
    "MaskedAffineAutoregressive": "maf",
    "AutoregressiveRationalQuadraticSpline": "nsf-ar",
    "CoupledRationalQuadraticSpline": "nsf",
    "AffineCouplingBlock": "realnvp",
    "MaskedAffineFlow": "realnvp",
    "LULinearPermute": "LULinear",
    "AffineConstFlow": "affine",
    "Permute": "Permute",
}
PAIRS = [(of_nflows, name, ours) for name, ours in NFLOWS.items()]
PAIRS += [(of_normflows, name, ours) for name, ours in NORMFLOWS.items()]


def shaken(flow):
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=noise)
    return flow.double()


def jacobian(flow, x):
    return torch.autograd.functional.jacobian(lambda row: flow(row)[0], x)


def structure(flow):
    """What depends on what, up to the order of coordinates, and whether the map is linear."""
    points = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    each = [jacobian(flow, x) for x in points]
    linear = all(torch.allclose(each[0], other, atol=1e-6) for other in each)
    used = (torch.stack(each).abs().amax(0) > 1e-9).long()
    return linear, sorted(used.sum(0).tolist()), sorted(used.sum(1).tolist())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "name", "ours"), PAIRS, ids=[f"{p[1]}" for p in PAIRS])
def test_a_flow_of_another_library_is_adapted_and_is_what_the_table_says(library, name, ours):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        flow = shaken(adapt(library()[name](), 4))
        made = getattr(flows, ours, None)
        peer = shaken(
            make_flow(f"{ours}*1", 4)
            if made is None
            else made([2, 0, 3, 1] if ours == "Permute" else 4)
        )
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y, ladj = flow(x)
    back, other = flow.inverse(y)
    # The spline's own root finding is in single precision's spirit.
    assert torch.allclose(back, x, atol=1e-5)
    assert torch.allclose(ladj, -other, atol=1e-5)
    for row, found in zip(x, ladj):
        assert torch.allclose(torch.linalg.slogdet(jacobian(flow, row))[1], found, atol=1e-5)
    assert flow(x.reshape(2, 3, 4))[1].shape == (2, 3)
    density = FlowDensity(flow)
    z, log_q = density.push(x)
    assert torch.allclose(density.log_prob(z), log_q, atol=1e-4)
    if ours not in ("Householder", "LULinear"):  # full matrices, whatever their zeros
        assert structure(flow)[0] == structure(peer)[0]
    if ours in ("maf", "nsf-ar", "affine", "Permute", "realnvp", "nsf", "nice"):
        assert structure(flow)[1:] == structure(peer)[1:]


def test_whole_flows_are_turned_to_run_from_the_base():
    pytest.importorskip("nflows")
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow

    inner = of_nflows()["MaskedAffineAutoregressiveTransform"]()
    flow = Flow(inner, StandardNormal([4]))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    density = FlowDensity(adapt(flow, 4))
    assert torch.allclose(density.log_prob(x), flow.log_prob(x), atol=1e-4)


def test_whole_normalizing_flows_of_normflows():
    nf = pytest.importorskip("normflows")
    layers = [nf.flows.MaskedAffineAutoregressive(4, 8), nf.flows.LULinearPermute(4)]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(4, trainable=False), layers)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    density = FlowDensity(adapt(flow, 4))
    assert torch.allclose(density.log_prob(x), flow.log_prob(x), atol=1e-4)


def test_what_is_no_flow_of_rows_is_refused():
    flows = pytest.importorskip("normflows.flows")
    for source, message in [
        (flows.Planar((4,)), "no inverse"),
        (flows.Radial((4,)), "no inverse"),
        (flows.ActNorm(4), "first call changes it"),
        (flows.LULinearPermute(3), "Is it built for dim=4"),
    ]:
        with pytest.raises(OptionError, match=message):
            adapt(source, 4)


def test_the_page_holds_this_table():
    rows = dict(re.findall(r"^\| `(\w+)` \| `\"([\w-]+)\"` \|", PAGE.read_text("utf-8"), re.M))
    assert rows == {**NFLOWS, **NORMFLOWS}
