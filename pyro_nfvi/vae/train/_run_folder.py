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
from torch import Tensor, nn

from pyro_nfvi._files.atomic_files import remove_drafts, whole_file
from pyro_nfvi._files.fit_files import read_file, write_file
from pyro_nfvi._optim.snapshot import Snapshot, check_optimizer
from pyro_nfvi._optim.torch_optimizers import Adam, Adamax
from pyro_nfvi._train.checkpoint import packed, unpacked
from pyro_nfvi.errors import FileError, OptionError
from pyro_nfvi.infer._file_checks import bounded, check_state
from pyro_nfvi.vae._architecture import rebuilt
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae.train._options import migrated
from pyro_nfvi.vae.train._rates import Rates
from pyro_nfvi.vae.train._weight_average import WeightAverage

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


@dataclass(frozen=True)
class RunState:
    """Everything that training changes and that holds tensors.

    Attributes:
        vae: The VAE.
        rates: Its optimiser and the scheduler.
        average: The average of its weights, or None.
    """

    vae: FlowVAE
    rates: Rates
    average: WeightAverage | None = None

    def tensors(self) -> dict[str, Any]:
        """Return what a file holds."""
        found: dict[str, Any] = {
            "vae": self.vae.state_dict(),
            "optimizer": self.rates.optimizer.state_dict(),
            "scheduler": self.rates.state(),
        }
        if self.average is not None:
            found["average"] = self.average.state()
        return found

    def load(self, tensors: dict[str, Any], step: int) -> None:
        """Put everything into the state of a file.

        Args:
            tensors: What the file holds.
            step: Steps taken until then.
        """
        check_state(self.vae.state_dict(), tensors["vae"])
        self.vae.load_state_dict(tensors["vae"])
        optimizer = self.rates.optimizer
        optimizer.load_state_dict(tensors["optimizer"])
        check_optimizer(optimizer, shapes=type(optimizer) in _ELEMENTWISE)
        if "scheduler" in tensors:
            self.rates.load(tensors["scheduler"])
        else:  # of an earlier version
            self.rates.catch_up(step)
        if self.average is not None:
            self.average.load(tensors["average"])


#: Optimisers whose state has the shape of the parameters; of others nothing is known.
_ELEMENTWISE = (
    torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam,
    torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, Adam, Adamax,
)  # fmt: skip


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
        state: RunState,
        progress: Progress,
        spec: dict[str, Any],
        good: Snapshot | None = None,
    ) -> None:
        """Write everything that is needed to go on as if nothing had happened.

        Args:
            state: What training changes.
            progress: The run's position.
            spec: What has to be the same for a run to go on.
            good: The state to go back to from bad steps; None where it is the present one.
        """
        tensors = {**state.tensors(), "rng": torch.get_rng_state()}
        if good is not None:
            tensors["good"] = packed(good)
        write_file(self.last, _KIND, {**spec, "progress": asdict(progress)}, tensors)

    def load_last(
        self,
        state: RunState,
        spec: dict[str, Any],
        device: torch.device,
        trained: Sequence[Tensor],
        *,
        new_rate: bool = False,
    ) -> tuple[Progress, Snapshot | None]:
        """Put VAE, optimiser and scheduler into the state of ``last.pt``.

        Args:
            state: What training changes.
            spec: What has to be the same for a run to go on.
            device: Device of the tensors.
            trained: What steps change: the tensors of a state to go back to.
            new_rate: Other learning rates are no other run.

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
        self._compare(spec, theirs, new_rate=new_rate)
        try:
            state.load(tensors, int(theirs["progress"]["step"]))
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

    def _compare(self, spec: dict[str, Any], theirs: dict[str, Any], *, new_rate: bool) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            FileError: It is one; the message says what differs.
        """
        for part in ("architecture", "options", "data", "rates"):
            if part == "rates" and (new_rate or part not in theirs or part not in spec):
                continue
            ours, other = spec[part], theirs.get(part)
            if part == "options" and isinstance(other, dict):
                # Those of the command, which an earlier version may have written.
                other = migrated(other) if "flow" in other else other
                if new_rate:
                    ours, other = ({**one, "lr": None} for one in (ours, other))
            if ours != other:
                cure = "To go on at other rates: new_rate=True (--new-rate). " * (part == "rates")
                raise FileError(
                    f"{self.last} is of another run: {_difference(part, ours, other)}. {cure}Give "
                    "the options of that run, or another folder (--out)."
                )

    def load_best(self, vae: FlowVAE, device: torch.device) -> None:
        """Put the parameters of ``best.pt`` into a VAE of this run."""
        _, tensors = read_file(self.best, _KIND, device)
        vae.load_state_dict(tensors["vae"])

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


def load(
    path: str | os.PathLike[str],
    *,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    map_location: Any = "cpu",
    **parts: Any,
) -> FlowVAE:
    """Bring back a VAE that :func:`fit` or ``python -m pyro_nfvi.vae.train`` wrote.

    Encoders and decoders of this package are built from their description. Of nets of your own the
    file holds the weights alone, since loading runs no code of the file: pass new ones of the same
    make, which take them over.

    Args:
        path: ``best.pt`` or ``last.pt``, or the run's folder, whose ``best.pt`` is taken.
        encoder: The encoder, where it is one of your own.
        decoder: The decoder, where it is one of your own.
        map_location: Device for its tensors.
        **parts: ``flow``, ``prior`` or ``likelihood``, where the VAE had one of your own.

    Raises:
        FileError: No such file, truncated, or something else; or a part of your own is missing.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from torch import nn
        >>> from pyro_nfvi import vae
        >>> class Encoder(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         loc, raw = self.linear(x).chunk(2, -1)
        ...         return loc, raw.exp()
        >>> model = vae.FlowVAE(Encoder(), nn.Linear(2, 4), latent_dim=2, flow="planar*2")
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> run = vae.fit(model, torch.ones(20, 4), out=folder, epochs=1, progress=False)
        >>> found = vae.load(folder, encoder=Encoder(), decoder=nn.Linear(2, 4))
        >>> torch.equal(found.decoder.weight, model.decoder.weight)
        True
    """
    target = Path(path)
    spec, tensors = read_file(
        target / "best.pt" if target.is_dir() else target, _KIND, map_location
    )
    given = {"encoder": encoder, "decoder": decoder, **parts}
    given = {name: part for name, part in given.items() if part is not None}
    try:
        with bounded(tensors):
            vae = rebuilt(spec["architecture"], given)
        check_state(vae.state_dict(), tensors["vae"])
        vae.load_state_dict(tensors["vae"])
    except OptionError as error:
        raise FileError(f"{target}: {error}") from error
    except Exception as error:  # descriptions can be wrong in every way there is
        raise FileError(
            f"{target} does not describe a VAE of this version{' with these parts' * bool(given)}: "
            f"{str(error)[:600]}"
        ) from error
    return vae.to(map_location)
