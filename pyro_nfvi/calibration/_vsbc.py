"""Simulation-based calibration of variational fits: many data sets of known parameters, fitted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro_nfvi._map_fits.results_folder import ResultsFolder
from pyro_nfvi._map_fits.spec import check_options
from pyro_nfvi._processes.tasks import Executor, check_executor, refuse_inside
from pyro_nfvi._random import fold_in, fresh_seed
from pyro_nfvi.calibration._result import VSBC
from pyro_nfvi.calibration._simulated_fits import (
    check_finite,
    check_numbers,
    chosen_sites,
    fit_all,
    tasks_of,
)
from pyro_nfvi.calibration._simulation import Simulator
from pyro_nfvi.errors import OptionError
from pyro_nfvi.infer._nfvi import NFVI


def vsbc(
    model: Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    num_simulations: int = 100,
    observed: str | Sequence[str] | Mapping[str, str] | None = None,
    sites: Sequence[str] | None = None,
    reweighted: bool = False,
    level: float = 0.01,
    executor: Executor | None = None,
    folder: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
    seed: int | None = None,
    progress: bool = True,
    **options: Any,
) -> VSBC:
    r"""Variational simulation-based calibration: are fits of this model right on average?

    Parameters :math:`\theta_i` are drawn from the prior and data from the model; each data set is
    fitted, and :math:`p_i = \Pr_q(\theta < \theta_i)` taken for every number. Were every fit the
    posterior, p would be uniform. Two tests are made of it: symmetry about 1/2
    (``bias_test``, the test of VSBC) sees fits that are too low or too
    high on average; the distribution of \|2p - 1\| (``width_test``) sees
    those that are too narrow or too wide. It sees what no number of one fit can, modes that fits
    miss as well, but only on average over the prior: it does not say whether *the* fit to *your*
    data is right.

    Every observed site of the call is drawn anew and put back in its place, so a model that is
    ready for :class:`NFVI` needs no change; its data serve for their shape. A model may also draw
    its data itself where it gets None for them.

    Args:
        model: The Pyro model, with proper priors.
        args: Its positional arguments, as a tuple.
        kwargs: Its keyword arguments.
        num_simulations: Data sets to draw and to fit. 100 see a bias of 0.5 posterior sds, or a
            width wrong by a half, at the default level and ten numbers, nearly always.
        observed: Which sites are data: all observed ones (None), or names. With
            ``{site: argument}`` a draw is passed as that keyword argument too, which is None while
            drawing: for models that use data elsewhere than at ``obs=``, as lags or scales.
        sites: Which sites to judge: all continuous latent ones (None), or names, deterministic
            sites among them.
        reweighted: Take p under smoothed importance weights: whether they repair the fits.
        level: Largest chance of a false alarm over all numbers and both tests (Bonferroni).
        executor: Where the fits run, as for :func:`pyro_nfvi.map_fits`; None is processes of this
            machine.
        folder: Where results are kept, as for :func:`pyro_nfvi.map_fits`: with a seed, a second
            call computes only what is missing, such as further simulations.
        num_workers: Processes; as many as there are cores by default. The model may stand anywhere:
            in a module, a script, a notebook or a function. Where it cannot be sent to other
            processes (it holds an open file or a lock), the fits run in this one, which ``.note``
            says.
        seed: Same seed, same result, however many workers there are; None draws one.
        progress: Show a bar.
        options: How to fit, as for :class:`NFVI`: ``guide``, ``max_steps``, ``max_seconds``, ...
            With ``max_seconds`` results depend on the machine's speed.

    Returns:
        Probabilities, tests and every fit; after Ctrl-C of the fits done until then. A fit that
        fails is counted and named, and leaves no p.

    Raises:
        ModelError: No data can be simulated from the model (improper prior, ``pyro.factor``, a
            site whose ``obs`` stays fixed, subsampling, trained parameters), a simulation is not
            finite, or every fit failed. Also where a model that is being calibrated calls this.
        OptionError: An option that cannot be used.
        FileError: The folder cannot be written to.

    Cost:
        ``num_simulations`` fits, divided over the workers, some seconds to start these.

    Source: Yao, Vehtari, Simpson & Gelman 2018, arXiv:1802.02538, section 4; Talts et al. 2018,
    arXiv:1804.06788, for the uniformity of ranks. p-values of symmetry are exact here, and more
    careful than the paper's (see ``bias_test``).

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> import pyro_nfvi as nfvi
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> found = nfvi.vsbc(
        ...     model, (torch.zeros(5),), num_simulations=4, num_workers=1, seed=0,
        ...     progress=False, guide="affine", max_steps=50, engine="eager", explore="off",
        ... )
        >>> found.p["mu"].shape, found.failed  # a verdict takes 20 or more
        (torch.Size([4]), ())
    """
    refuse_inside("vsbc")
    begin = time.monotonic()
    if not isinstance(args, tuple):
        raise OptionError(
            f"args is a tuple of the model's arguments, as in (y,); got {type(args).__name__}."
        )
    check_numbers(num_simulations, level, num_workers, seed)
    check_options(options)
    check_executor(executor)
    home = None if folder is None else ResultsFolder.open(folder)
    NFVI(model, **options)  # checks its own options before any work is done
    base = fresh_seed() if seed is None else seed
    simulator = Simulator(model, args, {} if kwargs is None else kwargs, observed)
    seeds = [fold_in(base, index) for index in range(num_simulations)]
    drawn = [simulator.draw(one) for one in seeds]
    names = chosen_sites(simulator.latents, drawn[0], sites)
    check_finite(
        drawn,
        "The prior reaches parameters at which the model overflows; make it tighter, or the model "
        "safe there.",
    )
    found = fit_all(
        tasks_of(drawn, seeds, names, simulator.condition),
        simulator.args,
        simulator.kwargs,
        options,
        reweighted=reweighted,
        executor=executor,
        home=home,
        num_workers=num_workers,
        title="VSBC",
        progress=progress,
    )
    return VSBC(
        found.p,
        found.truth,
        found.fits,
        num_simulations,
        level,
        reweighted,
        found.interrupted,
        found.num_workers,
        base,
        time.monotonic() - begin,
        found.note,
        found.scores,
    )
