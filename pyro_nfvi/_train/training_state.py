"""The state of a training: the values that a checkpoint holds beside parameters and noise."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyro_nfvi._engine.program import BlockResult
from pyro_nfvi._optim.learning_rate import Schedule
from pyro_nfvi._optim.recovery import Recovery
from pyro_nfvi._optim.rollback import BestBlock
from pyro_nfvi._train.recipe import TRAINING


@dataclass
class History:
    """Record of a training.

    Attributes:
        losses: Negative bound of every step, in nats.
        seconds: Time taken.
        num_bad: Particles that were left out.
        left_out: Particles that each of the last steps left out.
        converged: The bound was flat.
        notes: Lines for the report.
        looks: Bounds of the mini-batches of the next look at a flat bound, after its number.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    num_bad: int = 0
    left_out: list[int] = field(default_factory=list)
    converged: bool = False
    notes: list[str] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.losses)

    def add(self, result: BlockResult, seconds: float) -> None:
        """Add the steps of a block.

        Args:
            result: What they gave.
            seconds: Time taken until now.
        """
        bad = result.num_bad.tolist()
        self.losses += (-result.bounds).tolist()
        self.num_bad += sum(bad)
        self.left_out = [*self.left_out, *bad][-TRAINING.last_steps :]
        self.seconds = seconds

    def note(self, what: str) -> None:
        """Add a line for the report, with the number of the step."""
        self.notes.append(f"step {self.step}: {what}")

    def note_return(self, why: str, to: int) -> None:
        """Add a line on the way back to step ``to``."""
        self.note(f"{why}; went back to step {to} and halved the learning rate")


@dataclass
class TrainingState:
    """The state of a training beside parameters and noise.

    Attributes:
        schedule: Rate and length, and when the decay began.
        history: The steps taken.
        recovery: Steps that were not finite.
        best_block: The best block of steps.
    """

    schedule: Schedule
    history: History = field(default_factory=History)
    recovery: Recovery = field(default_factory=Recovery)
    best_block: BestBlock = field(default_factory=BestBlock)

    @property
    def finished(self) -> bool:
        """Tell whether no step is left."""
        return self.schedule.finished(self.history.step, self.history.seconds)
