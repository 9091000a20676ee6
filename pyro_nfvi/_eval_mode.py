"""Train and eval mode: numbers are computed in eval mode; every module gets its mode back."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import nn

#: Set while a step of training computes its loss: modules then keep the modes that they are in.
_TRAINS: ContextVar[bool] = ContextVar("_TRAINS", default=False)

#: Layers of torch that compute the same in either mode; whatever is not known is switched.
_MODE_FREE = (
    nn.Linear, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict,
    nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Flatten, nn.Unflatten,
    nn.Identity, nn.Embedding, nn.Tanh, nn.ReLU, nn.ELU, nn.SiLU, nn.Softplus, nn.Sigmoid,
)  # fmt: skip

#: Modules that are being evaluated: how often, and the mode to go back to. Threads that evaluate
#: one module at a time share an entry, so that the last one restores what the first one found.
_HELD: dict[int, tuple[nn.Module, int, bool]] = {}
_LOCK = threading.Lock()


def _after_fork() -> None:
    """Replace a lock that another thread of the parent held; that thread is not in the child."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def mode_free(module: nn.Module) -> bool:
    """Tell whether a module of this very class computes the same in either mode."""
    return _known(module) and not getattr(type(module), "mode_dependent", False)


def _known(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__module__.partition(".")[0] == "pyro_nfvi":
        return True
    # Hooks may look at the mode, such as that of torch.nn.utils.spectral_norm.
    return kind in _MODE_FREE and not (module._forward_pre_hooks or module._forward_hooks)


@contextmanager
def _in_eval(modules: list[nn.Module]) -> Iterator[None]:
    # A ``train()`` of a user's own reaches parts that were not asked for: they come back too.
    reached = _parts([part for part in modules if _switches_itself(part)])
    held = list({id(part): part for part in (*modules, *reached)}.values())
    with _LOCK:
        for module in held:
            _, depth, before = _HELD.get(id(module), (module, 0, module.training))
            _HELD[id(module)] = (module, depth + 1, before)
    try:
        with _LOCK:
            for module in modules:
                _switch(module, mode=False)
        yield
    finally:
        with _LOCK:
            _release(held)


def _release(modules: list[nn.Module]) -> None:
    """Give modules that nobody else evaluates the mode that they had."""
    free = []
    for module in modules:
        _, depth, before = _HELD.pop(id(module))
        if depth > 1:
            _HELD[id(module)] = (module, depth - 1, before)
        else:
            free.append((module, before))
    for module, before in free:  # parents come before their parts
        _switch(module, mode=before)
    for module, before in free:  # a parent's own ``train()`` may have reached frozen parts
        _switch(module, mode=before)
    for module, _, _ in list(_HELD.values()):
        _switch(module, mode=False)


def _switch(module: nn.Module, *, mode: bool) -> None:
    """Change the mode of one module; by its own ``train()`` or ``eval()``, if it has one."""
    if module.training == mode:
        return
    if not _switches_itself(module):
        module.training = mode
    elif mode:
        module.train()
    else:
        module.eval()
    module.training = mode


def _switches_itself(module: nn.Module) -> bool:
    """Tell whether a class does more at a change of mode than to note it."""
    kind = type(module)
    return kind.train is not nn.Module.train or kind.eval is not nn.Module.eval


def _parts(modules: Iterable[nn.Module | None]) -> list[nn.Module]:
    found = {id(part): part for one in modules if one is not None for part in one.modules()}
    return list(found.values())


@contextmanager
def evaluation(*modules: nn.Module | None) -> Iterator[None]:
    """Put modules into eval mode, and each of their parts back into its own mode afterwards.

    Dropout is off inside, and batch normalisation uses its statistics and leaves them alone. A part
    that was in eval mode before, such as a frozen layer, is so again, also after an exception.
    Nothing is written where all is in eval mode already.

    Args:
        *modules: Modules with all their parts; None is passed over.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> net[0] = net[0].eval()
        >>> with evaluation(net):
        ...     inside = [part.training for part in net]
        >>> inside, [part.training for part in net]
        ([False, False], [False, True])
    """
    token = _TRAINS.set(False)
    try:
        with _in_eval(_parts(modules)):
            yield
    finally:
        _TRAINS.reset(token)


def moving_buffers(module: nn.Module) -> list[torch.Tensor]:
    """Return the buffers that a pass in train mode may move, such as running statistics.

    Example:
        >>> from torch import nn
        >>> [len(moving_buffers(net)) for net in (nn.Linear(2, 2), nn.BatchNorm1d(2))]
        [0, 3]
    """
    parts = [part for part in module.modules() if not mode_free(part)]
    return [buffer for part in parts for buffer in part.buffers(recurse=False)]


@contextmanager
def training_pass() -> Iterator[None]:
    """Let modules keep the modes that they are in: what is computed inside is a loss to train on.

    Losses, ``model`` and ``guide`` open it themselves. A loop of your own that differentiates
    ``vae.elbo(x)`` or ``density.log_prob(x)``, with nets that have dropout or batch normalisation,
    computes these inside of it; nets without such layers do not need it.

    Example:
        >>> import torch
        >>> from pyro_nfvi.vae import training_pass
        >>> from pyro_nfvi.vae._architecture import Architecture
        >>> vae = Architecture((4, 4), latent_dim=2, hidden=(8,)).build(seed=0)
        >>> with training_pass():
        ...     loss = -vae.elbo(torch.ones(3, 4, 4)).bound.mean()
        >>> loss.backward()
    """
    token = _TRAINS.set(True)
    try:
        yield
    finally:
        _TRAINS.reset(token)


@contextmanager
def fit_pass(*modules: nn.Module | None) -> Iterator[None]:
    """Train, with parts of a user's own in eval mode: draws and scores are then of one density.

    A path gradient runs a flow forwards and backwards; two passes with dropout of their own would
    be two flows. Parts of this package keep their mode: a continuous flow its random trace.
    """
    foreign = [part for part in _parts(modules) if part.training and not _known(part)]
    with _in_eval(foreign), training_pass():
        yield


def scoring(*modules: nn.Module | None) -> AbstractContextManager[None]:
    """Evaluate, unless a loss to train on is being computed.

    What both losses and users call goes through here. Parts that compute the same in either mode
    are left alone, so that flows of this package cost a walk over their parts and nothing else.
    """
    # Compilers record what is computed, and a switched attribute is a break in their graph.
    if torch.compiler.is_compiling() or _TRAINS.get():
        return nullcontext()
    switched = [part for part in _parts(modules) if part.training and not mode_free(part)]
    return _in_eval(switched) if switched else nullcontext()


def recorded(*modules: nn.Module | None) -> AbstractContextManager[None]:
    """Train where gradients are recorded, evaluate where they are not.

    For models and guides that Pyro runs: ``SVI.step`` records gradients, ``SVI.evaluate_loss``
    does not.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    if torch.is_grad_enabled():
        return training_pass()
    return scoring(*modules)
