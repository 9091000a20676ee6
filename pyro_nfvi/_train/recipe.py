"""Numbers of NFVI's training, each with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingRecipe:
    """Numbers of the training loop."""

    #: Largest norm of the whole gradient.
    clip_norm: float = 1.0
    #: Numbers that one run of the model may hold, gradients not counted: 80 MB of doubles.
    model_numbers: int = 10_000_000
    #: Adam's rate of the outer location and scale, relative to the rest, where they have to move.
    outer_rate: float = 5.0
    #: Steps whose noise is drawn at once, at most.
    noise_steps: int = 200
    #: Numbers of noise that are drawn at once, at most.
    noise_numbers: int = 2**20
    #: Seconds that a block of steps takes at most: Ctrl-C and the clock are read between blocks.
    longest_block: float = 0.2
    #: Share of ``max_seconds`` that a block of steps takes at most.
    longest_share: float = 0.01
    #: Seconds that a training has at least: one step is taken however late it is.
    least_seconds: float = 1e-3
    #: Blocks after which a captured step is compared with the model as it is then.
    comparisons: tuple[int, ...] = (1, 16, 256, 4096)
    #: Steps at the end of a training whose left-out particles count.
    last_steps: int = 200
    #: Draws on which the last state and the best one are compared.
    compared_draws: int = 512
    #: Standard errors by which another state has to be better than the last one.
    compared_errors: float = 2.0
    #: Steps over which the bound in a progress bar is averaged.
    shown_steps: int = 50


@dataclass(frozen=True)
class EngineRecipe:
    """Numbers of the choice of an engine."""

    #: Steps of a fit for which a capture is worth its time, at least.
    capture_steps: int = 300
    #: Steps of a fit for which a compiler is worth its time, at least.
    compile_steps: int = 500
    #: Numbers of the model in all particles and steps of a fit, beyond which it is compiled into
    #: one unit with the flow. Apart, a step takes as long within 5 % where the model is small, and
    #: up to 0.8 ns more for each number where it is large; a compile takes 0.5 s and more.
    fused_numbers: float = 5e8
    #: Particles of a step that a unit of the flow alone evaluates at once, if there are more and
    #: they fill such blocks: fits with as many, or with several times as many, share it. It fills
    #: vectors, and its values fit into a cache.
    unit_particles: int = 64
    #: Runs of the model for one row, without gradient, in whose time its log joint is captured:
    #: about a hundred for models of a hundred to a thousand operations.
    capture_runs: int = 100
    #: Standard deviation of the noise on parameters at which steps are compared: at its start a
    #: flow is the identity, and much of its gradient is zero.
    perturbation: float = 0.02


@dataclass(frozen=True)
class PairedRecipe:
    """Numbers of the test for a flat bound under mini-batches."""

    #: Steps between two looks.
    span: int = 200
    #: Batches of a look.
    batches: int = 16
    #: Standard errors above its estimate at which a rise has to be small.
    errors: float = 2.0
    #: Nats of rise that are not worth more steps, at least.
    tolerance: float = 0.01
    #: The same for each row of a plate.
    row_tolerance: float = 2e-4


TRAINING = TrainingRecipe()
PAIRED = PairedRecipe()
ENGINE = EngineRecipe()
