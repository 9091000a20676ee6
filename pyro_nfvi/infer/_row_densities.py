"""Predictive densities of the data of rows: those of a fit, and new ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_nfvi._eval_mode import scoring
from pyro_nfvi._pyro_model.batch_model import BatchModel
from pyro_nfvi._pyro_model.forward_model import ForwardModel
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi._pyro_model.log_joint import LogJoint
from pyro_nfvi._pyro_model.plate_layout import PlateLayout
from pyro_nfvi._pyro_model.row_terms import row_likelihoods, row_terms
from pyro_nfvi._random import seeded, stream
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import DataWarning, ModelError
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._checks.row_weights import batches_of, inside, row_log_q
from pyro_nfvi.infer._plate_predict import RowPlan
from pyro_nfvi.infer._recipe import PLATES, WORDS


@dataclass(frozen=True)
class RowDensities:
    """Log predictive densities of the rows of a plate.

    Attributes:
        plate: Name of the plate.
        rows: Numbers of the rows ``(R,)``.
        log_density: Log density of the data of each row ``(R,)``, in nats, float64.
        error: Its standard error over the draws.
        effective: Effective number of the draws from which it is.
    """

    plate: str
    rows: Tensor
    log_density: Tensor
    error: Tensor
    effective: Tensor


def row_densities(
    guide: AutoPlateFlow,
    log_joint: LogJoint,
    plan: RowPlan,
    plate: str,
    rows: Tensor,
    count: int,
    seed: int,
) -> RowDensities:
    """Score data row by row; see :meth:`PlateFit.log_predictive`.

    Args:
        guide: The guide.
        log_joint: The log joint of the fit.
        plan: The data, and of which rows they are.
        plate: The plate.
        rows: Its rows.
        count: Number of draws.
        seed: Seed of all noise.
    """
    strays = sorted(plan.anew - {plate})
    if strays:
        raise ModelError(
            f"The rows of the plate {strays[0]!r} are new ones, and those of {plate!r} are to be "
            f"scored: their latents would be drawn by the data that are scored. Score the new "
            f"rows, plate={strays[0]!r}."
        )
    if plan.drawn and plate in plan.coded:
        raise ModelError(
            f"New rows of the plate {plate!r} are known by their data; with from_prior their "
            "density would be that of the prior. Leave from_prior out."
        )
    scorer = _Scorer(guide, log_joint, plan, plate, count, seed)
    subsampled = {name: (plan.sizes[name], size) for name, size in plan.counts.items()}
    batches = batches_of(subsampled, plate, rows, plan.sizes[plate], seed)
    parts = []
    for number, (batch, own) in enumerate(batches):
        known = {p: torch.arange(n) for p, n in plan.sizes.items() if p in guide.layout.sizes}
        ratios = scorer.at(known | batch, batch, number)
        parts.append(ratios[:, own])
    log_w = torch.cat(parts, 1).cpu()
    level = log_w.logsumexp(0) - math.log(count)
    weights = (log_w - level).exp()
    effective = weights.sum(0).square() / weights.square().sum(0)
    few = rows[(effective < PLATES.predictive_draws).nonzero()[:, 0]]
    if len(few):
        named = ", ".join(str(int(row)) for row in few[: WORDS.named])
        warn(
            f"The densities of {len(few)} of {len(rows)} rows of {plate!r} rest on fewer than "
            f"{PLATES.predictive_draws:.0f} effective draws (rows {named}"
            f"{', ...' * (len(few) > WORDS.named)}): their errors may be larger than stated. Take "
            "more draws, num_samples=...",
            DataWarning,
        )
    error = weights.std(0) / math.sqrt(count) if count > 1 else torch.full_like(level, math.nan)
    return RowDensities(plate, rows, level, error, effective)


class _Scorer:
    """Log ratios of the rows of one plate, batch by batch, at common draws of all else."""

    def __init__(
        self,
        guide: AutoPlateFlow,
        log_joint: LogJoint,
        plan: RowPlan,
        plate: str,
        count: int,
        seed: int,
    ) -> None:
        self.guide, self.plan, self.plate = guide, plan, plate
        self._fitted, self._joint = log_joint, None if plan.args or plan.kwargs else log_joint
        self._count, self._seed = count, seed

    def at(self, rows: TensorDict, subsample: TensorDict, number: int) -> Tensor:
        """Score a batch: log ratios ``(S, B)``.

        Args:
            rows: Rows of all plates with latents.
            subsample: Rows of the plates that subsample.
            number: Number of the batch.
        """
        plan, guide = self.plan, self.guide
        layout = plan.layout(guide, rows)
        inner, like = inside(layout, self.plate), layout.space.init_loc
        outside = stream(self._seed, "sample", device=like.device)
        within = stream(self._seed, "densities", self.plate, number, device=like.device)
        found = []
        size = max(1, PLATES.drawn_numbers // (4 * layout.dim))
        for start in range(0, self._count, size):
            draws = min(size, self._count - start)
            eps = like.new_empty(draws, layout.dim)
            for where, noise in ((~inner, outside), (inner, within)):
                eps[:, where] = torch.randn(
                    draws, int(where.sum()), dtype=like.dtype, device=like.device, generator=noise
                )
            with torch.no_grad(), scoring(guide):
                z, ladjs = plan.bound(guide, layout).by_rows(eps)
                joint = self._log_joint(layout, rows)
                if isinstance(joint.model, BatchModel) and joint is not self._fitted:
                    subsample = subsample | {
                        name: torch.arange(n) for name, (_, n) in joint.subsampled.items()
                    }
                if self.plate in plan.coded:
                    terms, _ = row_terms(joint, z, subsample, self.plate)
                    found.append(terms - row_log_q(layout, eps, ladjs, self.plate).rows)
                    continue
                if plan.drawn:
                    z = self._with_prior(layout, z, joint, subsample)
                found.append(row_likelihoods(joint, z, subsample, self.plate))
        return torch.cat(found)

    def _log_joint(self, layout: PlateLayout, rows: TensorDict) -> LogJoint:
        """Return the log joint at the data, of as many rows as a batch has."""
        if self._joint is None:
            plan = self.plan
            full = self.guide.layout.at(rows, weighted=False, anew=plan.anew)
            space = _sized(full.space, plan.sizes)
            self._joint = LogJoint(self._fitted.model, plan.args, plan.kwargs, space)
        return self._joint

    def _with_prior(
        self, layout: PlateLayout, z: Tensor, joint: LogJoint, subsample: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the vectors with the sites that are drawn from their prior."""
        plan = self.plan
        values = plan.held(self.guide, layout.space.constrain(z)[0])
        forward = ForwardModel(joint.model, joint.args, joint.kwargs, subsample)
        left = [name for name in joint.latent.sites if name not in values]
        with seeded(self._seed, "densities"):
            forward.start({name: value[0] for name, value in values.items()})
            size = max(1, WORDS.prediction_numbers // max(1, forward.size))
            runs = list(forward.run(len(z), values, left, size))
        made = {name: torch.cat([run[name] for run in runs]) for name in left}
        return joint.latent.unconstrain(values | made)[0]


def _sized(space: LatentSpace, sizes: Mapping[str, int]) -> LatentSpace:
    """Return a space whose plates are of so many rows in all."""
    records = tuple(
        replace(
            site,
            cond_indep_stack=tuple(
                frame._replace(full_size=sizes[frame.name]) if frame.name in sizes else frame
                for frame in site.cond_indep_stack
            ),
        )
        for site in space.records
    )
    return LatentSpace(records, space.init_loc)
