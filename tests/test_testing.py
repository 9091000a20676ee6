"""check_flow catches broken flows, each by the law that it breaks, and passes a user's own."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyro_nfvi import errors
from pyro_nfvi.flows import DiagonalAffine, Flow, Permute, Planar
from pyro_nfvi.testing import check_flow
from pyro_nfvi.testing._case import FlowCase, perturb
from pyro_nfvi.testing._check_flow import LAWS


class Stretch(Flow):
    """A user's own flow, in 30 lines: sinh-arcsinh tails per coordinate, context or not."""

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.tail = nn.Parameter(torch.zeros(dim))
        self.skew = nn.Parameter(torch.zeros(dim))
        if context_dim:
            self.net = nn.Linear(context_dim, 2 * dim)
            nn.init.zeros_(self.net.weight)
            nn.init.zeros_(self.net.bias)

    def numbers(self, context):
        tail, skew = self.tail, self.skew
        if context is not None:
            more_tail, more_skew = self.net(context).chunk(2, -1)
            tail, skew = tail + more_tail, skew + more_skew
        return 0.5 + F.softplus(tail + math.log(math.exp(0.5) - 1)), skew

    def slope(self, u, x, rate):
        return (rate.log() + log_cosh(u) - 0.5 * torch.log1p(x.square())).sum(-1)

    def forward(self, x, context=None):
        x, context = self.enter(x, context)
        rate, skew = self.numbers(context)
        u = skew + rate * torch.asinh(x)
        return torch.sinh(u), self.slope(u, x, rate)

    def inverse(self, y, context=None):
        y, context = self.enter(y, context)
        rate, skew = self.numbers(context)
        u = torch.asinh(y)
        x = torch.sinh((u - skew) / rate)
        return x, -self.slope(u, x, rate)


def log_cosh(u):
    return u.abs() + torch.log1p(torch.exp(-2 * u.abs())) - math.log(2)


def test_a_users_own_flow_passes():
    check_flow(Stretch)


# ------------------------------------------------------------------- flows broken on purpose


class Shift(Flow):
    """A whole flow, scale and shift, for others to break."""

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))

    def forward(self, x, context=None):
        x, _ = self.enter(x, context)
        return self.loc + self.log_scale.exp() * x, self.ladj(x)

    def inverse(self, y, context=None):
        y, _ = self.enter(y, context)
        return (y - self.loc) * (-self.log_scale).exp(), -self.ladj(y)

    def ladj(self, x):
        return self.log_scale.sum().expand(x.shape[:-1])


class WrongLadj(Shift):
    def ladj(self, x):
        return self.log_scale.mean().expand(x.shape[:-1])


class InverseLadjSign(Shift):
    def inverse(self, y, context=None):
        x, ladj = super().inverse(y, context)
        return x, -ladj


class ScalarLadj(Shift):
    def ladj(self, x):
        return self.log_scale.sum()


class LadjInDefaultDtype(Shift):
    def ladj(self, x):
        return super().ladj(x) + torch.zeros(x.shape[:-1]).double()


class NotAnInverse(Shift):
    def inverse(self, y, context=None):
        x, ladj = super().inverse(y, context)
        return x + 1e-9, ladj


class InverseIsCut(Shift):
    """As of a root that is searched for in an interval: draws further out are lost."""

    def inverse(self, y, context=None):
        x, ladj = super().inverse(y, context)
        return x.clamp(-100, 100), ladj


class Float32Leak(Shift):
    def forward(self, x, context=None):
        y, ladj = super().forward(x, context)
        return y.float().to(x.dtype), ladj


class Folds(Flow):
    """y = x + a tanh x with a free, so that a < -1 folds; the inverse is right elsewhere."""

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.a = nn.Parameter(torch.zeros(dim))

    def forward(self, x, context=None):
        x, _ = self.enter(x, context)
        slope = 1 + 4 * self.a / torch.cosh(x).square()
        return x + 4 * self.a * torch.tanh(x), slope.abs().log().sum(-1)

    def inverse(self, y, context=None):
        y, _ = self.enter(y, context)
        a = 4 * self.a
        low, high = y - a.abs() - 1, y + a.abs() + 1
        with torch.no_grad():
            for _ in range(80):
                x = (low + high) / 2
                above = x + a * torch.tanh(x) > y
                low, high = torch.where(above, low, x), torch.where(above, x, high)
        for _ in range(2):
            t = torch.tanh(x)
            x = x - (x + a * t - y) / (1 + a * (1 - t * t))
        return x, -self(x)[1]


class Squash(Shift):
    """Maps into a box: not onto, so that mass outside has no point."""

    def inverse(self, y, context=None):
        return super().inverse(torch.where(y.abs() < 0.5, y, y * 1.5), context)


class CoupledRows(Shift):
    def forward(self, x, context=None):
        y, ladj = super().forward(x, context)
        return y + 0.1 * self.loc * y.mean(tuple(range(y.dim() - 1)), keepdim=True), ladj


class GlobalNewton(Folds):
    """The loop ends when all rows together have converged, loosely."""

    def forward(self, x, context=None):
        x, _ = self.enter(x, context)
        a = F.softplus(self.a)
        return x + a * torch.tanh(x), torch.log1p(a / torch.cosh(x).square()).sum(-1)

    def inverse(self, y, context=None):
        y, _ = self.enter(y, context)
        a = F.softplus(self.a)
        x = y / (1 + a)
        for _ in range(100):
            t = torch.tanh(x)
            step = (x + a * t - y) / (1 + a * (1 - t * t))
            x = x - step
            if step.numel() == 0 or step.abs().max() < 1e-3:
                break
        return x, -self(x)[1]


class CountsCalls(Shift):
    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.calls = 0

    def forward(self, x, context=None):
        self.calls += 1
        return super().forward(x, context)


class RunningMean(Shift):
    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.register_buffer("mean", torch.zeros(dim))

    def forward(self, x, context=None):
        if x.dim() == 2 and len(x):
            self.mean.add_(0.0 * x.detach().mean(0))
        return super().forward(x, context)


class InPlace(Shift):
    def forward(self, x, context=None):
        x, _ = self.enter(x, context)
        with torch.no_grad():
            x.add_(1)
        return super().forward(x - 1)


class Draws(Shift):
    def forward(self, x, context=None):
        torch.rand(())
        return super().forward(x, context)


class Noise(Shift):
    def forward(self, x, context=None):
        y, ladj = super().forward(x, context)
        return y + 1e-12 * random.random(), ladj


class Drops(Shift):
    def forward(self, x, context=None):
        y, ladj = super().forward(x, context)
        return (y if self.training else y + 1), ladj


#: A cache that lives outside of the flow, keyed by the flow.
_CACHE: dict[int, torch.Tensor] = {}


class StaleCache(Shift):
    def forward(self, x, context=None):
        x, _ = self.enter(x, context)
        scale = _CACHE.setdefault(id(self), self.log_scale.detach().exp())
        return self.loc + scale.to(x.dtype) * x + 0 * self.log_scale, self.ladj(x)

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        _CACHE.pop(id(self), None)


class DeadParameter(Shift):
    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.unused = nn.Parameter(torch.zeros(dim))


class StuckAtStart(Flow):
    """y = (1 + a b)-scaled with a = b = 0: both gradients are 0 for ever."""

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.a = nn.Parameter(torch.zeros(dim))
        self.b = nn.Parameter(torch.zeros(dim))

    def forward(self, x, context=None):
        x, _ = self.enter(x, context)
        log_scale = self.a * self.b
        return x * log_scale.exp(), log_scale.sum().expand(x.shape[:-1])

    def inverse(self, y, context=None):
        y, _ = self.enter(y, context)
        log_scale = self.a * self.b
        return y * (-log_scale).exp(), -log_scale.sum().expand(y.shape[:-1])


class DetachedInverse(Shift):
    def inverse(self, y, context=None):
        y, _ = self.enter(y, context)
        return (y - self.loc.detach()) * (-self.log_scale).exp(), -self.ladj(y)


class WrongInverseGradient(Shift):
    def inverse(self, y, context=None):
        x, ladj = super().inverse(y, context)
        return 2 * x - x.detach(), ladj


class OneNewtonStep(Folds):
    """First derivatives are exact, second ones are not: the last step holds its slope fixed."""

    def forward(self, x, context=None):
        x, _ = self.enter(x, context)
        a = F.softplus(self.a)
        return x + a * torch.tanh(x), torch.log1p(a / torch.cosh(x).square()).sum(-1)

    def inverse(self, y, context=None):
        y, _ = self.enter(y, context)
        a = F.softplus(self.a)
        with torch.no_grad():
            x = y / (1 + a)
            low, high = y - a - 1, y + a + 1
            for _ in range(80):
                x = (low + high) / 2
                above = x + a * torch.tanh(x) > y
                low, high = torch.where(above, low, x), torch.where(above, x, high)
        t = torch.tanh(x)
        x = x - (x + a * t - y) / (1 + a * (1 - t * t))
        return x, -torch.log1p(a / torch.cosh(x).square()).sum(-1)


class WrongScore(Shift):
    def forward_with_score(self, x, score, context=None):
        return *self(x, context), score.detach()


class ScoreWithGraph(Shift):
    def forward_with_score(self, x, score, context=None):
        return *self(x, context), score * (-self.log_scale).exp()


class StartsElsewhere(Shift):
    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        nn.init.constant_(self.loc, 0.1)


class ContextFromStart(DiagonalAffine.__bases__[0]):  # ParamFlow
    """A hyper-net whose last layer does not start at zero; the flow itself is whole."""

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        if context_dim:
            nn.init.ones_(self.params.last.weight)

    def init_params(self):
        return {"loc": torch.zeros(self.dim)}

    def _forward(self, x, theta):
        return x + theta["loc"], x.new_zeros(x.shape[:-1])

    def _inverse(self, y, theta):
        return y - theta["loc"], y.new_zeros(y.shape[:-1])


class IgnoresContext(Shift):
    """Checks its context on entry, and forgets it there."""


class ContextDoesNotBroadcast(Flow):
    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.net = nn.Linear(max(context_dim, 1), dim)
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)

    def shift(self, x, context):
        x, context = self.enter(x, context)
        if context is None:
            return self.net.bias + 0 * self.net.weight.sum(-1)
        # Repeats the rows of the context in the wrong order.
        flat = context.reshape(-1, self.context_dim)
        rows = x[..., 0].numel()
        picked = flat.repeat_interleave(rows // len(flat), 0) if len(flat) else flat
        return self.net(picked).reshape(x.shape)

    def forward(self, x, context=None):
        shift = self.shift(x, context)
        return x + shift, shift.new_zeros(torch.broadcast_shapes(x.shape, shift.shape)[:-1])

    def inverse(self, y, context=None):
        shift = self.shift(y, context)
        return y - shift, shift.new_zeros(torch.broadcast_shapes(y.shape, shift.shape)[:-1])


class Overflows(Flow):
    """log(cosh) written naively: infinite from |x| = 90 on in float32."""

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.a = nn.Parameter(torch.zeros(dim))

    def forward(self, x, context=None):
        x, _ = self.enter(x, context)
        ladj = torch.log1p(F.softplus(self.a) / torch.cosh(x).square()).sum(-1)
        return x + self.a, ladj - ladj + (torch.cosh(x).log() * 0).sum(-1)

    def inverse(self, y, context=None):
        y, _ = self.enter(y, context)
        return y - self.a, y.new_zeros(y.shape[:-1])


class NaNGradientAtZero(Shift):
    """The root of a sum of squares has no gradient at zero."""

    def forward(self, x, context=None):
        y, ladj = super().forward(x, context)
        return y, ladj + 0 * x.square().sum(-1).sqrt()


class NoDoor(Shift):
    """Takes any input: no call of ``enter``."""

    def forward(self, x, context=None):
        return self.loc + self.log_scale.exp() * x, self.ladj(x)


class EmptyFails(Shift):
    def forward(self, x, context=None):
        x.max()
        return super().forward(x, context)


class RandomAndUnsaved(Flow):
    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.scale = 1 + torch.rand(()).item()

    def forward(self, x, context=None):
        x, _ = self.enter(x, context)
        return x * self.scale, x.new_full(x.shape[:-1], self.dim * math.log(self.scale))

    def inverse(self, y, context=None):
        y, _ = self.enter(y, context)
        return y / self.scale, y.new_full(y.shape[:-1], -self.dim * math.log(self.scale))


class KeepsGraph(Shift):
    """Keeps a tensor with a graph from the constructor on: no deep copy."""

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.held = self.log_scale.exp()


class HoldsInList(Shift):
    """Reads its parameter from a plain list, where functional_call cannot replace it."""

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.held = [self.log_scale]

    def ladj(self, x):
        return self.held[0].sum().expand(x.shape[:-1])


class BranchesOnValues(Shift):
    def forward(self, x, context=None):
        if x.numel() and (x > 100).any():
            return super().forward(x, context)
        return super().forward(x, context)


class BakesInConstant(Shift):
    def forward(self, x, context=None):
        y, ladj = super().forward(x, context)
        low = math.copysign(1e-6, x.detach().sum().item() if x.dim() == 2 else 0.0)
        return y + 0 * low, ladj


class ModeDependent(Shift):
    def forward(self, x, context=None):
        y, ladj = super().forward(x, context)
        return (y if torch.is_grad_enabled() else y + 1e-6), ladj


BROKEN = {
    ScalarLadj: "shapes",
    LadjInDefaultDtype: "shapes",
    EmptyFails: "empty",
    NoDoor: "bad input",
    CoupledRows: "rows",
    GlobalNewton: "rows",
    StartsElsewhere: "identity",
    Overflows: "extremes",
    NaNGradientAtZero: "extremes",
    NotAnInverse: "round trip",
    InverseIsCut: "round trip",
    InverseLadjSign: "round trip",
    Float32Leak: "round trip",
    Folds: "left inverse",
    WrongLadj: "ladj",
    WrongScore: "score",
    ScoreWithGraph: "score",
    Squash: "density",
    DeadParameter: "gradients",
    StuckAtStart: "gradients",
    DetachedInverse: "gradients",
    WrongInverseGradient: "inverse gradients",
    OneNewtonStep: "second derivatives",
    CountsCalls: "purity",
    RunningMean: "purity",
    InPlace: "purity",
    Draws: "purity",
    Noise: "purity",
    Drops: "purity",
    StaleCache: "fresh",
    ModeDependent: "modes",
    RandomAndUnsaved: "copies",
    KeepsGraph: "copies",
    BranchesOnValues: "vmap",
    BakesInConstant: "make_fx",
}


def laws_broken_by(factory, laws, **options) -> set[str]:
    found = set()
    for law in laws:
        try:
            check_flow(factory, laws=[law], dims=(2,), **options)
        except errors.LawError:
            found.add(law)
    return found


@pytest.mark.parametrize("broken", BROKEN, ids=lambda one: one.__name__)
def test_broken_flow_is_caught_by_its_law(broken):
    law = BROKEN[broken]
    with pytest.raises(errors.LawError, match=f"law '{law}' is broken at dim=.*found .*allowed "):
        check_flow(broken, laws=[law], context_dims=(0,))


def test_the_whole_flow_that_the_broken_ones_vary_is_whole():
    check_flow(Shift, context_dims=(0,))


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (ContextFromStart, "conditional start"),
        (ContextDoesNotBroadcast, "broadcast"),
        (IgnoresContext, "context"),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_broken_conditional_flow_is_caught_by_its_law(broken, law):
    check_flow(broken, laws=["shapes", "rows", "round trip", "ladj"])
    with pytest.raises(errors.LawError, match=f"law '{law}' is broken"):
        check_flow(broken, laws=[law])


@pytest.mark.compile
def test_a_branch_on_values_does_not_compile():
    for law in ("compile", "make_fx"):
        assert laws_broken_by(BranchesOnValues, [law], context_dims=(0,)) == {law}


@pytest.mark.parametrize("law", [law for law in LAWS if "compile" not in law])
def test_every_law_can_break(law):
    # A law that nothing breaks tests nothing.
    caught = {
        *BROKEN.values(),
        "conditional start", "broadcast", "context",  # above
    }  # fmt: skip
    others = {
        "inverse ladj": InverseLadjSign,
        "functional_call": HoldsInList,
        "make_fx inverse": GlobalNewton,
    }
    if law in others:
        assert laws_broken_by(others[law], [law], context_dims=(0,)) == {law}
    else:
        assert law in caught


# ------------------------------------------------------------------------ check_flow itself


def test_the_message_names_case_numbers_and_cure():
    with pytest.raises(errors.LawError) as caught:
        check_flow(WrongLadj, laws=["ladj"], dims=(3,), context_dims=(0,))
    message = str(caught.value)
    for part in ("'ladj'", "dim=3, context_dim=0, float64", "found", "allowed 1e-08", "sum"):
        assert part in message


def test_exemption_needs_a_reason_and_a_law():
    with pytest.raises(errors.OptionError, match="needs a reason"):
        check_flow(DiagonalAffine, exempt={"ladj": " "})
    with pytest.raises(errors.OptionError, match="no law 'ladjj'; the laws: shapes"):
        check_flow(DiagonalAffine, exempt={"ladjj": "because"})
    with pytest.raises(errors.OptionError, match="at least one dim"):
        check_flow(DiagonalAffine, dims=())


def test_exempt_law_is_skipped():
    check_flow(
        WrongLadj, dims=(2,), context_dims=(0,), laws=["shapes", "ladj"],
        exempt={"ladj": "wrong on purpose"},
    )  # fmt: skip


def test_slack_widens_one_law():
    options = {"laws": ["round trip"], "dims": (2,), "context_dims": (0,)}
    with pytest.raises(errors.LawError):
        check_flow(NotAnInverse, **options)
    check_flow(NotAnInverse, slack={"round trip": 100.0}, **options)


def test_a_factory_that_returns_something_else_is_told_so():
    with pytest.raises(errors.LawError, match="must return a Flow"):
        check_flow(lambda dim, context_dim: nn.Linear(dim, dim))
    with pytest.raises(errors.LawError, match="asked for dim=1, context_dim=3"):
        check_flow(lambda dim, context_dim: Permute.reversal(dim), laws=["shapes"])


def test_check_flow_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    check_flow(Planar, dims=(2,), laws=["shapes", "round trip", "density", "copies"])
    assert torch.equal(before, torch.get_rng_state())


def test_a_case_repeats_itself():
    cases = FlowCase(Planar, 3, 2), FlowCase(Planar, 3, 2)
    points = [case.points(4) for case in cases]
    first, second = (case.build(far=1.0)(x, case.contexts(4)) for case, x in zip(cases, points))
    assert torch.equal(first[0], second[0])
    other = FlowCase(Planar, 3, 2, seed=1)
    assert not torch.equal(other.points(4), points[0])


def test_perturb_moves_every_parameter_by_its_scale():
    flow = nn.Linear(400, 500)
    kept = [p.detach().clone() for p in flow.parameters()]
    assert perturb(flow, 2.0, torch.Generator().manual_seed(0)) is flow
    moves = [(p - old).detach() for p, old in zip(flow.parameters(), kept)]
    # 200 000 and 500 draws: relative sd of a sd 0.0016 and 0.032, bounds at 5 sd.
    assert moves[0].std().item() == pytest.approx(2 / 400**0.5, rel=0.01)
    assert moves[1].std().item() == pytest.approx(2.0, rel=0.16)
    again = nn.Linear(400, 500)
    again.load_state_dict(dict(zip(("weight", "bias"), kept)))
    perturb(again, 2.0, torch.Generator().manual_seed(0))
    assert torch.equal(again.weight, flow.weight)


def test_laws_say_what_they_promise():
    for name, law in LAWS.items():
        assert name == law.name
        assert law.promise.endswith((".", "forward is enough to know it.")), name
