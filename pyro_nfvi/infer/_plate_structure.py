"""The structure of a model by its plates, and whether it asks for a plate flow."""

from __future__ import annotations

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
    """

    dim: int
    in_plates: int
    local: tuple[str, ...]
    subsampled: tuple[str, ...]

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
            inside = [
                f.name
                for f in stack
                if f.name in with_data and int(f.full_size or f.size) >= PLATES.least_rows
            ]
            if inside:
                in_plates += size
                local |= dict.fromkeys(inside)
        return cls(dim, in_plates, tuple(local), tuple(subsampled))

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
