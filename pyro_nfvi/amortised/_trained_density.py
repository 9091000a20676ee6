"""A conditional density of simulations: built, trained, and what is kept of them beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyro_nfvi._random import fold_in, seeded, stream
from pyro_nfvi.amortised._model_simulations import Simulations
from pyro_nfvi.amortised._observed_layout import ObservedLayout
from pyro_nfvi.amortised._recipe import JUDGEMENT, NETWORKS, SIMULATIONS
from pyro_nfvi.amortised._summarised_flow import FlowAt, SummarisedFlow
from pyro_nfvi.amortised._summary_networks import Scaling, make_summary
from pyro_nfvi.amortised._typicality import Neighbourhood
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.distributions._maximum_likelihood import DensityFit
from pyro_nfvi.errors import OptionError
from pyro_nfvi.flows._base import Chain, Flow
from pyro_nfvi.flows._normalization import ActNorm
from pyro_nfvi.flows._registry import make_flow
from pyro_nfvi.infer._amortised_findings import UnusualData


@dataclass(frozen=True)
class TrainingRecord:
    """Record of how a density was trained.

    Attributes:
        flow: The flow's formula, or its class.
        summary: The summary network, in words; empty for none.
        num_simulations: Simulations that were made.
        left_out: Simulations with numbers that are not finite.
        how: The way in which they were run.
        steps: Steps of training.
        held_out: Mean log density of the simulations that were held out, in nats.
        reason: Reason for which training ended.
        seconds: Time of all.
        seed: Seed of all.
        flow_options: Options that the flow was given.
        rounds: Rounds of simulations, each where the posterior of the one before was.
    """

    flow: str
    summary: str
    num_simulations: int
    left_out: int
    how: str
    steps: int
    held_out: float
    reason: str
    seconds: float
    seed: int
    flow_options: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1

    def lines(self) -> tuple[str, ...]:
        """Describe it in lines to read."""
        left = f", {self.left_out} left out as not finite" if self.left_out else ""
        by = {"plate": "together in a plate", "vmap": "together by vmap", "loop": "one by one"}
        return (
            f"trained on {self.num_simulations} simulations"
            f"{f' in {self.rounds} rounds' if self.rounds > 1 else ''} "
            f"({by.get(self.how, self.how)}{left}), "
            f"flow {self.flow}{f', summary {self.summary}' if self.summary else ''}",
            f"{self.steps} steps, {self.reason}; {self.held_out:.3f} nats held out; "
            f"{self.seconds:.1f} s, seed {self.seed}",
        )


@dataclass(frozen=True, eq=False)
class References:
    """Simulations that data are compared with.

    Attributes:
        neighbourhoods: Simulations as they are, scaled; and their summaries, where there are any.
        ranges: Least and largest of each number ``(2, X)``.
    """

    neighbourhoods: tuple[Neighbourhood, ...]
    ranges: Tensor

    @classmethod
    def of(cls, x: Tensor, scaling: Scaling, flow: Flow | None, seed: int) -> References:
        """Take simulations ``x (n, X)``, and summaries by the network of a flow."""
        scaled = scaling(x)
        homes = [Neighbourhood.of(scaled, seed)]
        if flow is not None and has_summary(flow):
            with torch.no_grad():
                homes.append(Neighbourhood.of(summarised(flow, scaled), seed))
        return cls(tuple(homes), torch.stack([x.amin(0), x.amax(0)]))

    def judge(
        self, x: Tensor, scaled: Tensor, flow: Flow | None, layout: ObservedLayout, *, weighed: bool
    ) -> UnusualData:
        """Compare data ``x (X,)`` with the simulations."""
        points = [scaled]
        if flow is not None and len(self.neighbourhoods) > 1:
            with torch.no_grad():
                points.append(summarised(flow, scaled))
        ps = [home.p_value(point) for home, point in zip(self.neighbourhoods, points)]
        low, high = self.ranges
        beyond = ((x < low) | (x > high)).nonzero().flatten().tolist()
        named = JUDGEMENT.named
        outside = [
            f"{layout.at(i)} = {float(x[i]):.3g} was from {float(low[i]):.3g} to "
            f"{float(high[i]):.3g}"
            for i in beyond[:named]
        ]
        if len(beyond) > named:
            outside.append(f"and {len(beyond) - named} more")
        count = len(self.neighbourhoods[0].points)
        p_value = min(1.0, len(ps) * min(ps))  # Bonferroni
        return UnusualData(p_value, JUDGEMENT.level, count, tuple(outside), weighed)


def split(made: Simulations, seed: int) -> tuple[Simulations, Simulations]:
    """Divide simulations into those to train on and those to hold out."""
    order = torch.randperm(len(made.z), generator=stream(seed, "held out")).to(made.z.device)
    count = round(SIMULATIONS.held_share * len(made.z))
    held, train = order[:count], order[count:]
    return made.at(train), made.at(held)


def posterior_density(
    layout: ObservedLayout,
    like: Tensor,
    formula: str,
    options: Mapping[str, Any],
    summary: str | nn.Module | None,
    seed: int,
) -> tuple[Scaling, FlowDensity]:
    """Build the density of latents given scaled data, at its start, and the scaling.

    Args:
        layout: The data.
        like: A vector of latents ``(D,)``, whose size, type and device are taken.
        formula: The flow.
        options: Its options.
        summary: The summary network; see :func:`pyro_nfvi.amortise`.
        seed: Of the first weights.
    """
    with seeded(seed, "amortise: networks"):
        scaling, network, size = make_summary(summary, layout, len(like))
        flow = conditional_flow(formula, len(like), size, options)
    if network is not None:
        flow = SummarisedFlow(flow, network, layout.dim)
    density = FlowDensity(Chain(flow, ActNorm(len(like)))).to(like)
    return _like(scaling, like), density


def likelihood_density(
    layout: ObservedLayout, like: Tensor, formula: str, options: Mapping[str, Any], seed: int
) -> tuple[Scaling, Scaling, FlowDensity]:
    """Build the density of scaled data given scaled latents, and the scalings of both."""
    with seeded(seed, "amortise: networks"):
        flow = conditional_flow(formula, layout.dim, len(like), options)
    density = FlowDensity(Chain(flow, ActNorm(layout.dim))).to(like)
    of_data, of_latents = (Scaling(torch.arange(size)) for size in (layout.dim, len(like)))
    return _like(of_data, like), _like(of_latents, like), density


def _like(scaling: Scaling, like: Tensor) -> Scaling:
    return scaling.to(like.device).to(like.dtype)


def named_flow(formula: str, dim: int) -> str:
    """Return the formula for so many numbers: couplings of the default need two."""
    return "nsf-ar*2" if dim == 1 and formula == "nsf*5" else formula


def conditional_flow(formula: str, dim: int, size: int, options: Mapping[str, Any]) -> Flow:
    """Build a flow of a context, with networks as wide as ``NETWORKS`` says.

    Raises:
        OptionError: The flow takes no context.
    """
    # Families differ in what they take: several widths, one, or none.
    widths = (NETWORKS.hidden_dim, max(NETWORKS.hidden_dim))
    made: Flow | None = None
    for width in () if "hidden_dim" in options else widths:
        try:
            made = make_flow(formula, dim, size, **{"hidden_dim": width, **options})
            break
        except OptionError:
            continue
    made = make_flow(formula, dim, size, **options) if made is None else made
    if not made.context_dim:
        raise OptionError(
            f"The flow {formula!r} takes no context, so it could not depend on the data. Take "
            "'nsf*5', 'maf*5' or another."
        )
    return made


def train(
    density: FlowDensity,
    rows: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    options: Mapping[str, Any],
    seed: int,
    *,
    progress: bool,
) -> DensityFit:
    """Fit a conditional density to rows and their contexts; its parameters are fixed then."""
    own = {"seed": fold_in(seed, "amortise: training"), "progress": progress}
    fitted = density.fit(*rows, valid=held, **{**own, **options})
    density.requires_grad_(False)
    return fitted


def at_data(flow: Flow, scaled: Tensor) -> Flow:
    """Return a flow of data at one data set, without context."""
    if isinstance(flow, Chain):
        return Chain(*(at_data(layer.map, scaled) for layer in flow.layers()))
    if isinstance(flow, SummarisedFlow):
        with torch.no_grad():
            return FlowAt(flow.flow, flow.network(scaled))
    return FlowAt(flow, scaled) if flow.context_dim else flow


def summarised(flow: Flow, scaled: Tensor) -> Tensor:
    """Return the summary of data by the network of a flow."""
    for layer in flow.layers():
        if isinstance(layer.flow, SummarisedFlow):
            found: Tensor = layer.flow.network(scaled)
            return found
    return scaled


def has_summary(flow: Flow) -> bool:
    """Tell whether a flow has a summary network."""
    return any(isinstance(layer.flow, SummarisedFlow) for layer in flow.layers())
