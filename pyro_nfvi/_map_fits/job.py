"""One fit as a task: what it is made of, and what comes back in words, numbers and bytes."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyro_nfvi._error_text import first_line
from pyro_nfvi._map_fits.spec import FitSpec
from pyro_nfvi._typing import TensorDict
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._nfvi import NFVI
from pyro_nfvi.infer._plate_fit import PlateFit

#: What a task computes from its fit, where it ran.
Measure = Callable[[Any], TensorDict]


@dataclass(frozen=True)
class Job:
    """One fit to be made.

    Attributes:
        spec: The fit.
        measure: Computes tensors from it; None for none.
        keep_fit: Whether the fit itself comes back.
    """

    spec: FitSpec
    measure: Measure | None = None
    keep_fit: bool = True

    def content(self) -> Any:
        """Everything that the result depends on."""
        spec = self.spec
        options = dict(sorted(spec.options.items()))
        call = (spec.args, dict(sorted(spec.kwargs.items())))
        return (spec.model, call, options, spec.seed, self.measure, self.keep_fit)


@dataclass(frozen=True)
class FitRecord:
    """One fit in numbers.

    Attributes:
        verdict: ``fit.verdict``, empty if the fit failed.
        khat: Tail of its importance weights.
        elbo: Its bound, in nats.
        elbo_se: Standard error of the bound.
        steps: Steps that it took.
        why_stopped: Why they ended.
        seconds: Time that it took.
        warnings: Names of the warnings that came with it.
    """

    verdict: str = ""
    khat: float = float("nan")
    elbo: float = float("nan")
    elbo_se: float = float("nan")
    steps: int = 0
    why_stopped: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobResult:
    """Result of a job.

    Attributes:
        record: The fit in numbers.
        measured: What was computed from it.
        fit: Bytes of the file of the fit; empty where it is not kept or failed.
        error: Why the fit, or what was computed from it, failed; empty if neither did.
    """

    record: FitRecord = FitRecord()
    measured: TensorDict = field(default_factory=dict)
    fit: bytes = b""
    error: str = ""


def do_job(job: Job) -> JobResult:
    """Make a fit; what goes wrong comes back in words, and Ctrl-C is raised."""
    spec, begin = job.spec, time.monotonic()
    record, error, held = FitRecord(), "", b""
    measured: TensorDict = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            engine = NFVI(spec.model, seed=spec.seed, progress=False, **spec.options)
            fit = engine.run(*spec.args, **spec.kwargs)
            if fit.why_stopped == "interrupted":
                raise KeyboardInterrupt
            record = _record(fit)
            held = _bytes(fit) if job.keep_fit else b""
            if job.measure is not None:
                measured = job.measure(fit)
        except Exception as failure:
            error = first_line(failure)
    names = tuple(sorted({one.category.__name__ for one in caught}))
    record = FitRecord(**{**vars(record), "seconds": time.monotonic() - begin, "warnings": names})
    return JobResult(record, measured, held, error)


def _record(fit: Fit | PlateFit) -> FitRecord:
    return FitRecord(
        str(fit.verdict), fit.khat, fit.elbo, fit.elbo_se, len(fit.losses), str(fit.why_stopped)
    )


def _bytes(fit: Fit | PlateFit) -> bytes:
    """Return the bytes of the file of a fit, which any executor can carry."""
    with tempfile.TemporaryDirectory(prefix="nfvi-") as folder:
        path = os.path.join(folder, "fit.nfvi")
        fit.save(path)
        with open(path, "rb") as file:
            return file.read()
