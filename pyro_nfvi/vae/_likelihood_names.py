"""Likelihoods by name."""

from __future__ import annotations

from typing import Any

from pyro_nfvi.errors import OptionError
from pyro_nfvi.vae._count_likelihoods import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyro_nfvi.vae._likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, LogitNormal
from pyro_nfvi.vae._logistic_mixture import LogisticMixture
from pyro_nfvi.vae._masked import Masked
from pyro_nfvi.vae._student_t import StudentT

#: The class of each name.
LIKELIHOODS: dict[str, type[Likelihood]] = {
    one.name: one
    for one in (
        Bernoulli, Categorical, Gaussian, LogitNormal, StudentT, LogisticMixture, Poisson,
        NegativeBinomial, ZeroInflatedNegativeBinomial, Masked,
    )
}  # fmt: skip


def make_likelihood(likelihood: str | Likelihood, **options: Any) -> Likelihood:
    """Return a likelihood from its name, such as bernoulli, gaussian or negative-binomial.

    Args:
        likelihood: The name, or a likelihood, which is returned as it is.
        **options: Its options, such as ``levels`` of a categorical.

    Raises:
        OptionError: An unknown name or option.

    Example:
        >>> from pyro_nfvi.vae._likelihood_names import make_likelihood
        >>> make_likelihood("categorical", levels=17)
        Categorical(levels=17, ordered=True)
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood not in LIKELIHOODS:
        raise OptionError(
            f"likelihood is one of {', '.join(LIKELIHOODS)}, or a Likelihood; got {likelihood!r}."
        )
    if isinstance(inner := options.get("inner"), dict):  # a description, of a file
        held = dict(inner)
        options["inner"] = make_likelihood(held.pop("name"), **held)
    try:
        return LIKELIHOODS[likelihood](**options)
    except TypeError as error:
        raise OptionError(f"The {likelihood} likelihood does not take these: {error}.") from error


def likelihood_kind(name: str) -> type[Likelihood] | None:
    """Return the class of a likelihood's name; None for one of a user's own."""
    return LIKELIHOODS.get(name)
