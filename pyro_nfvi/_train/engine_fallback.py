"""The way from a compiled step to the eager one, where it fails or is of another model."""

from __future__ import annotations

from torch import Tensor

from pyro_nfvi._engine.program import BlockResult
from pyro_nfvi._train.recipe import TRAINING
from pyro_nfvi._train.saved_states import SavedStates
from pyro_nfvi._train.stepper import EngineFailed, Stepper
from pyro_nfvi._train.training_state import History
from pyro_nfvi._typing import TensorDict
from pyro_nfvi._user_warning import warn
from pyro_nfvi.errors import EngineWarning


class GuardedStepper:
    """Take steps with an engine, and go on with the eager step if it cannot be relied on.

    Args:
        stepper: Takes the steps.
        states: States to go back to.
        history: Gets a line where the engine changes.
    """

    def __init__(self, stepper: Stepper, states: SavedStates, history: History) -> None:
        self._stepper, self._states, self._history = stepper, states, history

    def run(self, eps: Tensor, streams: TensorDict, rates: Tensor) -> BlockResult:
        """Take steps, with the eager step if the engine fails."""
        try:
            return self._stepper.run(eps, streams, rates)
        except EngineFailed as failure:
            self._fall_back_from(failure)
            return self._stepper.run(eps, streams, rates)

    def comparison_due(self, block: int, *, often: bool) -> bool:
        """Tell whether to compare with the eager step now.

        Args:
            block: Steps after whose multiples it can be.
            often: After each of them, where steps are slow anyway; rarely else.
        """
        if not self._stepper.comparable or self._history.step % block:
            return False
        blocks = self._history.step // block
        return blocks > 0 and (often or blocks in TRAINING.comparisons)

    def compare(self, eps: Tensor, streams: TensorDict, groups: int) -> None:
        """Go on with the eager step if the model is not the one that was captured.

        Args:
            eps: Noise of one step ``(P, D)``.
            streams: Its other inputs.
            groups: Number of the optimiser's groups.
        """
        try:
            problem = self._stepper.changed(eps, streams, groups)
        except EngineFailed as failure:
            self._fall_back_from(failure)
            return
        if problem is None:
            return
        warn(
            f"The compiled step ran {self._history.step} times and is given up: "
            f"{problem}. If the model is meant to change, use engine='eager'.",
            EngineWarning,
        )
        self._fall_back(problem)

    def _fall_back_from(self, failure: EngineFailed) -> None:
        """Go on with the eager step from the last good state: that of the engine is not known."""
        self._stepper.put(self._states.good)
        self._fall_back(str(failure))

    def _fall_back(self, problem: str) -> None:
        self._states.settle()
        self._stepper.fall_back(self._history.step, problem)
        self._history.note(f"{problem}; went on with engine 'eager'")
