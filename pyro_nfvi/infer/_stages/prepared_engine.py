"""The first flow's step, compiled in the background while other stages run."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_nfvi._engine.program import OptimizerSpec, Unsupported
from pyro_nfvi._optim.learning_rate import default_rate
from pyro_nfvi._random import seeded, stream
from pyro_nfvi._train.engine_faults import attempt
from pyro_nfvi._train.engine_selection import unit_particles
from pyro_nfvi._train.optimizer import make_optimizer
from pyro_nfvi._train.recipe import ENGINE, TRAINING
from pyro_nfvi._typing import TensorPair
from pyro_nfvi.guides._auto_flow import AutoFlow
from pyro_nfvi.infer._fit_options import Options
from pyro_nfvi.infer._problem import Problem
from pyro_nfvi.infer._stages.candidate_flows import candidate_flows
from pyro_nfvi.infer._time_plan import TimePlan


def prepare_engine(problem: Problem, options: Options, time: TimePlan) -> None:
    """Begin to compile the step of the first flow, if it will be compiled apart from the model.

    A flow's step depends on its formula and on sizes: it is captured from a guide of a model that
    has nothing but so many latents, so that the user's model and every random stream are left
    alone. A step that turns out to be another one is compiled when it is needed. Model selection
    calls it only after a Gaussian whose gap says that a flow will be trained: a compile that is not
    needed would be processor time lost in every call.

    Args:
        problem: The posterior.
        options: Options of the fit.
        time: Clock of the call; with a limit nothing is begun.

    Cost:
        A capture, some tenths of a second, unless the step was compiled before.
    """
    log_joint, formula, steps = problem.log_joint, options.guide, options.max_steps
    if options.automatic:
        formula, steps = candidate_flows(problem.latent.dim)[0], 2 * steps // 3
    native = getattr(log_joint.compiled, "native", None)
    unfit = (
        not isinstance(formula, str)
        or options.baseline is not None
        or options.engine == "eager"
        or steps < ENGINE.compile_steps
        or steps * options.num_particles * log_joint.size > ENGINE.fused_numbers
        or time.whole.limit is not None
        or native is None
        or not native.address
        or options.num_particles % native.rows != 0
        or bool(log_joint.parameters())
        or not (options.optim is None or isinstance(options.optim, (int, float)))
    )
    if unfit:
        return
    assert isinstance(formula, str)
    try:
        with (
            time.watch.part("capture"),
            attempt("prepared"),
            problem.own_names(),
            seeded(0, "prepared engine"),
        ):
            _prepare(problem, options, formula)
    except Unsupported:  # the reason is that of the step itself, when it is built
        return


def _prepare(problem: Problem, options: Options, formula: str) -> None:
    from pyro_nfvi._engine.cache import Cache
    from pyro_nfvi._engine.capture import capture
    from pyro_nfvi._engine.native.compiled_objects import is_marked
    from pyro_nfvi._engine.native.compiler import find_compiler
    from pyro_nfvi._engine.native.runner import begin_native
    from pyro_nfvi._engine.target_call import TargetCall

    log_joint, objective = problem.log_joint, options.objective
    like = problem.latent.init_loc
    rows = unit_particles(objective, options.num_particles)
    outer = "whitened" if options.automatic else options.outer
    sizes = (len(like), rows, *log_joint.subsampled.items())
    about = (formula, outer, repr(sizes), str(like.dtype), repr(objective), torch.__version__)
    mark = Cache.key("prepared", *about, find_compiler().identity)
    if like.device.type != "cpu" or is_marked(mark):
        return

    def latents() -> None:
        pyro.sample("z", dist.Normal(torch.zeros_like(like), 1.0).to_event(1))

    guide = AutoFlow(latents, formula, outer=outer)
    guide.setup()
    own = {name: p for name, p in guide.named_parameters() if p.requires_grad}
    inner = [p for name, p in own.items() if name.startswith("flow.")]
    outside = [p for name, p in own.items() if not name.startswith("flow.")]
    params = [*inner, *outside]
    optimizer = make_optimizer(options.optim, inner, outside, default_rate(len(like)))

    def nothing(z: Tensor, streams: object) -> TensorPair:
        return z.new_zeros(len(z)), torch.zeros_like(z)

    source = stream(0, "prepared engine", device=like.device)
    numbers = {name: x[0] for name, x in objective.stream(objective.settled // 2, 1).items()}
    streams = log_joint.draw_subsample(source) | numbers
    # The address is no part of the source, but there has to be one.
    target = TargetCall(nothing, tuple(log_joint.subsampled), address=1)
    eps = guide.density().sample_base(rows)
    program = capture(guide, log_joint, objective, params, 0, eps, streams, target)
    begin_native(program, OptimizerSpec.of(optimizer, program.params, TRAINING.clip_norm), mark)
