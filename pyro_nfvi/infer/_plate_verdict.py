"""The verdict on a fit of globals and rows, and its report."""

from __future__ import annotations

from typing import Protocol

from pyro_nfvi._optim.stop_reason import StopReason
from pyro_nfvi._pyro_model.latent_space import LatentSpace
from pyro_nfvi.diagnostics._khat import TailReading
from pyro_nfvi.diagnostics._verdict import BAD, GOOD, USABLE, Cause, Verdict, judge_weights
from pyro_nfvi.guides._auto_plate_flow import AutoPlateFlow
from pyro_nfvi.infer._checks.row_weights import RowGaps
from pyro_nfvi.infer._findings import CrossedPlates, Level, RowsUnseen, find
from pyro_nfvi.infer._recipe import PLATES
from pyro_nfvi.infer._training import Training
from pyro_nfvi.infer._weighted_draws import WeighedDraws

_NEXT_UNWEIGHED = (
    "The rows that were examined are close to their posterior given the globals, whose own means "
    "and sds nothing has checked: compare them with a fit of fewer rows."
)


class FittedRows(Protocol):
    """The parts of a fit of rows that its verdict and its report read."""

    @property
    def guide(self) -> AutoPlateFlow:
        """The trained guide."""

    @property
    def draws(self) -> WeighedDraws:
        """Draws of the globals with both densities."""

    @property
    def rows(self) -> tuple[RowGaps, ...]:
        """Examined rows."""

    @property
    def training(self) -> Training:
        """Record of the training."""

    @property
    def latent(self) -> LatentSpace:
        """The latent sites of all rows."""

    @property
    def why_stopped(self) -> StopReason:
        """Reason for which training ended."""

    @property
    def elbo(self) -> float:
        """Evidence lower bound, in nats."""

    @property
    def elbo_se(self) -> float:
        """Its standard error."""

    @property
    def tail(self) -> TailReading:
        """Reading of k-hat of the globals."""

    @property
    def verdict(self) -> Verdict:
        """Trust in the fit."""


def verdict(fit: FittedRows) -> Verdict:
    """See :attr:`PlateFit.verdict`."""
    sentences: dict[Level, list[str]] = {level: [] for level in Level}
    for found in fit.training.findings:
        if sentence := found.sentence():
            sentences[found.level].append(sentence)
    faults, doubts = sentences[Level.FAULT], sentences[Level.DOUBT]
    why = fit.why_stopped
    if why == "diverged":
        faults.append("the fit diverged")
    remarks = list(sentences[Level.REMARK])
    if why in ("max_steps", "max_seconds") and why.unfinished:
        remarks.append(f"training was cut short: {why.detail}")
    if fit.draws.exact and fit.draws.z.shape[-1]:
        names = [
            fit.latent.at(int(place))
            for block in fit.guide.layout.blocks
            if not block.plates
            for place in block.positions.reshape(-1)
        ]
        word = judge_weights(
            fit.draws.z, fit.draws.log_w, name=lambda i: names[i], faults=faults, doubts=doubts
        )
        reasons, next_step, cause = list(word.reasons), word.next_step, word.cause
        if word not in (GOOD, BAD):
            next_step = "Train for more steps, max_steps=..., or with a larger flow."
        said = str(word)
        if said != BAD:
            reasons = [f"globals: {one}" if one in word.reasons[:1] else one for one in reasons]
    elif faults:
        said, reasons, cause = BAD, [*faults, *doubts], Cause.FAULT
        next_step = "Mend what is named, and fit again."
    elif doubts:
        # Where nothing but the weights of globals is missing, the rows have been looked at.
        unweighed = all(
            isinstance(one, RowsUnseen) and not one.grave
            for one in fit.training.findings
            if one.level is Level.DOUBT and one.sentence()
        )
        said, reasons, cause = USABLE if unweighed else BAD, [*doubts], Cause.DOUBT
        crossed = find(fit.training.findings, CrossedPlates)
        next_step = _NEXT_UNWEIGHED if unweighed else "Train for more steps, max_steps=..."
        if crossed is not None:
            next_step = (
                f"Put the rows of {crossed.small!r} with the globals, joint=[{crossed.small!r}]."
            )
    else:
        said, cause = GOOD, Cause.NONE
        reasons = ["the rows that were examined are close to their posterior"]
        next_step = "Use the draws."
    if said != BAD or not faults:
        reasons += remarks
    return Verdict(said, reasons, next_step, cause)


def _tails(rows: RowGaps) -> str:
    """Say in how many rows k-hat is too large, and in how many of them it counts."""
    long = rows.long_tails()
    if not bool(long.any()):
        middle, most = float(rows.khat.median()), float(rows.khat.max())
        return f"k-hat {middle:.2f} in the median, {most:.2f} at most"
    even = int((long & rows.nearly_even()).sum())
    told = f"k-hat above {PLATES.row_khat} in {int(long.sum())}"
    if not even:
        return told
    all_of = "all" if even == int(long.sum()) else str(even)
    return (
        f"{told}, {all_of} of them with weights nearly even (gap below {PLATES.row_even} nats), "
        "where it is of no account"
    )


def report(fit: FittedRows) -> str:
    """Describe the guide, its training, and its quality, a line each."""
    training, layout = fit.training, fit.guide.layout
    settings = training.settings
    count = sum(p.numel() for p in fit.guide.parameters())
    parts = [
        f"{b.num_rows} x {b.width} in {' x '.join(map(repr, b.plates))}"
        if b.plates
        else f"{b.width} global"
        for b in layout.blocks
    ]
    lines = [
        f"{fit.latent.dim} latents ({', '.join(parts)}); guide {type(fit.guide).__name__}"
        f"({settings.flow}), {count} parameters",
        f"objective {settings.objective}, {settings.num_particles} particles, seed {settings.seed}",
        f"particles by {settings.particles_by} ({settings.particles_why})",
        f"engine {training.engine}: {training.engine_reason}",
        f"stopped: {training.why_stopped}. {training.why_stopped.detail}",
        f"time: {training.timing}, {training.timing.steps} steps of training",
        f"ELBO {fit.elbo:.3f} ± {fit.elbo_se:.3f} nats",
    ]
    for one in fit.rows:
        lines.append(
            f"{len(one.rows)} of {one.total} rows of {one.plate!r}: gap "
            f"{float(one.gap.mean()):.4f} nats in the mean, {float(one.gap.max()):.3f} at most; "
            f"{_tails(one)}; {int(one.bad().sum())} not to be trusted"
        )
    if fit.draws.exact and fit.draws.z.shape[-1]:
        effective = fit.draws.quality()[1]
        lines.append(f"globals: {fit.tail}, {effective:.0f} of {len(fit.draws.z)} draws effective")
    word = fit.verdict
    lines.append(f"verdict: {word} ({'; '.join(word.reasons)}). {word.next_step}")
    return "\n".join([*lines, *training.notes])
