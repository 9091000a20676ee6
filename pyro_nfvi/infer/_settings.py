"""``Settings``: what a fit was asked for, and what it chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pyro_nfvi._files.archives import Malformed


@dataclass(frozen=True)
class FittedMode:
    """A mode in a mixture fit.

    Attributes:
        weight: Its share of the posterior's mass.
        weight_se: Standard error of that; None where importance weights say nothing.
        starts: Starts that ended there.
        at: Its place: values by site, as nested lists.
    """

    weight: float
    weight_se: float | None
    starts: int
    at: Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """Result of the training of one candidate.

    Attributes:
        flow: Its formula; empty for the Gaussian.
        elbo: Its bound, in nats, and standard error ``elbo_se``.
        khat: Shape of the tail of its weights.
        ess: Effective share of its draws.
        steps: Steps that it took.
        seconds: Time that it took.
        kept: True if it was better than the one before.
        tail: Reading of ``khat``, in words.
    """

    flow: str
    elbo: float
    elbo_se: float
    khat: float
    ess: float
    steps: int
    seconds: float
    kept: bool
    tail: str = ""

    def __str__(self) -> str:
        return (
            f"{self.flow or 'Gaussian'}: ELBO {self.elbo:.3f} ± {self.elbo_se:.3f} nats, "
            f"{self.tail or f'k-hat {self.khat:.2f}'}, ESS {100 * self.ess:.0f} %, "
            f"{self.steps} steps, {self.seconds:.1f} s"
            f"{'' if self.kept else '; no better, not kept'}"
        )


@dataclass(frozen=True)
class Settings:
    """Options of a fit, and what it chose by itself.

    Attributes:
        flow: Formula of the guide's flow; empty for a Gaussian.
        objective: Name of the objective.
        num_particles: Draws in each step.
        max_steps: Most steps.
        seed: Seed of all noise.
        particles_by: How particles are evaluated: ``"plate"``, ``"vmap"`` or ``"loop"``.
        particles_why: Reason for that.
        density_by: What evaluates the log joint: ``"native"``, ``"hybrid"`` or ``"eager"``.
        density_why: Reason for that.
        modes: Modes of a mixture fit; empty for a guide of one piece.
        tried: Candidates of ``guide="auto"``; empty for a guide that was asked for.

    Example:
        >>> settings = Settings(flow="iaf*2", seed=3)
        >>> Settings.from_json(settings.to_json()) == settings
        True
    """

    flow: str = ""
    objective: str = ""
    num_particles: int = 0
    max_steps: int = 0
    seed: int = 0
    particles_by: str = ""
    particles_why: str = ""
    density_by: str = ""
    density_why: str = ""
    modes: tuple[FittedMode, ...] = ()
    tried: tuple[Candidate, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Describe the settings for a file."""
        held = asdict(self)
        held["modes"], held["tried"] = list(held["modes"]), list(held["tried"])
        return held

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Settings:
        """Read what :meth:`to_json` described; names that are not known are left out.

        Files of version 0.1 have findings among their settings, which are read elsewhere.

        Raises:
            Malformed: A value that is not of its kind.
        """
        known = {one.name: held[one.name] for one in fields(cls) if one.name in held}
        known["modes"] = tuple(_made(FittedMode, one) for one in known.get("modes", ()))
        known["tried"] = tuple(_made(Candidate, one) for one in known.get("tried", ()))
        made = cls(**known)
        for one in fields(cls):
            default, value = one.default, getattr(made, one.name)
            if type(value) is not type(default):
                raise Malformed(f"its setting {one.name} is {str(value)[:40]!r}")
        return made


def _made(kind: type[Any], held: Any) -> Any:
    """Make a record of a mapping of its fields, each of which has a value of its type."""
    if not isinstance(held, Mapping):
        raise Malformed(f"a {kind.__name__} is {str(held)[:40]!r}")
    made = kind(**held)
    types: dict[str, type | tuple[type, ...]] = {
        "bool": bool,
        "int": int,
        "float": (int, float),
        "str": str,
    }
    for one in fields(kind):
        value, name = getattr(made, one.name), str(one.type)
        wanted = types.get(name.removesuffix(" | None"))
        fits = isinstance(value, Mapping) if wanted is None else isinstance(value, wanted)
        if not (fits or (value is None and name.endswith("| None"))):
            raise Malformed(f"the {one.name} of a {kind.__name__} is {str(value)[:40]!r}")
    return made
