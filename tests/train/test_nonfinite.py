"""When numbers stop being finite, the message names the place."""

import pyro
import pyro.distributions as dist
import torch
from infer.models import Y, conjugate

from pyro_nfvi import AutoFlow
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._train.nonfinite import locate_nonfinite
from pyro_nfvi.flows import Flow


class Exploding(Flow):
    """Finite parameters, infinite values."""

    def forward(self, x, context=None):
        return x * torch.inf, x.new_zeros(x.shape[:-1])

    def inverse(self, y, context=None):
        return y, y.new_zeros(y.shape[:-1])


def set_up(model, *args, flow="affine", **options):
    guide = AutoFlow(model, flow, **options).setup(*args)
    return guide, LogJoint(model, args, {}, guide.latent)


class Steep(Flow):
    """Finite values, an infinite slope in a parameter."""

    def __init__(self, dim):
        super().__init__(dim)
        self.steep = torch.nn.Parameter(torch.zeros(dim))

    def forward(self, x, context=None):
        return x + self.steep.sqrt(), x.new_zeros(x.shape[:-1])

    def inverse(self, y, context=None):
        return y - self.steep.sqrt(), y.new_zeros(y.shape[:-1])


def test_nothing_wrong_but_a_gradient_of_the_guide():
    guide, log_joint = set_up(conjugate, Y, flow=Steep(1))
    found = locate_nonfinite(guide, log_joint, torch.randn(4, 1), {})
    assert "the gradient of the guide's parameter 'flow." in found
    assert "steep" in found


class Strong(Steep):
    """A finite slope, whose square is not."""

    def forward(self, x, context=None):
        return x + 1e25 * (self.steep - self.steep.detach()), x.new_zeros(x.shape[:-1])


def test_a_gradient_whose_norm_overflows():
    guide, log_joint = set_up(conjugate, Y, flow=Strong(1))
    found = locate_nonfinite(guide, log_joint, torch.ones(4, 1), {})
    assert "steep" in found
    assert "beyond what its norm can hold" in found


def test_parameter():
    guide, log_joint = set_up(conjugate, Y)
    with torch.no_grad():
        next(guide.flow.parameters()).fill_(torch.nan)
    assert "the guide's parameter 'flow." in locate_nonfinite(
        guide, log_joint, torch.randn(4, 1), {}
    )


def test_layer():
    guide, log_joint = set_up(conjugate, Y, flow=Exploding(1))
    assert "layer 0: Exploding" in locate_nonfinite(guide, log_joint, torch.randn(4, 1), {})


def test_site():
    def model():
        x = pyro.sample("x", dist.Normal(torch.tensor(1.0), 1.0))
        pyro.sample("y", dist.Normal(0.0, x.log(), validate_args=False), obs=torch.tensor(0.0))

    guide, log_joint = set_up(
        model, init_loc_fn=pyro.infer.autoguide.init_to_value(values={"x": torch.tensor(3.0)})
    )
    text = locate_nonfinite(guide, log_joint, torch.tensor([[0.0], [-100.0]]), {})
    assert "site 'y' is not finite" in text


def test_latent_whose_gradient_is_not_finite():
    def model():
        with pyro.plate("three", 3):
            x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 1.0))
        # Value 0, gradient NaN, in the last element only.
        pyro.factor("f", (x[..., 2] - x[..., 2]).sqrt())

    guide, log_joint = set_up(model)
    text = locate_nonfinite(guide, log_joint, torch.randn(2, 3), {})
    assert "the gradient of site 'f' with respect to 'x[2]' is not finite: sqrt at 0" in text
