"""Files of a training run: checkpoints that are whole or not there, and a log in step with them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi._files.atomic_files import remove_drafts, whole_file
from pyro_nfvi._files.fit_files import read_file, write_file
from pyro_nfvi._optim.snapshot import Snapshot, check_optimizer
from pyro_nfvi._train.checkpoint import packed, unpacked
from pyro_nfvi.errors import FileError
from pyro_nfvi.infer._file_checks import bounded, check_state
from pyro_nfvi.vae._architecture import Architecture
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae.train._options import migrated

_KIND = "VAE"


@dataclass
class Progress:
    """The position of a run: all of its state that is not a tensor.

    Attributes:
        epoch: Epochs completed.
        batch: Batches of the present epoch that are done: the sampler's position.
        step: Steps taken.
        best: Lowest negative ELBO of the validation images; infinite before the first.
        best_epoch: Epoch of it.
        stale: Epochs after the warm-up without a better one.
        skipped: Steps skipped because a gradient was not finite.
        bad_in_a_row: Of them, the last ones in a row.
        rate: Factor on the learning rate, which is halved when an earlier state comes back.
        restores: Steps after which one did.
        sums: Sums of the present epoch: bound, reconstruction, KL, number of images.
        kl_weight: Weight of the KL divergence in the last step.
        done: Why the run ended; empty while it goes on.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = float("inf")
    best_epoch: int = 0
    stale: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    rate: float = 1.0
    restores: list[int] = field(default_factory=list)
    sums: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    kl_weight: float = 1.0
    done: str = ""


class RunFolder:
    """The folder of a run: ``last.pt``, ``best.pt``, ``log.jsonl``, ``config.json``.

    Args:
        path: The folder; made if it is not there.

    Raises:
        FileError: The folder cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(
                f"The folder {self.path} cannot be made: {error.strerror}. Take another --out."
            ) from error

    @property
    def last(self) -> Path:
        """The newest state, to go on from."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The parameters that were best on the validation images."""
        return self.path / "best.pt"

    @property
    def log(self) -> Path:
        """One line of JSON per epoch."""
        return self.path / "log.jsonl"

    def save_best(self, vae: FlowVAE, spec: dict[str, Any]) -> None:
        """Write the parameters."""
        write_file(self.best, _KIND, spec, {"vae": vae.state_dict()})

    def save_last(
        self,
        vae: FlowVAE,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        spec: dict[str, Any],
        good: Snapshot | None = None,
    ) -> None:
        """Write everything that is needed to go on as if nothing had happened.

        Args:
            vae: The VAE.
            optimizer: Its optimiser.
            progress: The run's position.
            spec: What has to be the same for a run to go on.
            good: The state to go back to from bad steps; None where it is the present one.
        """
        tensors: dict[str, Any] = {
            "vae": vae.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if good is not None:
            tensors["good"] = packed(good)
        write_file(self.last, _KIND, {**spec, "progress": asdict(progress)}, tensors)

    def load_last(
        self,
        vae: FlowVAE,
        optimizer: torch.optim.Optimizer,
        spec: dict[str, Any],
        device: torch.device,
        trained: Sequence[Tensor],
    ) -> tuple[Progress, Snapshot | None]:
        """Put VAE and optimiser into the state of ``last.pt``.

        Args:
            vae: The VAE.
            optimizer: Its optimiser.
            spec: What has to be the same for a run to go on.
            device: Device of the tensors.
            trained: What steps change: the tensors of a state to go back to.

        Returns:
            The run's position, and the state to go back to, None where it is the present one.

        Raises:
            FileError: The file is damaged, or of another run; the message says what differs.
        """
        try:
            theirs, tensors = read_file(self.last, _KIND, device)
        except FileError as error:
            kept = f" {self.best} is still there." if self.best.exists() else ""
            raise FileError(
                f"{error}{kept} To train anew in this folder: --overwrite instead of --resume."
            ) from error
        for part in ("architecture", "options", "data"):
            ours, other = spec[part], theirs.get(part)
            if part == "options" and isinstance(other, dict) and other:
                other = migrated(other)
            if ours != other:
                raise FileError(
                    f"{self.last} is of another run: {_difference(part, ours, other)}. Give the "
                    "options of that run, or another --out."
                )
        try:
            check_state(vae.state_dict(), tensors["vae"])
            vae.load_state_dict(tensors["vae"])
            optimizer.load_state_dict(tensors["optimizer"])
            check_optimizer(optimizer)
            torch.set_rng_state(tensors["rng"].cpu())
            known = {one.name for one in fields(Progress)}
            held = {key: value for key, value in theirs["progress"].items() if key in known}
            held["sums"] = tuple(held["sums"])
            held["restores"] = [int(step) for step in held.get("restores", ())]
            good = tensors.get("good")
            shots = {} if good is None else unpacked({"good": good}, trained)
            return Progress(**held), shots.get("good")
        except Exception as error:  # descriptions can be wrong in every way there is
            raise FileError(f"{self.last} does not fit this VAE: {str(error)[:600]}") from error

    def held(self, name: str) -> Any:
        """Return what the checkpoint says under a name; None where nothing can be read."""
        try:
            spec, _ = read_file(self.last, _KIND)
        except FileError:
            return None
        return spec.get(name) if isinstance(spec, dict) else None

    def clear_strays(self) -> None:
        """Remove what a run that was killed while it wrote a checkpoint left beside it."""
        for target in (self.last, self.best):
            remove_drafts(target)

    def append(self, line: dict[str, Any]) -> None:
        """Add a line to the log."""
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise FileError(f"{self.log} cannot be written: {error.strerror}.") from error

    def lines(self) -> list[dict[str, Any]]:
        """Read the log; a line that was cut off is left out."""
        found = []
        text = self.log.read_text("utf-8") if self.log.exists() else ""
        for line in text.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    def rewind(self, epoch: int) -> None:
        """Drop lines of epochs that the checkpoint does not know; all of them with 0."""
        kept = [json.dumps(line) for line in self.lines() if line["epoch"] <= epoch]
        self.write("log.jsonl", "".join(line + "\n" for line in kept))

    def write_arrays(self, name: str, **arrays: Any) -> Path:
        """Write arrays of NumPy as an npz file, whole or not at all."""
        held = io.BytesIO()
        np.savez(held, **arrays)
        return self._write(name, held.getvalue())

    def write(self, name: str, text: str) -> Path:
        """Write a small text file, whole or not at all."""
        return self._write(name, text.encode())

    def _write(self, name: str, content: bytes) -> Path:
        target = self.path / name
        with whole_file(target) as draft:
            draft.write_bytes(content)
        return target


def _difference(part: str, ours: Any, theirs: Any) -> str:
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return f"its {part} is {theirs!r}, not {ours!r}"
    keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
    return ", ".join(f"its {key} is {theirs.get(key)!r}, not {ours.get(key)!r}" for key in keys[:3])


def load_vae(path: str | os.PathLike[str], *, map_location: Any = "cpu") -> FlowVAE:
    """Bring back a VAE that ``python -m pyro_nfvi.vae.train`` wrote.

    Args:
        path: ``best.pt`` or ``last.pt``, or the run's folder, whose ``best.pt`` is taken.
        map_location: Device for its tensors.

    Raises:
        FileError: No such file, truncated, or something else.

    Example:
        >>> import tempfile
        >>> from pyro_nfvi.vae import load_vae
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> from pyro_nfvi.vae.train._run_folder import RunFolder
        >>> architecture = Architecture((4, 4), latent_dim=2, flow="planar*2", hidden=(8,))
        >>> folder = RunFolder(tempfile.mkdtemp())
        >>> folder.save_best(architecture.build(seed=0), {"architecture": architecture.spec()})
        >>> load_vae(folder.path).latent_dim
        2
    """
    target = Path(path)
    spec, tensors = read_file(
        target / "best.pt" if target.is_dir() else target, _KIND, map_location
    )
    try:
        with bounded(tensors):
            vae = Architecture(**spec["architecture"]).build(seed=0)
        check_state(vae.state_dict(), tensors["vae"])
        vae.load_state_dict(tensors["vae"])
    except Exception as error:  # descriptions can be wrong in every way there is
        raise FileError(
            f"{target} does not describe a VAE of this version: {str(error)[:600]}"
        ) from error
    return vae.to(map_location)
