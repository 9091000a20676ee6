"""FlowTransform: the adapter to torch.distributions and Pyro, and what it may remember."""

from __future__ import annotations

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import ConditionalTransformedDistribution
from torch.distributions import Independent, Normal, TransformedDistribution

from pyro_nfvi.flows import Chain, Flow, Planar
from pyro_nfvi.flows._autoregressive import iaf
from pyro_nfvi.testing._case import perturb


def base(dim=2):
    return Independent(Normal(torch.zeros(dim), torch.ones(dim)), 1)


def far(flow, scale=0.5):
    return perturb(flow, scale, torch.Generator().manual_seed(0))


class Counting(Flow):
    """Counts how often a flow is called each way; for tests of the memory only."""

    def __init__(self, flow):
        super().__init__(flow.dim, flow.context_dim)
        self.flow = flow
        self.forwards = self.inverses = 0

    def forward(self, x, context=None):
        self.forwards += 1
        return self.flow(x, context)

    def inverse(self, y, context=None):
        self.inverses += 1
        return self.flow.inverse(y, context)


def test_distribution_agrees_with_the_flow():
    flow = far(Chain(iaf(2, hidden_dim=8), Planar(2)))
    density = TransformedDistribution(base(), [flow.as_transform()])
    y = torch.randn(5, 3, 2)
    x, ladj = flow.inverse(y)
    torch.testing.assert_close(density.log_prob(y), base().log_prob(x) + ladj)
    assert density.event_shape == (2,)
    assert density.batch_shape == ()
    assert density.rsample((4,)).shape == (4, 2)


def test_both_log_determinants_have_their_signs():
    flow = far(Planar(2))
    transform = flow.as_transform()
    x = torch.randn(7, 2)
    y, ladj = flow(x)
    torch.testing.assert_close(transform(x), y)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), ladj)
    torch.testing.assert_close(transform.inv.log_abs_det_jacobian(y, x), -ladj)
    torch.testing.assert_close(transform.inv(y), x, rtol=1e-4, atol=1e-4)


def test_own_sample_is_scored_without_inversion():
    flow = Counting(far(Planar(2)))
    transform = flow.as_transform()
    density = TransformedDistribution(base(), [transform])
    y = density.rsample((5,))
    log_prob = density.log_prob(y)
    assert (flow.forwards, flow.inverses) == (1, 0)
    fresh = TransformedDistribution(base(), [flow.flow.as_transform()])
    torch.testing.assert_close(log_prob, fresh.log_prob(y.detach()), rtol=1e-4, atol=1e-4)


def test_only_the_very_same_tensor_is_recalled():
    flow = Counting(far(Planar(2)))
    transform = flow.as_transform()
    y = transform(torch.randn(5, 2))
    transform.inv(y.clone())
    assert flow.inverses == 1
    x = torch.randn(5, 2)
    expected = flow.flow(x)[1]
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), expected)


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_no_stale_value_after_a_step(optimiser):
    flow = far(Planar(2))
    transform = flow.as_transform()
    density = TransformedDistribution(base(), [transform])
    steps = optimiser(flow.parameters(), lr=0.3)
    y = torch.randn(9, 2)
    for _ in range(3):
        loss = -density.log_prob(y).mean()
        fresh = TransformedDistribution(base(), [flow.as_transform()])
        torch.testing.assert_close(loss, -fresh.log_prob(y).mean())
        steps.zero_grad()
        loss.backward()  # twice through one graph would raise
        steps.step()


def test_no_stale_value_after_the_context_changes_in_place():
    flow = far(Planar(2, context_dim=1))
    context = torch.zeros(1)
    transform = flow.as_transform(context)
    y = transform(torch.randn(5, 2))
    before = transform.inv(y)
    with torch.no_grad():
        context.add_(1)
    torch.testing.assert_close(transform.inv(y), flow.inverse(y, context)[0])
    assert not torch.allclose(transform.inv(y), before)


def test_no_stale_value_after_the_state_is_loaded():
    flow, other = far(Planar(2)), far(Planar(2), 1.0)
    transform = flow.as_transform()
    y = transform(torch.randn(5, 2))
    flow.load_state_dict(other.state_dict())
    torch.testing.assert_close(transform.inv(y), other.inverse(y)[0])


def test_a_point_that_changed_in_place_is_not_recalled():
    flow = far(Planar(2))
    transform = flow.as_transform()
    with torch.no_grad():
        y = transform(torch.randn(5, 2))
        y.add_(1)
        torch.testing.assert_close(transform.inv(y), flow.inverse(y)[0])


def test_a_value_without_graph_does_not_answer_for_one_with_it():
    flow = far(Planar(2))
    transform = flow.as_transform()
    x = torch.randn(5, 2)
    with torch.no_grad():
        y = transform(x)
    assert transform.log_abs_det_jacobian(x, y).requires_grad
    assert transform.inv(y).requires_grad


def test_score_of_a_drawn_point_reaches_the_parameters():
    flow = far(Planar(2))
    density = TransformedDistribution(base(), [flow.as_transform()])
    density.log_prob(density.rsample((5,))).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_after_a_backward_hold_no_memory(copier):
    transform = far(Planar(2, context_dim=1)).as_transform(torch.ones(1))
    x = torch.randn(5, 2)
    y = transform(x)
    (y.sum() + transform.log_abs_det_jacobian(x, y).sum()).backward()
    assert transform.inv is not None
    other = copier(transform)
    torch.testing.assert_close(other(x), y)
    torch.testing.assert_close(other.inv(y), x, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for parameter in other.flow.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(transform(x), y)
    assert not torch.allclose(other(x), y)


def test_nothing_is_remembered_under_inference_mode():
    flow = Counting(far(Planar(2)))
    transform = flow.as_transform()
    with torch.inference_mode():
        y = transform(torch.randn(5, 2))
        transform.inv(y)
    assert flow.inverses == 1
    # Nor does what was made there come back outside.
    transform.inv(y.clone())
    assert flow.inverses == 2


def test_nothing_is_remembered_under_vmap():
    flow = Counting(far(Planar(2)))
    transform = flow.as_transform()

    def there_and_back(x):
        return transform.inv(transform(x))

    x = torch.randn(5, 2)
    torch.testing.assert_close(torch.vmap(there_and_back)(x), x, rtol=1e-4, atol=1e-4)
    assert flow.inverses == 1
    # A value made inside vmap would be a dead tensor outside.
    y = flow.flow(x)[0]
    torch.testing.assert_close(transform.inv(y), x, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.__version__ < "2.6", reason="this torch.compile traces no such call")
def test_nothing_is_remembered_under_compile():
    flow = far(Planar(2))
    transform = flow.as_transform()
    compiled = torch.compile(lambda x: transform(x), fullgraph=True, backend="eager")
    x = torch.randn(5, 2)
    torch.testing.assert_close(compiled(x), flow(x)[0])
    torch.testing.assert_close(compiled(2 * x), flow(2 * x)[0])


def test_context_gives_the_distribution_its_batch():
    flow = far(Planar(2, context_dim=3))
    context = torch.randn(4, 3)
    density = TransformedDistribution(base().expand((4,)), [flow.as_transform(context)])
    assert density.batch_shape == (4,)
    assert density.rsample((6,)).shape == (6, 4, 2)
    y = torch.randn(6, 4, 2)
    x, ladj = flow.inverse(y, context)
    torch.testing.assert_close(density.log_prob(y), base().log_prob(x) + ladj)


def test_context_of_a_batch_broadens_a_base_of_one():
    flow = far(Planar(2, context_dim=3))
    density = TransformedDistribution(base(), [flow.as_transform(torch.randn(4, 3))])
    assert density.batch_shape == (4,)


def test_pyros_conditional_transformed_distribution():
    flow = far(Planar(2, context_dim=3))
    conditional = ConditionalTransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow]
    )
    context = torch.randn(3)
    y = torch.randn(7, 2)
    x, ladj = flow.inverse(y, context)
    found = conditional.condition(context).log_prob(y)
    torch.testing.assert_close(found, base().log_prob(x) + ladj)


def test_transform_in_a_pyro_model():
    flow = far(Planar(2))

    def model():
        pyro.module("flow", flow)
        return pyro.sample("z", dist.TransformedDistribution(base(), [flow.as_transform()]))

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    x, ladj = flow.inverse(z)
    torch.testing.assert_close(
        trace.nodes["z"]["log_prob"], base().log_prob(x) + ladj, rtol=1e-4, atol=1e-4
    )


def test_with_cache_changes_nothing():
    transform = Planar(2).as_transform()
    assert transform.with_cache(1) is transform
    assert transform.with_cache(0) is transform


def test_transform_composes_with_those_of_torch():
    flow = far(Planar(2))
    squash = torch.distributions.transforms.SigmoidTransform()
    density = TransformedDistribution(base(), [flow.as_transform(), squash])
    y = density.rsample((50,))
    assert ((y > 0) & (y < 1)).all()
    again = TransformedDistribution(base(), [flow.as_transform(), squash])
    torch.testing.assert_close(
        density.log_prob(y), again.log_prob(y.detach()), rtol=1e-3, atol=1e-3
    )
