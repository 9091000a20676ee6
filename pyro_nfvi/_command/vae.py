"""``pyro-nfvi vae``: training, evaluation, encoding and drawing of flow VAEs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_nfvi._command.fit import write_text
from pyro_nfvi._command.options import option
from pyro_nfvi._command.statuses import STATUSES
from pyro_nfvi._files.atomic_files import whole_file
from pyro_nfvi.errors import FileError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_nfvi.vae._model import FlowVAE


@dataclass(frozen=True)
class _Data:
    """Options of commands that read images."""

    data: str = option("", "other images than those of the run: 'digits', an npz or idx file")
    part: str = option("test", "which images", choices=("train", "valid", "test"))
    seed: int = option(0, "seed of the noise")
    quiet: bool = option(False, "no bar")


@dataclass(frozen=True)
class EvaluateOptions(_Data):
    """Options of ``pyro-nfvi vae evaluate``."""

    nll_samples: int = option(-1, "draws for the NLL of an image; -1: 5000; 0: no NLL")
    nll_images: int = option(0, "images for the NLL; 0: all")
    out: str = option("", "JSON file for the numbers")


@dataclass(frozen=True)
class EncodeOptions(_Data):
    """Options of ``pyro-nfvi vae encode``."""

    out: str = option("latents.npz", "npz file for z, loc and scale of each image")


@dataclass(frozen=True)
class GenerateOptions:
    """Options of ``pyro-nfvi vae generate``."""

    num: int = option(64, "number of images")
    label: int = option(-1, "class of the images, of a conditional VAE")
    seed: int = option(0, "seed of the draws")
    out: str = option("samples.png", "png for a picture, or npz for the numbers")


def train(arguments: Sequence[str]) -> int:
    """Train: all of ``python -m pyro_nfvi.vae.train``."""
    from pyro_nfvi.vae.train._command import main

    return main(arguments)


def _opened(run: str) -> tuple[FlowVAE, dict[str, Any]]:
    """Load the VAE of a run and the options that it was trained by."""
    from pyro_nfvi.vae.train._run_folder import load

    folder = Path(run)
    vae = load(folder)
    config = folder / "config.json"
    if not config.exists():
        return vae, {}
    try:
        held = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{config} cannot be read: {error}.") from error
    return vae, held if isinstance(held, dict) else {}


def _images(vae: FlowVAE, held: dict[str, Any], options: _Data) -> tuple[Any, Tensor, Any]:
    """Return images of a part, prepared for the VAE, and their labels; with the preparation."""
    import torch

    from pyro_nfvi._random import stream
    from pyro_nfvi.vae._pixels import choose_preparation
    from pyro_nfvi.vae.train._command import data_of
    from pyro_nfvi.vae.train._options import Options, migrated

    if not held and not options.data:
        raise OptionError("This VAE has no run's options beside it: name images by --data.")
    known = {name: value for name, value in migrated(held).items() if hasattr(Options, name)}
    run = Options(**{**known, "resume": False, "new_rate": False, **(
        {"data": options.data} if options.data else {}
    )})  # fmt: skip
    data = data_of(run)
    preparation = choose_preparation(data, vae.likelihood, run.binarize)
    place = ("train", "valid", "test").index(options.part)
    x = preparation.images(data)[place]
    if place == 0 and preparation.noisy:
        noise = torch.rand(x.shape, generator=stream(options.seed, "pixels"))
        x = preparation.draw(x, noise)
    conditional = bool(vae.condition_dim) and data.labels is not None
    return preparation, x, data.labels[place] if conditional and data.labels else None


def evaluate(run: str, options: EvaluateOptions, say: Callable[[str], None]) -> int:
    """Measure the VAE of a run on images."""
    import sys

    from pyro_nfvi.vae._evaluation import evaluate as measure

    vae, held = _opened(run)
    preparation, x, y = _images(vae, held, options)
    result = measure(
        vae, x, y,
        nll_samples=None if options.nll_samples < 0 else options.nll_samples,
        nll_images=options.nll_images or None,
        seed=options.seed,
        log_volume=preparation.log_volume(math.prod(x.shape[1:])),
        progress=not options.quiet and sys.stderr.isatty(),
    )  # fmt: skip
    say(f"{len(x)} {options.part} images\n{result}")
    if options.out:
        write_text(Path(options.out), json.dumps(result.record(), indent=1) + "\n")
    return STATUSES.good


def encode(run: str, options: EncodeOptions, say: Callable[[str], None]) -> int:
    """Write a draw of each image's posterior, with the base's location and scale."""
    import numpy as np
    import torch

    from pyro_nfvi._eval_mode import evaluation
    from pyro_nfvi._random import stream

    vae, held = _opened(run)
    _, x, y = _images(vae, held, options)
    noise, parts = stream(options.seed, "encode"), []
    with torch.no_grad(), evaluation(vae):
        for rows in torch.arange(len(x)).split(1000):
            posterior = vae.encode(x[rows], None if y is None else y[rows])
            z = posterior.draw(1, generator=noise).z[0]
            parts.append((z, posterior.loc, posterior.scale))
    arrays: dict[str, Any] = {
        name: torch.cat([part[i] for part in parts]).numpy()
        for i, name in enumerate(("z", "loc", "scale"))
    }
    if y is not None:
        arrays["label"] = y.numpy()
    with whole_file(options.out) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)
    say(f"{len(x)} {options.part} images in {options.out}: {', '.join(arrays)}.")
    return STATUSES.good


def generate(run: str, options: GenerateOptions, say: Callable[[str], None]) -> int:
    """Draw images from the VAE of a run."""
    import numpy as np
    import torch

    from pyro_nfvi._eval_mode import evaluation
    from pyro_nfvi._random import stream
    from pyro_nfvi._validation import whole

    kind = Path(options.out).suffix
    if kind not in (".png", ".npz"):
        raise OptionError(f"--out is a .png or an .npz file; got {options.out!r}.")
    num = whole("--num", options.num)
    vae, _ = _opened(run)
    y = None
    if vae.condition_dim:
        if not 0 <= options.label < vae.condition_dim:
            raise OptionError(
                f"--label is a class from 0 to {vae.condition_dim - 1}, of this conditional VAE; "
                f"got {options.label}."
            )
        y = torch.full((num,), options.label)
    with torch.no_grad(), evaluation(vae):
        x = vae.sample(num, y, generator=stream(options.seed, "samples"))
    if kind == ".npz":
        with whole_file(options.out) as draft, draft.open("wb") as file:
            np.savez(file, x=x.numpy())
    else:
        from pyro_nfvi.vae import _pictures as pictures

        columns = math.ceil(math.sqrt(num))
        rows = math.ceil(num / columns)
        figure = pictures.plot_samples(
            vae, rows=rows, columns=columns, seed=options.seed,
            y=None if y is None else y[:1].expand(rows * columns),
        )  # fmt: skip
        pictures.save_figure(figure, options.out)
    say(f"{num} images in {options.out}.")
    return STATUSES.good


def compare(runs: Sequence[str], say: Callable[[str], None]) -> int:
    """Print the results of runs side by side, the lowest NLL first."""
    lines = []
    for run in runs:
        path = Path(run) / "results.json"
        try:
            held = json.loads(path.read_text("utf-8"))
            config = json.loads((Path(run) / "config.json").read_text("utf-8"))
            nll = held.get("nll")
            lines.append((
                -held["elbo"] if nll is None else nll,
                [
                    run, config["flow"], config["data"], f"{-held['elbo']:.2f}",
                    "" if nll is None else f"{nll:.2f}", f"{held['bits']:.3f}",
                    f"{held['active']} of {held['latent_dim']}",
                ],
            ))  # fmt: skip
        except OSError as error:
            raise FileError(
                f"{run} holds no finished run: {error.filename or path} cannot be read "
                f"({error.strerror})."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise FileError(f"{path} holds no results of this version: {error!r}.") from error
    if len({line[2] for _, line in lines}) > 1:
        say("The runs are of different data, and their numbers do not compare.")
    head = ["run", "flow", "data", "-ELBO", "NLL", "bits/dim", "active units"]
    table = [head, *(line for _, line in sorted(lines, key=lambda one: one[0]))]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    for line in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    return STATUSES.good
