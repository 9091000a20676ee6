"""Law: the log joint of a random model is the density that Pyro's own TraceEnum_ELBO gives it."""

from __future__ import annotations

import warnings
from contextlib import ExitStack, suppress
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from generated_models import (
    CONTEXTS,
    LATENT,
    OBSERVED,
    PARTLY,
    Spec,
    Statement,
    draw_data,
    model_of,
    specs,
)
from hypothesis import HealthCheck, given, settings
from pyro.infer import TraceEnum_ELBO

from pyro_nfvi._pyro_model.initial_values import prior_trace
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.model_run import SetSubsample
from pyro_nfvi._pyro_model.second_opinion import second_opinion
from pyro_nfvi.errors import ModelError, ModelWarning

# Draws of a Wishart warn now and then; the data of a model are of no consequence here.
pytestmark = pytest.mark.filterwarnings("ignore:Singular sample")

#: Both sides add up the same float64 numbers in another order.
TOLERANCE = 1e-10
WAYS = (None, "plate", "vmap", "loop")


def by_pyro(model, space, values, subsample):
    """Minus the loss of TraceEnum_ELBO at a Delta guide: Pyro's log joint."""

    def guide():
        frames = {f.name: f for site in space.records for f in site.cond_indep_stack}
        plates = {n: pyro.plate(n, frame.size, dim=frame.dim) for n, frame in frames.items()}
        for name, site in space.sites.items():
            with ExitStack() as stack:
                for frame in site.cond_indep_stack:
                    stack.enter_context(plates[frame.name])
                pyro.sample(name, dist.Delta(values[name], event_dim=site.event_dim))

    def pinned():
        with SetSubsample(subsample):
            return model()

    elbo = TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False)
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return -elbo.loss(pinned, guide)


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def check(spec: Spec) -> str:
    """Compare; say which ways were taken or that both refused."""
    model, by_hand = model_of(spec), model_of(spec, by_hand=True)
    torch.manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        space = LatentSpace.from_trace(prior_trace(model, (), {}))
        assert space.init_loc.dtype == torch.float64
        z = space.init_loc + 0.5 * torch.randn(3, space.dim, dtype=torch.float64)
        values, ladj = space.constrain(z)
        rows = [{name: value[i] for name, value in values.items()} for i in range(3)]
        refused = ""
        try:
            log_joints = [LogJoint(model, (), {}, space)]
        except ModelError as error:
            refused = str(error)
        if "scale" in refused:
            subsample = {name: torch.arange(size) for name, size in spec.subsample.items()}
            with pytest.raises(ValueError, match="scale"):
                by_pyro(by_hand, space, rows[0], subsample)
            return "refused"
        assert not refused, refused
        for way in WAYS[1:]:
            with suppress(ModelError):  # it cannot be run that way
                log_joints.append(LogJoint(model, (), {}, space, way=way))
        subsample = log_joints[0].draw_subsample()
        right = torch.tensor(
            [by_pyro(by_hand, space, row, subsample) for row in rows], dtype=torch.float64
        )
        for log_joint in log_joints:
            found = log_joint.evaluate(z, subsample).log_p - ladj
            scale = float(1 + right[right.isfinite()].abs().sum())
            torch.testing.assert_close(found, right, rtol=TOLERANCE, atol=TOLERANCE * scale)
        opinion = second_opinion(log_joints[0], z[:1], subsample)
        assert not opinion.objections
    return log_joints[0].how


def law(examples):
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@given(specs())
@law(12)
def test_log_joint_is_that_of_pyro(spec):
    check(spec)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@given(specs())
@law(3000)
def test_log_joint_is_that_of_pyro_in_many_models(spec):
    check(spec)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (kind, what)
        for kind, table in (("latent", LATENT), ("observed", OBSERVED), ("partly", PARTLY))
        for what in table
    ],
)
def test_log_joint_of_every_distribution(kind, what):
    name = f"{kind[0]}1"
    handlers = ((1.0, "none"), (0.5, "none"), ("rows", "rows"))
    for context, (scale, mask) in product(CONTEXTS, handlers):
        statements = [
            Statement("latent", "l0", "normal", (), (), 1.0, "none"),
            Statement(kind, name, what, context, ("l0",), scale, mask),
        ]
        if kind != "observed":
            statements.append(Statement("observed", "o2", "normal", context, (name,), 1.0, "none"))
        spec = Spec({"a": 2, "b": 3}, {}, 1.0, tuple(statements))
        draw_data(spec, 0)
        check(spec)
