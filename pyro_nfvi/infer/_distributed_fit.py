"""A fit by several processes of torchrun: the first one decides, all evaluate particles."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pyro_nfvi._error_text import first_line
from pyro_nfvi._files.fingerprint import fingerprint
from pyro_nfvi._processes.exchange import Exchange, ProcessLost
from pyro_nfvi._processes.process_group import join_processes
from pyro_nfvi._processes.recipe import WAITS
from pyro_nfvi._processes.row_service import RowService
from pyro_nfvi._processes.tasks import inside_task
from pyro_nfvi._pyro_model.batch_model import BatchModel
from pyro_nfvi._pyro_model.recipe import ROWS
from pyro_nfvi._train.distributed_density import DistributedDensity, own_rows
from pyro_nfvi.errors import FileError, ModelError, NFVIError, OptionError
from pyro_nfvi.infer._fit import Fit
from pyro_nfvi.infer._plate_fit import PlateFit
from pyro_nfvi.infer._problem import Problem


@dataclass(frozen=True)
class DistributedFit:
    """The processes of a fit, and which of them this one is.

    Attributes:
        exchange: The processes, joined by gloo; the first one fits.
    """

    exchange: Exchange

    @property
    def leads(self) -> bool:
        """Tell whether this process fits, prints and writes."""
        return self.exchange.leads

    def agree(self, seed: int | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """See that all processes came for the same fit.

        Raises:
            OptionError: One did not come, or has other data or another seed.
        """
        try:
            dist.monitored_barrier(self.exchange.group, WAITS.meeting, wait_all_ranks=True)
        except RuntimeError as error:
            raise OptionError(
                f"Not all of the {self.exchange.size} processes called run(): "
                f"{str(error).splitlines()[0]} Call it in every process, or unset WORLD_SIZE in "
                "one that fits alone."
            ) from error
        mine = (seed, fingerprint(args, dict(kwargs))["arguments"])
        for rank, (other, data) in enumerate(self.exchange.all(mine)):
            what = "data" if data != mine[1] else "another seed" if other != seed else ""
            if what:
                raise OptionError(
                    f"Process {rank} fits with {what} other than process {self.exchange.rank}'s: "
                    "processes of torchrun share one fit, and each takes a part of its particles. "
                    "Give all of them the same data and seed; for several fits use map_fits."
                )

    def agree_on_rows(self, model: BatchModel) -> None:
        """See that the loaders of all processes have the same rows, by the data of some.

        Raises:
            OptionError: One has others, or in another order.
        """
        source = model.source
        count = min(source.num_rows, max(source.batch_size, ROWS.compared))
        rows = torch.linspace(0, source.num_rows - 1, count, dtype=torch.float64).long().unique()
        mine = fingerprint(*source.batch(rows))["arguments"]
        for rank, other in enumerate(self.exchange.all(mine)):
            if other != mine:
                raise OptionError(
                    f"The loader of process {rank} has other rows than that of process "
                    f"{self.exchange.rank}, or the same in another order. Each process needs the "
                    "whole loader, and row i is the same in all: leave shuffling and the division "
                    "over processes out, as rows are drawn by the seed of the fit. A DataLoader "
                    "over a map-style data set without random transforms is right whatever its "
                    "sampler."
                )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do something in all processes; an error in one ends it in all.

        Raises:
            ModelError: Another process failed; the message names it.
        """
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            mine = error
        texts = self.exchange.all("" if mine is None else first_line(mine))
        if mine is not None:
            raise mine
        for rank, text in enumerate(texts):
            if text:
                raise ModelError(f"Process {rank} could not set up the fit: {text}")

    def fit(
        self,
        problem: Problem,
        stages: Callable[[Problem], Fit | PlateFit],
        follow: Callable[[Any], object] | None = None,
    ) -> Fit | PlateFit | bytes:
        """Run the stages in the first process, with the particles of all.

        Args:
            problem: The posterior, set up in every process.
            stages: Makes the fit of a posterior.
            follow: What the other processes do when the stages call on them for more than rows.

        Returns:
            The fit; in the other processes the bytes of its file.

        Raises:
            ModelError: The model has other latents in another process.
            NFVIError: The first process failed; the message is its.
            ProcessLost: A process is gone.
        """
        log_joint, alone = problem.log_joint, problem.log_joint.compiled
        sites = repr(problem.latent.spec()["sites"])
        if any(other != sites for other in self.exchange.all(sites)):
            raise ModelError(
                "The model has other latent sites in some of the processes. Run the same script in "
                "all of them, without a branch by RANK before the fit."
            )
        service = RowService(
            own_rows(log_joint, alone),
            tuple(log_joint.subsampled),
            problem.latent.dim,
            self.exchange,
            _nothing if follow is None else follow,
        )
        if not self.leads:
            service.serve()
            answer = self.exchange.from_first(None)
            if isinstance(answer, str):
                raise NFVIError(f"There is no fit of the first process: {answer}")
            return bytes(answer)
        log_joint.use(DistributedDensity(log_joint, alone, service, self.exchange.size))
        told: str | bytes = "it was ended"
        try:
            note = f"particles were split over {self.exchange.size} processes"
            if log_joint.named_parameters() and follow is None:
                note = (
                    "the first process evaluated all particles, since the model's parameters train"
                )
            fit = stages(replace(problem, notes=(*problem.notes, note)))
            told = _bytes(fit)
        except ProcessLost:
            raise
        except BaseException as error:
            told = first_line(error)
            self._finish(service, told)
            raise
        finally:
            if isinstance(log_joint.compiled, DistributedDensity):
                log_joint.use(alone)  # later calls are of one process
        self._finish(service, told)
        return fit

    def _finish(self, service: RowService, told: str | bytes) -> None:
        service.end()
        self.exchange.from_first(told)


@contextmanager
def explaining_lost_processes() -> Iterator[None]:
    """Raise the loss of a process as an error that says what to do."""
    try:
        yield
    except ProcessLost as error:
        raise NFVIError(
            f"A process of the fit is gone ({error}): it was killed, ran out of memory, or its "
            "machine is lost. Start the script again; with checkpoint=path and resume=True the fit "
            "goes on from its last checkpoint."
        ) from error


def distributed_fit() -> DistributedFit | None:
    """Return the processes that torchrun started; None where this one is alone.

    A task of :func:`pyro_nfvi.map_fits` is alone, wherever it runs.

    Raises:
        OptionError: The processes cannot meet.
    """
    if inside_task():
        return None
    joined = join_processes(WAITS.idle)
    if joined is None:
        return None
    place, group = joined
    return DistributedFit(Exchange(place.rank, place.size, group))


def _nothing(_: object) -> None:
    """Do nothing: rows are all that a fit of one vector asks of other processes."""


def _bytes(fit: Fit | PlateFit) -> bytes | str:
    """Return the bytes of a fit's file, or why there can be none."""
    with tempfile.TemporaryDirectory(prefix="nfvi-") as folder:
        path = Path(folder) / "fit.nfvi"
        try:
            fit.save(path)
        except FileError as error:
            return f"it is done there, and cannot be sent to the others: {error}"
        return path.read_bytes()
