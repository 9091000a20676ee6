"""Flows of other libraries as ours: values, laws, and refusals."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pyro.distributions.transforms as T
import pytest
import torch
from torch.distributions import transforms as torch_transforms

from pyro_nfvi import FlowDensity
from pyro_nfvi.errors import OptionError, ShapeError
from pyro_nfvi.flows import Chain, Planar, adapt, make_flow
from pyro_nfvi.testing import check_flow
from pyro_nfvi.testing._case import perturb

PLAIN = [
    "affine_autoregressive",
    "affine_coupling",
    "householder",
    "permute",
    "spline",
    "spline_autoregressive",
    "spline_coupling",
]
SINGLE, DOUBLE = torch.float32, torch.float64
INVERTS_IN_SINGLE = {"affine_autoregressive", "conditional_affine_autoregressive"}
CONDITIONAL = [
    "conditional_affine_autoregressive",
    "conditional_affine_coupling",
    "conditional_householder",
    "conditional_spline",
    "conditional_spline_autoregressive",
]


def build(name, dim=3):
    """In float64, but for the one whose inverse Pyro computes in the default dtype only."""
    conditional = name.startswith("conditional")
    transform = getattr(T, name)(dim, **({"context_dim": 2} if conditional else {}))
    flow = adapt(transform, dim, 2 if conditional else 0)
    flow = flow.to(SINGLE if name in INVERTS_IN_SINGLE else DOUBLE)
    if isinstance(transform, torch.nn.Module):
        perturb(transform, 0.3)
    return flow


def given(name, rows=5):
    """Points and, where the flow takes it, a context, in the flow's dtype."""
    dtype = SINGLE if name in INVERTS_IN_SINGLE else DOUBLE
    context = torch.randn(rows, 2, dtype=dtype) if name in CONDITIONAL else None
    return 0.7 * torch.randn(rows, 3, dtype=dtype), context


@pytest.mark.parametrize("name", PLAIN + CONDITIONAL)
def test_pyro_transforms_are_flows(name):
    flow = build(name)
    x, context = given(name)
    y, ladj = flow(x, context)
    assert ladj.shape == (5,)
    back, back_ladj = flow.inverse(y, context)
    loose = 1e-4 if x.dtype == SINGLE else 1e-6
    torch.testing.assert_close(back, x, rtol=loose, atol=loose)
    torch.testing.assert_close(back_ladj, -ladj, rtol=10 * loose, atol=10 * loose)
    # Rows are independent, so that the sum over rows has the Jacobians of all of them.
    jacobian = torch.autograd.functional.jacobian(lambda p: flow(p, context)[0].sum(0), x)
    expected = torch.linalg.slogdet(jacobian.movedim(1, 0))[1]
    torch.testing.assert_close(ladj, expected, rtol=loose, atol=loose)


@pytest.mark.parametrize("name", [name for name in PLAIN + CONDITIONAL if name != "permute"])
def test_parameters_of_the_source_become_ours(name):
    flow = build(name)
    x, context = given(name)
    y, ladj = flow(x, context)
    gradients = torch.autograd.grad(
        y.sum() + ladj.sum(), list(flow.parameters()), allow_unused=True
    )
    assert any(g is not None and g.abs().max() > 0 for g in gradients)
    chained = Chain(flow, Planar(3, flow.context_dim).to(x.dtype))
    assert chained(x, context)[1].shape == (5,)


def test_no_stale_value_after_a_step():
    flow = build("affine_coupling")
    x, _ = given("affine_coupling")
    y, _ = flow(x)
    perturb(flow, 0.2)
    assert (flow.inverse(y)[0] - x).abs().max() > 1e-3
    torch.testing.assert_close(flow(flow.inverse(y)[0])[0], y)


def test_it_keeps_the_laws_of_calculus():
    check_flow(
        lambda dim, context_dim: adapt(T.affine_coupling(dim, hidden_dims=[8]), dim),
        dims=(3,),
        context_dims=(0,),
        laws=["round trip", "ladj", "inverse ladj", "score", "rows", "fresh"],
    )


def test_torch_transforms_are_summed_over_the_event():
    flow = adapt(torch_transforms.AffineTransform(1.0, 2.0), 3)
    y, ladj = flow(torch.zeros(4, 3))
    assert (y == 1).all()
    torch.testing.assert_close(ladj, torch.full((4,), 3 * torch.log(torch.tensor(2.0)).item()))


def test_our_own_flow_passes_through():
    flow = make_flow("planar*2", 3)
    assert adapt(flow, 3) is flow


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: T.Sylvester(3), "log-determinant is wrong"),
        (lambda: T.Planar(3), "no inverse"),
        (lambda: T.Radial(3), "no inverse"),
        (lambda: T.block_autoregressive(3), "cuts tails"),
        (lambda: T.neural_autoregressive(3), "no inverse"),
        (lambda: T.polynomial(3), "no inverse"),
        (lambda: T.batchnorm(3), "statistics"),
        (lambda: T.matrix_exponential(3), "series"),
        (lambda: T.conditional_planar(3, 2), "no inverse"),
        (lambda: T.conditional_radial(3, 2), "no inverse"),
        (lambda: T.conditional_neural_autoregressive(3, 2), "no inverse"),
        (lambda: T.conditional_matrix_exponential(3, 2), "series"),
        (lambda: T.ComposeTransform([T.affine_autoregressive(3), T.Planar(3)]), "no inverse"),
        (lambda: T.Planar(3).inv, "no inverse"),
        (lambda: torch_transforms.ExpTransform(), "codomain"),
        (lambda: torch_transforms.SigmoidTransform().inv, "domain"),
        (lambda: torch_transforms.AbsTransform(), "no bijection"),
    ],
)
def test_wrong_ones_are_refused_with_the_reason(make, reason):
    with pytest.raises(OptionError, match=reason):
        adapt(make(), 3, 2)


def test_what_is_no_transform_is_named():
    with pytest.raises(OptionError, match="got int"):
        adapt(3, 3)


def test_conditional_without_context_dim_is_named():
    with pytest.raises(ShapeError, match="context_dim=C"):
        adapt(T.conditional_affine_coupling(3, 2), 3)


class Halved(torch.nn.Module):
    """A lazy transform whose inverse is cut at 10, as a search in an interval gives."""

    def forward(self):
        class Cut(torch_transforms.AffineTransform):
            def _inverse(self, y):
                return super()._inverse(y).clamp(-10, 10)

        return Cut(0.0, 2.0, event_dim=1)


@pytest.mark.parametrize(
    ("make", "sizes", "reason"),
    [
        (lambda: T.affine_autoregressive(3), (4, 0), "built for these sizes"),
        (lambda: T.affine_coupling(3), (2, 0), "built for"),
        (lambda: T.conditional_spline(3, 2), (3, 4), "built for these sizes"),
        (lambda: T.permute(3), (5, 0), "built for|come back"),
        (lambda: torch.nn.Linear(3, 3), (3, 0), "built for these sizes"),
        (lambda: torch.nn.Linear(3, 3), (3, 3), "returns a Tensor"),
        (lambda: make_flow("planar*2", 2), (7, 0), "dim=2, context_dim=0 for dim=7"),
        (lambda: make_flow("planar*2", 2), (2, 3), "context_dim=0 for dim=2, context_dim=3"),
        (Halved, (3, 0), "does not come back: from -29.9 it goes to -10"),
        (lambda: T.affine_autoregressive(3), (3.0, 0), "whole number of at least 1"),
    ],
)
def test_wrong_sizes_and_wrong_inverses_are_told_at_the_door(make, sizes, reason):
    with pytest.raises(OptionError, match=reason):
        adapt(make(), *sizes)


def test_the_trial_leaves_random_numbers_and_parameters_alone():
    source = T.spline_coupling(3)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    state = torch.get_rng_state()
    adapt(source, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_an_inverse_in_the_default_dtype_only_is_told():
    flow = adapt(T.affine_autoregressive(3), 3).double()
    with pytest.raises(ShapeError, match="default dtype"):
        flow.inverse(torch.zeros(2, 3, dtype=DOUBLE))


@pytest.mark.skipif(importlib.util.find_spec("zuko") is None, reason="needs zuko")
def test_zuko_flows_in_a_process_of_their_own():
    # Zuko switches validation off when it is imported, for the whole process.
    code = """
        import torch, zuko
        from pyro_nfvi import FlowDensity
        from pyro_nfvi.errors import OptionError
        from pyro_nfvi.flows import adapt
        from pyro_nfvi.testing._case import perturb

        x = 0.7 * torch.randn(5, 3, dtype=torch.float64)
        context = torch.randn(5, 2, dtype=torch.float64)
        for name in ("MAF", "NSF", "NICE"):
            for size in (0, 2):
                theirs = getattr(zuko.flows, name)(3, size, transforms=2, hidden_features=[8])
                perturb(theirs.double(), 0.3)
                held = context if size else None
                expected = theirs(held).log_prob(x)
                ours = FlowDensity(adapt(theirs, 3, size))
                torch.testing.assert_close(ours.log_prob(x, held), expected)
                z, log_q = ours.rsample_and_log_prob((4,), context[0] if size else None)
                again = theirs(context[0] if size else None).log_prob(z)
                torch.testing.assert_close(log_q, again, rtol=1e-5, atol=1e-5)
                lazy = adapt(theirs.transform, 3, size)
                torch.testing.assert_close(lazy(x, held)[0], theirs(held).transform(x))
                assert list(ours.parameters())
        cut = dict.fromkeys(("GF", "NAF", "SOSPF", "UNAF"), "draws are cut")
        for name, reason in {"NCSF": "circles", **cut}.items():
            try:
                adapt(getattr(zuko.flows, name)(3), 3)
            except OptionError as error:
                assert reason in str(error)
            else:
                raise AssertionError(f"{name} was taken")
        for name in cut:
            layers = getattr(zuko.flows, name)(3, transforms=1).transform.transforms
            for layer in layers:
                try:
                    adapted = adapt(layer, 3)
                except OptionError as error:
                    assert "come back" in str(error) or "draws are cut" in str(error), error
                else:  # a rotation between them
                    x = torch.full((1, 3), 30.0)
                    torch.testing.assert_close(adapted.inverse(adapted(x)[0])[0], x)
        class Mine(zuko.flows.NCSF):
            pass

        try:
            adapt(Mine(3), 3)
        except OptionError as error:
            assert "circles" in str(error)
        else:
            raise AssertionError("a class derived from one that is refused was taken")
        try:
            adapt(zuko.flows.GMM(3), 3)
        except OptionError as error:
            assert "not a transform" in str(error)
        else:
            raise AssertionError("a mixture was taken")
        print("right")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert run.stdout.strip() == "right", run.stderr


def test_the_inverse_of_a_module_is_trained_too():
    theirs = T.affine_coupling(3, hidden_dims=[8])
    density = FlowDensity(adapt(theirs.inv, 3))
    assert {id(p) for p in theirs.parameters()} == {id(p) for p in density.parameters()}
    before = [p.detach().clone() for p in theirs.parameters()]
    density.fit(2 + torch.randn(50, 3), max_steps=3, progress=False, seed=0)
    assert any(not torch.equal(p, old) for p, old in zip(theirs.parameters(), before))
    assert any("transform" in name or "held" in name for name in density.state_dict())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch_transforms.StackTransform(
            [
                torch_transforms.AffineTransform(1.0, 2.0),
                torch_transforms.AffineTransform(0.0, 3.0),
            ],
            dim=-1,
        ),
        lambda: torch_transforms.CatTransform(
            [torch_transforms.AffineTransform(1.0, 2.0)] * 2, dim=-1, lengths=[1, 1]
        ),
        lambda: T.LowerCholeskyAffine(torch.zeros(2), torch.eye(2) + torch.ones(2, 2).tril(-1)),
        lambda: torch_transforms.AffineTransform(torch.zeros(2).double(), torch.ones(2).double()),
    ],
)
def test_maps_of_all_reals_are_taken_however_they_are_put_together(make):
    flow = adapt(make(), 2)
    x = torch.randn(4, 2, dtype=torch.float64)
    y, ladj = flow(x.float() if isinstance(make(), T.LowerCholeskyAffine) else x)
    assert ladj.shape == (4,)
    torch.testing.assert_close(flow.inverse(y)[0].double(), x, rtol=1e-5, atol=1e-5)


def test_a_part_that_is_bounded_is_seen_in_a_stack():
    parts = [torch_transforms.AffineTransform(1.0, 2.0), torch_transforms.ExpTransform()]
    with pytest.raises(OptionError, match="codomain"):
        adapt(torch_transforms.StackTransform(parts, dim=-1), 2)
