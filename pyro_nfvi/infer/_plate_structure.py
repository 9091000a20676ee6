"""The structure of a model by its plates, and whether it asks for a plate flow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyro_nfvi._pyro_model.latent_space import is_discrete, is_point_mass
from pyro_nfvi.infer._recipe import PLATES


@dataclass(frozen=True)
class PlateStructure:
    """Latents of a model by the plates that they stand in.

    Attributes:
        dim: Numbers of all latents, those of all rows of a plate that subsamples.
        in_plates: Those in plates with data inside, whose rows are many.
        local: These plates.
        subsampled: Plates with latents that subsample.
        joint: Plates that cross larger ones, whose rows go to the globals.
    """

    dim: int
    in_plates: int
    local: tuple[str, ...]
    subsampled: tuple[str, ...]
    joint: tuple[str, ...] = ()

    @classmethod
    def of(cls, trace: Trace) -> PlateStructure:
        """Read the structure from one run of the model."""
        sites = [
            site
            for site in trace.nodes.values()
            if site["type"] == "sample" and not site_is_subsample(site)
        ]
        observed = [
            {f.name for f in site["cond_indep_stack"] if f.vectorized}
            for site in sites
            if site["is_observed"]
        ]
        with_data = set().union(*observed)
        dim = in_plates = 0
        inner = dict[str, int]()
        stacks = set[frozenset[str]]()
        local, subsampled = dict[str, None](), dict[str, None]()
        for site in sites:
            if site["is_observed"] or is_discrete(site["fn"]) or is_point_mass(site):
                continue
            stack = [f for f in site["cond_indep_stack"] if f.vectorized]
            size = site["value"].numel()
            for frame in stack:
                full = int(frame.full_size or frame.size)
                if full != int(frame.size):
                    size = size * full // int(frame.size)
                    subsampled[frame.name] = None
            dim += size
            stacks.add(frozenset(f.name for f in stack))
            for frame in stack:
                inner[frame.name] = inner.get(frame.name, 0) + size
            inside = [
                f.name
                for f in stack
                if f.name in with_data and int(f.full_size or f.size) >= PLATES.least_rows
            ]
            if inside:
                in_plates += size
                local |= dict.fromkeys(inside)
        meeting = [frozenset(f.name for f in s["cond_indep_stack"] if f.vectorized) for s in sites]
        joint = _joint(stacks, meeting, inner, set(subsampled))
        return cls(dim, in_plates, tuple(local), tuple(subsampled), joint)

    @property
    def reason(self) -> str:
        """Reason for a plate flow, as a clause; empty where there is none.

        Example:
            >>> PlateStructure(1001, 1000, ("groups",), ()).reason
            "1000 of 1001 latents stand in the plate 'groups', whose rows share one flow"
        """
        if self.subsampled:
            names = ", ".join(map(repr, self.subsampled))
            return f"the plate {names} subsamples, and has latents of its own"
        enough = self.in_plates >= PLATES.least_share * self.dim
        if self.dim <= PLATES.least_dim or not enough:
            return ""
        names = ", ".join(map(repr, self.local))
        return (
            f"{self.in_plates} of {self.dim} latents stand in the plate {names}, whose rows share "
            "one flow"
        )


def crossing(
    stacks: Iterable[frozenset[str]], meeting: Iterable[frozenset[str]]
) -> tuple[frozenset[str], frozenset[str]] | None:
    """Find two sets of plates with latents that cross, and that a site ties.

    Two sets cross where neither is within the other.

    Args:
        stacks: Plates of each latent.
        meeting: Plates of each site, latent or observed.

    Example:
        >>> persons, items = frozenset({"persons"}), frozenset({"items"})
        >>> sorted(map(sorted, crossing([persons, items], [persons | items])))
        [['items'], ['persons']]
        >>> crossing([persons, persons | items], [persons | items])
    """
    known, ties = sorted(set(stacks), key=sorted), list(meeting)
    for number, one in enumerate(known):
        for other in known[number + 1 :]:
            if not (one <= other or other <= one) and any(one | other <= tie for tie in ties):
                return one, other
    return None


def _joint(
    stacks: set[frozenset[str]],
    meeting: list[frozenset[str]],
    numbers: Mapping[str, int],
    subsampled: set[str],
) -> tuple[str, ...]:
    """Return plates to put with the globals, so that no plates cross; those that may be."""
    joint: list[str] = []
    while found := crossing(stacks, meeting):
        apart = (found[0] | found[1]) - (found[0] & found[1]) - subsampled
        small = [plate for plate in apart if numbers[plate] <= PLATES.most_joint]
        if not small:
            break
        joint.append(min(sorted(small), key=lambda plate: numbers[plate]))
        stacks = {stack - set(joint) for stack in stacks}
    return tuple(joint)
