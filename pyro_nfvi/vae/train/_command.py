"""Train a flow VAE: ``python -m pyro_nfvi.vae.train --data digits --flow planar*16``.

Checkpoints, log, numbers and pictures go to one folder. A run that was killed goes on with
--resume and ends as if nothing had happened. Several processes: torchrun --nproc-per-node 2 -m
pyro_nfvi.vae.train ...
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from pyro_nfvi._optim.learning_rate import cosine
from pyro_nfvi._optim.torch_optimizers import Adamax
from pyro_nfvi._processes.launcher import ParentWatch, launched
from pyro_nfvi._processes.process_group import ProcessGroup, leave_group
from pyro_nfvi._processes.recipe import LAUNCHER
from pyro_nfvi._random import seeded
from pyro_nfvi._version import __version__
from pyro_nfvi.errors import NFVIError, OptionError
from pyro_nfvi.objectives._schedules import Constant, Cyclic, Linear, Schedule, Tempered
from pyro_nfvi.vae._architecture import Architecture
from pyro_nfvi.vae._datasets import ImageData, data_of_arrays, load_data
from pyro_nfvi.vae._evaluation import Evaluation, evaluate
from pyro_nfvi.vae._likelihood_names import make_likelihood
from pyro_nfvi.vae._losses import ELBOLoss, IWAELoss, VAELoss, loss_from_spec
from pyro_nfvi.vae._model import FlowVAE
from pyro_nfvi.vae._pixels import Preparation, choose_preparation
from pyro_nfvi.vae._recipe import FIGURES, TRAINER
from pyro_nfvi.vae.train._callbacks import Callback, CSVLogger, TensorBoardLogger
from pyro_nfvi.vae.train._distributed import join_group
from pyro_nfvi.vae.train._feeds import Feed, tensor_feed
from pyro_nfvi.vae.train._fit import adam
from pyro_nfvi.vae.train._options import IDENTITY, Options, parse
from pyro_nfvi.vae.train._rates import Rates
from pyro_nfvi.vae.train._run import Run, open_folder
from pyro_nfvi.vae.train._run_folder import RunFolder
from pyro_nfvi.vae.train._signals import Signals
from pyro_nfvi.vae.train._trainer import Plan, Trainer


def architecture_of(options: Options, data: ImageData) -> Architecture:
    """Say what the VAE of a run is made of."""
    likelihood: dict[str, Any] = {"name": options.likelihood}
    if options.likelihood in ("categorical", "logistic-mixture"):
        likelihood["levels"] = max(data.levels, 2)
    if options.conditional and not data.num_labels:
        why = f" that can be used: {data.no_labels}" if data.no_labels else ""
        raise OptionError(f"--conditional needs labels; {data.name} has none{why}.")
    return Architecture(
        shape=data.shape,
        latent_dim=options.latent_dim,
        flow=options.flow,
        flow_options=options.flow_options if options.flow != "none" else {},
        nets=options.nets,
        hidden=options.widths,
        context_dim=None if options.context_dim < 0 else options.context_dim,
        likelihood=make_likelihood(likelihood.pop("name"), **likelihood).spec(),
        prior=options.prior,
        condition_dim=data.num_labels if options.conditional else 0,
        amortize=options.amortize,
    )


def data_of(options: Options) -> ImageData:
    """Load the images of a run."""
    own = options.data_function
    if own is not None:
        return data_of_arrays(
            own(), options.data, seed=options.split_seed, shape=options.image_shape,
            levels=None if options.levels < 0 else options.levels,
        )  # fmt: skip
    return load_data(
        options.data, seed=options.split_seed, shape=options.image_shape,
        levels=None if options.levels < 0 else options.levels,
    )  # fmt: skip


def describe_data(data: ImageData) -> str:
    """Name, sizes and a checksum of images: a run goes on with the data that it began with."""
    parts = (data.train, data.valid, data.test)
    sums = [zlib.crc32(part.contiguous().numpy().tobytes()) for part in parts]
    sizes = "/".join(str(len(part)) for part in parts)
    return f"{data.name}, {data.shape}, {sizes}, contents {zlib.crc32(repr(sums).encode()):08x}"


def loss_of(options: Options, steps_per_epoch: int) -> VAELoss:
    """Build the loss and its schedules; epochs become steps."""
    if options.objective == "iwae":
        return IWAELoss(options.num_samples, options.estimator)
    share = options.warmup * options.epochs
    epochs = share if options.warmup_epochs < 0 else options.warmup_epochs
    # A share that ends with an epoch is not to end a step later by rounding.
    steps = math.ceil(round(epochs * steps_per_epoch, 6))
    beta: Schedule = Constant(options.beta)
    if steps and options.cycles > 1:
        beta = Cyclic(2 * steps, options.cycles, TRAINER.cycle_rise, 0.0, options.beta)
    elif steps and not options.tempered:
        beta = Linear(steps, 0.0, options.beta)
    joint: Schedule = Tempered(options.tempered) if options.tempered else Constant()
    return ELBOLoss(options.num_samples, options.estimator, beta, joint, options.free_bits)


def train(options: Options, *, say: Any = print) -> Run:
    """Train by the options; what ``python -m pyro_nfvi.vae.train`` does.

    Args:
        options: The options.
        say: What lines of text are given to.

    Raises:
        NFVIError: Data, options or files that cannot be used; the message says what to do.
    """
    options.import_modules()
    if options.threads:
        torch.set_num_threads(options.threads)
    with ParentWatch(launched=launched()) as parent:  # before others are waited for
        team = join_group(options.device)
        try:
            # Nets of a user's own may draw from torch's state, which checkpoints hold.
            with seeded(options.seed, "vae"):
                return _train(options, team, say if team.leads else lambda *_: None, parent)
        finally:
            leave_group(team)


def _train(options: Options, team: ProcessGroup, say: Any, parent: ParentWatch) -> Run:
    data = data_of(options)
    architecture = architecture_of(options, data)
    vae = architecture.build(seed=options.seed, nets=options.net_function).to(team.device)
    preparation = choose_preparation(data, vae.likelihood, options.binarize)
    images = preparation.images(data)
    labels = data.labels if options.conditional else None
    feed = tensor_feed(images[0], images[1], preparation, None if labels is None else labels[:2])
    say(data)
    size = sum(p.numel() for p in vae.parameters())
    say(
        f"FlowVAE: {architecture.nets} nets, latent size {options.latent_dim}, flow {options.flow}"
        f" (context {architecture.context_size}), {size:,} parameters; pixels {preparation.kind}, "
        f"{vae.likelihood.name}; {team.size} process{'es' * (team.size > 1)} on {team.device}"
    )
    steps_per_epoch = math.ceil(len(images[0]) / options.batch_size / options.accumulate)
    loss = loss_of(options, steps_per_epoch)
    spec = {
        "architecture": json.loads(json.dumps(architecture.spec())),
        "options": {name: getattr(options, name) for name in IDENTITY},
        "data": describe_data(data),
        "loss": loss.spec(),
        "preparation": preparation.spec(),
        "version": __version__,
        "epochs": options.epochs,
    }
    with open_folder(
        options.out, team, resume=options.resume, overwrite=options.overwrite
    ) as folder:
        return _in_folder(
            options, team, say, parent, folder, spec=spec, data=(images, labels), feed=feed,
            vae=vae, loss=_loss_of_run(options, folder, loss, say), steps_per_epoch=steps_per_epoch,
        )  # fmt: skip


def _loss_of_run(options: Options, folder: RunFolder, asked: VAELoss, say: Any) -> VAELoss:
    """Return the loss that a run began with: its warm-up does not move when --epochs does."""
    held = folder.held("loss") if options.resume else None
    if held is None or held == json.loads(json.dumps(asked.spec())):
        return asked
    began = loss_from_spec(held)
    say(f"The schedule of the loss stays as the run began: it ends at step {began.settled}.")
    return began


def _in_folder(
    options: Options,
    team: ProcessGroup,
    say: Any,
    parent: ParentWatch,
    folder: RunFolder,
    *,
    spec: dict[str, Any],
    data: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...] | None],
    feed: Feed,
    vae: FlowVAE,
    loss: VAELoss,
    steps_per_epoch: int,
) -> Run:
    """Train in a folder that is this run's alone."""
    images, labels = data
    spec = {**spec, "loss": loss.spec()}
    short = loss.unfinished(options.epochs * steps_per_epoch)
    if short:
        say(f"WARNING: {short}")
    team.share(vae)
    rates = _rates(options, vae, options.epochs * steps_per_epoch)
    spec["rates"] = rates.initial
    if options.compile:
        vae.encoder.compile()
        vae.decoder.compile()
    plan = Plan(
        loss, options.epochs, options.batch_size, options.clip_norm, options.patience,
        options.save_steps, options.seed, options.accumulate, options.ema, options.precision,
    )  # fmt: skip
    signals = Signals()
    trainer = Trainer(
        vae, feed, plan, rates, folder=folder, spec=spec, team=team,
        callbacks=_loggers(options, folder), show=not options.quiet,
        stop=lambda: signals.came() or parent.lost(),
    )  # fmt: skip
    _begin(options, trainer, folder, say)
    if team.leads:
        folder.write("config.json", json.dumps(asdict(options), indent=1) + "\n")
    with signals:
        progress = trainer.run()
    if progress.done == "interrupted":
        say(f"Stopped by a signal at step {progress.step}; --resume goes on from {folder.last}.")
        return Run(vae, progress, None, folder)
    say(
        f"Trained {progress.epoch} epochs ({progress.done}); best validation ELBO "
        f"{-progress.best:.2f} nats in epoch {progress.best_epoch}."
    )
    team.wait()
    trainer.take_best()
    if not team.leads:
        return Run(vae, progress, None, folder)
    # Of the steps that were taken: a run that goes on may have taken more than it was asked for.
    short = loss.unfinished(progress.step)
    preparation = feed.preparation
    assert preparation is not None
    result = _report(options, vae, images, labels, preparation, folder, team, say, short)
    return Run(vae, progress, result, folder, folder.lines())


def _begin(options: Options, trainer: Trainer, folder: RunFolder, say: Any) -> None:
    if not options.resume:
        return
    if not folder.last.exists():
        say(f"Nothing to resume: there is no {folder.last}. Starting fresh.")
        return
    planned = folder.held("epochs")
    if options.decay == "cosine" and planned not in (None, options.epochs):
        say(
            f"WARNING: the rate decays to zero over {options.epochs} epochs now, and the run began "
            f"with {planned}: it jumps here, and the run is not one of {options.epochs} epochs."
        )
    trainer.resume(new_rate=options.new_rate)
    at = trainer.progress
    say(f"Resuming from {folder.last}: epoch {at.epoch + 1}, step {at.step}.")


def _loggers(options: Options, folder: RunFolder) -> list[Callback]:
    found: list[Callback] = [CSVLogger(folder.path / "log.csv")]
    if options.tensorboard:
        found.append(TensorBoardLogger(folder.path / "tensorboard"))
    return found


def _rates(options: Options, vae: FlowVAE, steps: int) -> Rates:
    """Return the optimiser, whose rate decays over so many steps."""
    optimizer: torch.optim.Optimizer
    if options.optimizer == "adam":
        optimizer = adam(vae, options.lr)
    else:
        optimizer = Adamax(vae.parameters(), lr=options.lr, eps=TRAINER.adamax_eps)
    if options.decay == "none":
        return Rates(optimizer)
    decay = LambdaLR(optimizer, lambda step: cosine(min(1.0, step / steps), end=0.0))
    return Rates(optimizer, decay, "step")


def _report(
    options: Options,
    vae: FlowVAE,
    images: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    labels: tuple[torch.Tensor, ...] | None,
    preparation: Preparation,
    folder: RunFolder,
    team: ProcessGroup,
    say: Any,
    warning: str,
) -> Evaluation:
    x = images[2].to(team.device)
    y = None if labels is None else labels[2].to(team.device)
    result = evaluate(
        vae, x, y,
        nll_samples=None if options.nll_samples < 0 else options.nll_samples,
        nll_method=options.nll_method,
        temperatures=options.temperatures or None if options.nll_method == "ais" else None,
        nll_images=options.nll_images or None,
        seed=options.seed,
        log_volume=preparation.log_volume(math.prod(x.shape[1:])),
        progress=not options.quiet,
    ).with_warning(warning)  # fmt: skip
    say(f"Test images, parameters of the best epoch:\n{result}")
    if preparation.kind == "as-is" and options.likelihood in ("gaussian", "logit-normal"):
        say(
            "Nats and bits are of a density of real pixels: they depend on the unit of the pixels, "
            "and compare only with those of the same data."
        )
    folder.write("results.json", json.dumps(result.record(), indent=1) + "\n")
    if result.nll is not None and result.nll_index is not None:
        nll = result.nll
        folder.write_arrays(
            "per_image.npz", index=result.nll_index.numpy(), nll=nll.value.cpu().numpy(),
            nll_se=nll.se.cpu().numpy(), ess=nll.ess.cpu().numpy(), khat=nll.khat.cpu().numpy(),
            negative_elbo=nll.bound.cpu().numpy(),
        )  # fmt: skip
    if options.pictures:
        _draw(vae, x, y, folder, say, f"VAE, flow {options.flow}")
    say(f"Everything is in {folder.path}.")
    return result


def _draw(
    vae: FlowVAE,
    x: torch.Tensor,
    y: torch.Tensor | None,
    folder: RunFolder,
    say: Any,
    title: str,
) -> None:
    from pyro_nfvi.vae import _pictures as pictures

    try:
        pictures.pyplot()
    except ImportError as error:
        say(f"No pictures: {error}")
        return
    span = pictures.span_of(vae, x)

    def some(count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        return x[:count], None if y is None else y[:count]

    made: dict[str, Callable[[], Any]] = {
        # First what depends on no image: it is there whatever images look like.
        "curves": lambda: pictures.plot_curves(folder.lines(), title),
        "reconstructions": lambda: pictures.plot_reconstructions(
            vae, *some(FIGURES.reconstructions)
        ),
        "samples": lambda: pictures.plot_samples(vae, span=span),
        "interpolation": lambda: pictures.plot_interpolation(vae, *some(FIGURES.interpolated)),
    }
    if vae.latent_dim == 2:
        made["posteriors"] = lambda: pictures.plot_posterior(
            vae, *some(FIGURES.posterior_images), panels=FIGURES.posterior_panels
        )
    missing: dict[str, list[str]] = {}
    for name, draw in made.items():
        try:
            figure = draw()
        except OptionError as error:  # images that cannot be drawn, or too few
            missing.setdefault(str(error), []).append(f"{name}.png")
            continue
        pictures.save_figure(figure, folder.path / f"{name}.png")
    for why, names in missing.items():
        say(f"Not drawn: {', '.join(names)}. {why}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the status for the shell."""
    try:
        run = train(parse(arguments, __doc__ or ""))
    except NFVIError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return LAUNCHER.terminated if run.progress.done == "interrupted" else 0


if __name__ == "__main__":
    sys.exit(main())
