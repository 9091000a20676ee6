"""Results of many fits as files, found again by the content of what they were made from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_nfvi._files.atomic_files import whole_file
from pyro_nfvi._files.content_key import NoKey, content_key
from pyro_nfvi._files.fit_files import read_file, write_file
from pyro_nfvi._map_fits.job import FitRecord, Job, JobResult
from pyro_nfvi.errors import FileError, OptionError

#: Kind of the files of records, in their header.
_KIND = "record of a fit"


@dataclass(frozen=True)
class ResultsFolder:
    """A folder with two files for each result, ``KEY.nfvi`` (the fit) and ``KEY.record``.

    The record is written last, so that a result is whole or not there. Results of several calls and
    of several processes may lie in one folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @staticmethod
    def open(path: str | os.PathLike[str]) -> ResultsFolder:
        """Make the folder if it is not there, and see that it can be written to.

        Raises:
            FileError: It cannot be made, is a file, or is read-only.
        """
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(
                f"The folder {folder} for results cannot be made: {error.strerror or error}. Give "
                "another one."
            ) from error
        probe = folder / ".writable"
        with whole_file(probe, "result of a fit") as draft:
            draft.write_bytes(b"")
        probe.unlink(missing_ok=True)
        return ResultsFolder(folder)

    def fit_path(self, key: str) -> Path:
        """Return the path of a fit."""
        return self.path / f"{key}.nfvi"

    def read(self, key: str, job: Job) -> JobResult | None:
        """Return a result without the bytes of its fit; None where it is not there, or damaged."""
        path = self.path / f"{key}.record"
        if not path.is_file() or (job.keep_fit and not self.fit_path(key).is_file()):
            return None
        try:
            spec, tensors = read_file(path, _KIND)
            found = {**spec["record"], "warnings": tuple(spec["record"]["warnings"])}
            measured: dict[str, Tensor] = tensors["measured"]
            if job.keep_fit and self.fit_path(key).stat().st_size != spec["fit_size"]:
                return None
            return JobResult(FitRecord(**found), measured)
        except (FileError, KeyError, TypeError, OSError):
            return None

    def write(self, key: str, result: JobResult) -> JobResult:
        """Write a result; return it without the bytes of its fit, or with why it is not written.

        A fit of which something else failed is written too, but counts as not done.
        """
        try:
            if result.fit:
                with whole_file(self.fit_path(key), "fit") as draft:
                    draft.write_bytes(result.fit)
            if not result.error:
                spec: dict[str, Any] = {
                    "record": asdict(result.record), "fit_size": len(result.fit),
                }  # fmt: skip
                tensors = {"measured": dict(result.measured)}
                write_file(self.path / f"{key}.record", _KIND, spec, tensors)
        except FileError as error:
            return replace(result, fit=b"", error=f"FileError: {error}")
        return replace(result, fit=b"")


def keys_of(jobs: Sequence[Job]) -> list[str]:
    """Return the key of each job.

    Raises:
        OptionError: A job holds something that cannot be told apart from others.
    """
    known: dict[int, tuple[Any, str]] = {}
    keys = []
    for number, job in enumerate(jobs):
        try:
            keys.append(content_key(job.content(), known))
        except NoKey as error:
            raise OptionError(
                f"The results of fit {number} cannot be kept in a folder: it holds {error}, which "
                "cannot be told apart from others. Keep such objects out of the model, its "
                "arguments and its options, or give no folder."
            ) from error
    return keys
