"""Options of a training run: one record, from the command line or a JSON file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from pyro_nfvi.errors import FileError, OptionError
from pyro_nfvi.vae._architecture import ARCHITECTURES
from pyro_nfvi.vae._likelihood_names import LIKELIHOODS
from pyro_nfvi.vae._recipe import NETWORKS, TRAINER


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass
class Options:
    """Options of a training run; ``python -m pyro_nfvi.vae.train --help`` explains each."""

    data: str = _option(
        "digits",
        "'digits', an npz file, an idx file or a folder of them, or module:function, which returns "
        "arrays",
    )
    shape: str = _option(
        "", "shape of an image, such as 28,28, where the file holds rows; the row's length for none"
    )
    levels: int = _option(
        -1, "levels of the pixels, such as 2, 17 or 256; 0: real numbers; -1: as images have them"
    )
    split_seed: int = _option(0, "seed by which test images are drawn, where the file names none")
    out: str = _option("runs/vae", "folder for checkpoints, log and pictures")
    # What is trained
    flow: str = _option("iaf*4", "formula of the flow, such as planar*16; none for a plain VAE")
    latent_dim: int = _option(NETWORKS.latent_dim, "size of the latent vector")
    nets: str = _option(
        "gated",
        f"encoder and decoder: {', '.join(ARCHITECTURES)}, or module:function, which returns them",
    )
    hidden: str = _option(",".join(map(str, NETWORKS.hidden)), "widths of the dense nets")
    context_dim: int = _option(
        -1, "size of the flow's context; -1: the encoder's last layer; 0: one flow for all images"
    )
    flow_hidden: int = _option(0, "hidden width of the flow's nets; 0: chosen by the flow")
    gate: str = _option(
        "",
        "gate of iaf and maf; chosen by the flow if not given",
        choices=("", "affine", "sigmoid"),
    )
    rank: int = _option(0, "columns of a Sylvester layer; 0: chosen by the flow")
    kind: str = _option(
        "",
        "kind of Sylvester layers; chosen by the flow if not given",
        choices=("", "qr", "householder", "triangular"),
    )
    amortize: str = _option(
        "linear", "how layers get parameters from the context", choices=("linear", "mlp")
    )
    prior: str = _option("none", "formula of a flow as prior, such as maf*2")
    modules: str = _option(
        "", "modules to import first, such as one that registers a flow: my_flows,my_nets"
    )
    conditional: bool = _option(False, "condition everything on the labels of the data")
    likelihood: str = _option(
        "bernoulli",
        "what pixels are",
        choices=tuple(name for name in LIKELIHOODS if name != "masked"),
    )
    binarize: str = _option("auto", "auto, dynamic, static, threshold, as-is or dequantize")
    # How
    epochs: int = _option(TRAINER.epochs, "passes over the training images, at most")
    batch_size: int = _option(TRAINER.batch_size, "images per step, over all processes")
    lr: float = _option(
        TRAINER.rate, "learning rate; the papers: 0.0005 with adamax, for far longer"
    )
    optimizer: str = _option("adam", "optimiser", choices=("adam", "adamax"))
    decay: str = _option("none", "decay of the rate over the run", choices=("none", "cosine"))
    clip_norm: float = _option(TRAINER.clip_norm, "largest norm of the gradient")
    accumulate: int = _option(1, "batches of a step, as if they were one")
    ema: float = _option(
        0.0,
        "decay of an average of the weights, validated and kept instead, such as 0.999; 0: none",
    )
    precision: str = _option(
        "fp32", "numbers of the nets while they train", choices=("fp32", "bf16")
    )
    objective: str = _option("elbo", "bound", choices=("elbo", "iwae"))
    estimator: str = _option(
        "total", "gradient: total, path (elbo) or dreg (iwae)", choices=("total", "path", "dreg")
    )
    num_samples: int = _option(1, "draws per image and step")
    beta: float = _option(1.0, "weight of the KL divergence after warm-up")
    warmup: float = _option(
        TRAINER.warm_up, "share of the run over which the KL weight rises (per step)"
    )
    warmup_epochs: float = _option(-1.0, "the same in epochs; -1: as --warmup says")
    cycles: int = _option(1, "number of warm-ups in turn; above 1: cyclic")
    tempered: int = _option(0, "steps of Rezende and Mohamed's tempered joint; 0: none")
    free_bits: float = _option(0.0, "nats of KL divergence that are not pushed down")
    patience: int = _option(0, "epochs without improvement after warm-up; 0: no early stopping")
    seed: int = _option(0, "seed of everything that is random in a run")
    # Where and when
    device: str = _option("auto", "auto, cpu, cuda, cuda:1, ...")
    threads: int = _option(0, "threads of torch; 0: as torch has them")
    compile: bool = _option(False, "compile encoder and decoder (pays for long runs and on a GPU)")
    save_steps: int = _option(TRAINER.save_steps, "steps between checkpoints within an epoch")
    resume: bool = _option(False, "go on from OUT/last.pt; with none there, start fresh")
    new_rate: bool = _option(False, "with --resume, go on at the rate of --lr instead of the run's")
    overwrite: bool = _option(False, "start fresh where OUT holds a run already")
    quiet: bool = _option(False, "no progress bar")
    tensorboard: bool = _option(False, "write scalars for TensorBoard, where it is installed")
    # Afterwards
    nll_method: str = _option(
        "importance", "importance sampling, or annealed: slower, and right where the former is not",
        choices=("importance", "ais"),
    )  # fmt: skip
    nll_samples: int = _option(
        -1,
        "importance samples or chains per test image; 0: no NLL; -1: 5000 samples, or 128 chains",
    )
    temperatures: int = _option(0, "steps of --nll-method ais; 0: 100")
    nll_images: int = _option(
        TRAINER.nll_images, "test images for the NLL, the same of every run; 0: all"
    )
    pictures: bool = _option(True, "draw pictures at the end")

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value, kind = getattr(self, one.name), type(one.default)
            if kind is float and type(value) is int:
                setattr(self, one.name, float(value))
            elif kind is str and isinstance(value, os.PathLike):
                setattr(self, one.name, os.fspath(value))
            elif type(value) is not kind:
                raise OptionError(
                    f"--{one.name.replace('_', '-')} is of type {kind.__name__}; got {value!r}."
                )
        least = {
            "latent_dim": 1, "context_dim": -1, "flow_hidden": 0, "rank": 0, "epochs": 1,
            "batch_size": 1, "num_samples": 1, "cycles": 1, "tempered": 0, "patience": 0,
            "save_steps": 1, "accumulate": 1, "ema": 0, "nll_samples": -1, "temperatures": 0,
            "nll_images": 0, "threads": 0, "warmup": 0,
            "beta": 0, "free_bits": 0, "seed": 0, "split_seed": 0, "levels": -1,
        }  # fmt: skip
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise OptionError(
                    f"--{name.replace('_', '-')} is at least {bound}; got {getattr(self, name)}."
                )
        if not self.warmup <= 1:
            raise OptionError(
                f"--warmup is a share of the run, from 0 to 1; got {self.warmup:g}. For epochs: "
                f"--warmup-epochs {self.warmup:g}."
            )
        if self.nets not in ARCHITECTURES and ":" not in self.nets:
            raise OptionError(
                f"nets is one of {', '.join(ARCHITECTURES)}, or module:function, which returns "
                f"encoder and decoder; got {self.nets!r}."
            )
        if self.new_rate and not self.resume:
            raise OptionError("--new-rate belongs to --resume: a run that begins has one rate.")
        if self.levels == 1:
            raise OptionError("--levels is at least 2, or 0 for real numbers; got 1.")
        for name in ("lr", "clip_norm"):
            if not getattr(self, name) > 0:
                raise OptionError(f"--{name.replace('_', '-')} is above 0.")
        for one in dataclasses.fields(self):
            known = one.metadata.get("choices")
            if known and getattr(self, one.name) not in known:
                raise OptionError(
                    f"{one.name} is one of {', '.join(filter(None, known))}; got "
                    f"{getattr(self, one.name)!r}."
                )
        if self.objective == "iwae":
            plain = {"beta": 1.0, "free_bits": 0.0, "tempered": 0, "cycles": 1}
            for name, value in plain.items():
                if getattr(self, name) != value:
                    raise OptionError(
                        f"--{name.replace('_', '-')} belongs to --objective elbo; the IWAE bound "
                        "has no KL divergence of its own to weight."
                    )
        wrong = {"elbo": "dreg", "iwae": "path"}[self.objective]
        if self.estimator == wrong:
            raise OptionError(
                f"--estimator {wrong} does not belong to --objective {self.objective}."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the dense nets."""
        try:
            return tuple(int(part) for part in str(self.hidden).split(","))
        except ValueError as error:
            raise OptionError(
                f"--hidden is a list of widths such as 300,300; got {self.hidden!r}."
            ) from error

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Shape of an image, where it was given."""
        if not self.shape:
            return None
        try:
            return tuple(int(part) for part in self.shape.split(","))
        except ValueError as error:
            raise OptionError(
                f"--shape is a list of sizes such as 28,28; got {self.shape!r}."
            ) from error

    @property
    def net_function(self) -> Callable[..., Any] | None:
        """The function that makes the nets, where they are a user's own."""
        return imported(self.nets, "--nets") if ":" in self.nets else None

    @property
    def data_function(self) -> Callable[[], Any] | None:
        """The function that returns the data, where it is a user's own."""
        names = self.data.replace(":", ".", 1).split(".")
        own = ":" in self.data and all(map(str.isidentifier, names))
        return imported(self.data, "--data") if own and not os.path.exists(self.data) else None

    def import_modules(self) -> None:
        """Import the modules that were named, which may register flows.

        Raises:
            OptionError: One that cannot be found.
        """
        for name in filter(None, self.modules.split(",")):
            try:
                import_module(name.strip())
            except ModuleNotFoundError as error:
                raise OptionError(
                    f"--modules names {name!r}, which cannot be imported: {error}. Run the command "
                    "where Python finds it, or set PYTHONPATH."
                ) from error

    @property
    def flow_options(self) -> dict[str, Any]:
        """Options of the flow that were given."""
        given = {
            "hidden_dim": self.flow_hidden,
            "gate": self.gate,
            "rank": self.rank,
            "kind": self.kind,
        }
        return {name: value for name, value in given.items() if value}


def imported(place: str, option: str) -> Callable[..., Any]:
    """Import the function of ``module:function``.

    Raises:
        OptionError: It cannot be found.
    """
    module, _, name = place.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise OptionError(
            f"{option} names {place!r}, which cannot be imported: {error}. Run the command where "
            "Python finds the module, or set PYTHONPATH."
        ) from error
    if not callable(found):
        raise OptionError(f"{option} names {place!r}, which is no function.")
    function: Callable[..., Any] = found
    return function


def migrated(options: dict[str, Any]) -> dict[str, Any]:
    """Return options that an earlier version wrote, in the terms of this one.

    Warm-up was given in epochs, and test images that a file does not name were drawn by the seed.
    """
    found = dict(options)
    if "warmup" in found and "warmup_epochs" not in found:
        found["warmup_epochs"] = found["warmup"]
        found["warmup"] = Options.warmup
    if "seed" in found:
        found.setdefault("split_seed", found["seed"])
    for name in ("shape", "levels", "accumulate", "ema", "precision"):
        found.setdefault(name, getattr(Options, name))
    return found


#: Options that have to be the same for a run to go on.
IDENTITY = tuple(
    one.name
    for one in dataclasses.fields(Options)
    if one.name
    not in {
        "out", "epochs", "patience", "device", "threads", "compile", "save_steps", "resume",
        "overwrite", "quiet", "tensorboard", "new_rate", "modules", "nll_samples", "nll_images",
        "nll_method", "temperatures", "pictures", "data",
    }
)  # fmt: skip


#: Headings of ``--help``, by the option with which each part begins.
_GROUPS = {
    "data": "data and folder",
    "flow": "what is trained",
    "epochs": "how it is trained",
    "device": "where and when",
    "nll_method": "afterwards",
}


class _HintingArgumentParser(argparse.ArgumentParser):
    """A parser that names the option that a misspelt one is like."""

    def error(self, message: str) -> NoReturn:
        """End the program with the message, and with hints."""
        if message.startswith("unrecognized arguments:"):
            words = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
            known = [name for name in self._option_string_actions if name.startswith("--")]
            message += "".join(hint(word, known) for word in words)
        super().error(message)


def hint(word: str, known: Iterable[str]) -> str:
    """Name the nearest of the known words, for the end of a message; empty if none is near.

    Example:
        >>> hint("--flwo", ["--flow", "--seed"])
        '. Did you mean --flow?'
    """
    near = get_close_matches(word, list(known), 1)
    return f". Did you mean {near[0]}?" if near else ""


def option_parser(prog: str, doc: str, leave_out: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser of the options, written out in full: none is known by its beginning.

    Args:
        prog: The command.
        doc: What ``--help`` says first.
        leave_out: Options that the command gives itself.
    """
    parser = _HintingArgumentParser(
        prog=prog,
        usage=f"{prog} [options]",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="JSON or TOML file with options, such as OUT/config.json"
    )
    group: argparse._ArgumentGroup | None = None
    for one in dataclasses.fields(Options):
        if group is None or one.name in _GROUPS:
            group = parser.add_argument_group(_GROUPS[one.name])
        if one.name in leave_out:
            continue
        flag = "--" + one.name.replace("_", "-")
        text = one.metadata["help"]
        if isinstance(one.default, bool):
            action = argparse.BooleanOptionalAction
            group.add_argument(flag, action=action, default=one.default, help=text)
            continue
        if one.default != "":
            text += " (default: %(default)s)"
        added = group.add_argument(
            flag,
            type=type(one.default),
            default=one.default,
            help=text,
            choices=one.metadata.get("choices"),
        )
        if not added.choices:
            added.metavar = "TEXT" if isinstance(one.default, str) else "NUMBER"
    return parser


def read_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> dict[str, Any]:
    """Read a command line, whose ``--config FILE`` gives other defaults.

    Raises:
        FileError: The configuration cannot be read.
        OptionError: It holds what is no option.
    """
    first, _ = parser.parse_known_args(arguments)
    if first.config:
        parser.set_defaults(**_read(Path(first.config)))
    given = vars(parser.parse_args(arguments))
    given.pop("config")
    return given


def parse(arguments: Sequence[str] | None = None, doc: str = "") -> Options:
    """Read options from the command line; ``--config FILE`` gives other defaults.

    Raises:
        FileError: The configuration cannot be read.
        OptionError: A value that cannot be used.
    """
    return Options(**read_arguments(option_parser("python -m pyro_nfvi.vae.train", doc), arguments))


def _read(path: Path) -> dict[str, Any]:
    kind = "TOML" if path.suffix == ".toml" else "JSON"
    try:
        text = path.read_text("utf-8")
        held = _toml(text, path) if kind == "TOML" else json.loads(text)
    except OSError as error:
        raise FileError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise FileError(f"The configuration {path} is not {kind}: {error}.") from error
    known = {one.name for one in dataclasses.fields(Options)}
    if not isinstance(held, dict):
        raise OptionError(f"{path} holds no options by name.")
    # As the command line has them, or as Python does.
    held = {name.replace("-", "_"): value for name, value in held.items()}
    stray = sorted(set(held) - known)
    if stray:
        near = "".join(hint(name, known) for name in stray)
        raise OptionError(f"{path} holds options that are unknown: {', '.join(stray)}{near}.")
    return migrated(held)


def _toml(text: str, path: Path) -> Any:
    try:
        reader = import_module("tomllib")
    except ModuleNotFoundError as error:
        raise FileError(
            f"TOML needs Python 3.11 or newer: write the options of {path} as JSON."
        ) from error
    return reader.loads(text)
