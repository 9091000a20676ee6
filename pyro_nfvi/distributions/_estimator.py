"""``FlowEstimator``: a flow density with the interface of scikit-learn's estimators."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_nfvi._optional_import import process_kept
from pyro_nfvi._random import fresh_seed, seeded, stream
from pyro_nfvi._validation import whole
from pyro_nfvi.distributions._flow_density import FlowDensity
from pyro_nfvi.distributions._maximum_likelihood import DensityFit
from pyro_nfvi.errors import MissingPackageError, OptionError
from pyro_nfvi.flows._registry import make_flow


class FlowEstimator:
    r"""A density by maximum likelihood, with the interface of scikit-learn's estimators.

    .. math:: \log q(x) = \log q_0\bigl(f^{-1}(u)\bigr) + \log\left|\det
        \frac{\partial f^{-1}}{\partial u}\right| - \sum_i \log s_i, \qquad u_i = (x_i - m_i)/s_i

    The columns are standardised before the flow sees them, with the log-determinant of that in the
    density. Works in pipelines, in ``clone``, in grid searches and in pickles; takes arrays, data
    frames of pandas and polars, and ``xarray.DataArray``. Needs scikit-learn.

    Args:
        flow: A formula, such as ``"nsf*3"`` (:func:`pyro_nfvi.flows.make_flow`).
        max_steps: Most steps of training.
        batch_size: Rows in a step.
        lr: Learning rate.
        valid: Share of the rows that is held out, for the end of training.
        patience: Looks without improvement before the rate falls.
        random_state: A whole number or a NumPy ``RandomState``, for the same result; None for
            another one each time.

    Attributes:
        density_: The fitted :class:`FlowDensity`, of standardised columns.
        report_: Report of its training.
        mean_, scale_: Means and standard deviations of the columns.
        n_features_in_: Number of columns; ``feature_names_in_`` has their names, where they have
            some.

    Shape:
        Data ``(n, D)``; log densities ``(n,)``, in nats.

    Cost:
        ``fit`` costs up to ``max_steps`` passes over a batch, ``score_samples`` one inverse.

    Raises:
        OptionError: A formula or a number that cannot be used, when it is fitted.
        MissingPackageError: scikit-learn is not installed.

    Source: Papamakarios et al. 2021, arXiv:1912.02762.

    Example:
        >>> import numpy as np
        >>> from pyro_nfvi.distributions import FlowEstimator
        >>> x = np.random.RandomState(0).randn(500, 2) * [1.0, 10.0]
        >>> estimator = FlowEstimator("affine", max_steps=200, random_state=0).fit(x)
        >>> estimator.sample(5, random_state=1).shape, estimator.score_samples(x).shape
        ((5, 2), (500,))
    """

    def __init__(
        self,
        flow: str = "nsf*3",
        *,
        max_steps: int = 5000,
        batch_size: int = 256,
        lr: float = 2e-3,
        valid: float = 0.1,
        patience: int = 10,
        random_state: Any = None,
    ) -> None:
        # As scikit-learn asks: kept as they are, and looked at by fit.
        self.flow = flow
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.lr = lr
        self.valid = valid
        self.patience = patience
        self.random_state = random_state

    # ------------------------------------------------------------------------- parameters

    @classmethod
    def _get_param_names(cls) -> list[str]:
        parameters = inspect.signature(cls.__init__).parameters
        return sorted(name for name in parameters if name != "self")

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: FBT001, FBT002
        """Return the parameters by name; ``deep`` is for scikit-learn, and changes nothing."""
        del deep
        return {name: getattr(self, name) for name in self._get_param_names()}

    def set_params(self, **params: Any) -> FlowEstimator:
        """Set parameters by name, and return the estimator.

        Raises:
            OptionError: A name that is none.
        """
        known = self._get_param_names()
        for name, value in params.items():
            if name not in known:
                raise OptionError(f"FlowEstimator has no parameter {name!r}; it has {known}.")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        given = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if not (value is defaults[name].default or value == defaults[name].default)
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def __sklearn_tags__(self) -> Any:
        with process_kept():
            from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type="density_estimator",
            target_tags=TargetTags(required=False),
            input_tags=InputTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "density_")

    # ------------------------------------------------------------------------------- fit

    def fit(self, X: Any, y: Any = None) -> FlowEstimator:
        """Fit the density to data ``(n, D)``.

        Args:
            X: The data.
            y: Not used; for pipelines.

        Raises:
            DataError: A constant column, or too few rows.
            ValueError: Data that scikit-learn refuses: no numbers, missing or infinite ones.
        """
        x = self._validated(X, reset=True)
        if not isinstance(self.flow, str):
            raise OptionError(f"flow is a formula such as 'nsf*3'; got {self.flow!r}.")
        self.mean_, scale = x.mean(0), x.std(0)
        self.scale_ = np.where(scale > 0, scale, 1.0)
        seed = self._seed(self.random_state)
        with seeded(seed, "estimator"):
            self.density_ = FlowDensity(make_flow(self.flow, x.shape[1]))
        valid = self.valid if round(float(self.valid) * len(x)) >= 1 else 0.0
        self.report_: DensityFit = self.density_.fit(
            self._standardised(x),
            valid=valid,
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            lr=self.lr,
            patience=self.patience,
            seed=seed,
            progress=False,
        )
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Return the log density of each row, ``(n,)`` in nats."""
        self._require_fitted()
        x = self._standardised(self._validated(X, reset=False))
        with torch.no_grad():
            found = self.density_.log_prob(x)
        return found.double().numpy() - float(np.log(self.scale_).sum())

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log density of the rows, in nats, as ``GaussianMixture`` does."""
        del y
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw rows, ``(n_samples, D)``."""
        self._require_fitted()
        count = whole("sample: n_samples", n_samples)
        noise = stream(self._seed(random_state), "sample")
        with torch.no_grad():
            z, _ = self.density_.rsample_and_log_prob(count, generator=noise)
        return z.double().numpy() * self.scale_ + self.mean_

    def bits_per_dim(self, X: Any) -> np.ndarray:
        """Return bits per dimension of each row, ``(n,)``; they depend on the unit of the data."""
        return -self.score_samples(X) / (self.n_features_in_ * math.log(2))

    n_features_in_: int

    def _standardised(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy((x - self.mean_) / self.scale_).to(torch.get_default_dtype())

    def _validated(self, X: Any, *, reset: bool) -> np.ndarray:
        try:
            with process_kept():
                from sklearn.utils.validation import validate_data
        except ImportError as error:
            raise MissingPackageError(
                "FlowEstimator needs scikit-learn 1.6 or newer: pip install scikit-learn. Without "
                "it, FlowDensity(make_flow('nsf*3', dim)).fit(x) fits the same density."
            ) from error
        if isinstance(X, Tensor):
            X = X.detach().cpu().numpy()
        found: np.ndarray = validate_data(
            self, X, reset=reset, dtype=np.float64, ensure_min_samples=2 if reset else 1
        )
        return found

    def _require_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            with process_kept():
                from sklearn.exceptions import NotFittedError
            raise NotFittedError(
                f"This {type(self).__name__} is not fitted yet: call fit(X) before."
            )

    @staticmethod
    def _seed(random_state: Any) -> int:
        if random_state is None:
            return fresh_seed()
        if isinstance(random_state, np.random.RandomState):
            return int(random_state.randint(2**31 - 1))
        return whole("random_state", int(random_state), 0)
