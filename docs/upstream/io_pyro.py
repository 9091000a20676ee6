"""Pyro-specific conversion code, proposed for ``arviz_base`` as ``io_pyro.py``."""

import numpy as np
from arviz_base.base import dict_to_dataset
from arviz_base.rcparams import rcParams
from xarray import DataTree


def _numpy(value):
    """Return a tensor, or anything like an array, as a NumPy array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value)


def _arrays(given):
    return {name: _numpy(value) for name, value in (given or {}).items()}


class PyroConverter:
    """Draws and data of a Pyro ``MCMC`` run, or of ``Predictive``, by group.

    Parameters
    ----------
    posterior : pyro.infer.MCMC, optional
        Sampler after its run.
    prior, posterior_predictive, predictions : dict of {str: tensor}, optional
        Draws by ``pyro.infer.Predictive``, with the draws of all chains in the first axis.
    constant_data, predictions_constant_data : dict of {str: array_like}, optional
        Data that the model does not sample.
    log_likelihood : bool, default False
        Whether to evaluate the observed sites at the draws of the posterior.
    coords : dict, optional
        Labels of dimensions.
    dims, pred_dims : dict of {str: list of str}, optional
        Dimensions of variables, and of those of the predictions. Names of plates by default.
    num_chains : int, default 1
        Number of chains, where there is no posterior to tell.
    """

    def __init__(
        self,
        *,
        posterior=None,
        prior=None,
        posterior_predictive=None,
        predictions=None,
        constant_data=None,
        predictions_constant_data=None,
        log_likelihood=False,
        index_origin=None,
        coords=None,
        dims=None,
        pred_dims=None,
        num_chains=1,
    ):
        self.mcmc = posterior
        self.given = {
            "prior": _arrays(prior),
            "posterior_predictive": _arrays(posterior_predictive),
            "predictions": _arrays(predictions),
        }
        self.constant = {
            "constant_data": _arrays(constant_data),
            "predictions_constant_data": _arrays(predictions_constant_data),
        }
        self.index_origin = rcParams["data.index_origin"] if index_origin is None else index_origin
        self.coords, self.pred_dims = coords, pred_dims
        self.log_likelihood = log_likelihood
        self.samples = {}
        self.num_chains = num_chains
        if posterior is not None:
            self.samples = _arrays(posterior.get_samples(group_by_chain=True))
            self.num_chains = next(iter(self.samples.values())).shape[0]
        self.model = getattr(getattr(posterior, "kernel", None), "model", None)
        self.args = getattr(posterior, "_args", None) or ()
        self.kwargs = getattr(posterior, "_kwargs", None) or {}
        self.sites = self._sites()
        self.dims = {**self._plates(), **(dims or {})}

    def _sites(self):
        """Sample sites of one run of the model."""
        if self.model is None:
            return {}
        import pyro

        with pyro.poutine.block():
            trace = pyro.poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        return {
            name: site
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
        }

    def _plates(self):
        """Names of the plates of each site, in the order of its axes."""
        found = {}
        for name, site in self.sites.items():
            frames = sorted(
                (frame for frame in site["cond_indep_stack"] if frame.dim is not None),
                key=lambda frame: frame.dim,
            )
            if frames:
                found[name] = [frame.name for frame in frames]
        return found

    def _dataset(self, data, *, dims=None, sample_dims=None):
        return dict_to_dataset(
            data,
            inference_library=None,
            coords=self.coords,
            dims=self.dims if dims is None else dims,
            index_origin=self.index_origin,
            sample_dims=sample_dims,
        )

    def _by_chain(self, value):
        return value.reshape(self.num_chains, -1, *value.shape[1:])

    def _densities(self):
        """Log density of every observed site at every draw."""
        import pyro

        observed = [name for name, site in self.sites.items() if site["is_observed"]]
        draws = self.mcmc.get_samples(group_by_chain=False)
        found = {name: [] for name in observed}
        for index in range(len(next(iter(draws.values())))):
            values = {name: value[index] for name, value in draws.items()}
            conditioned = pyro.poutine.condition(self.model, data=values)
            trace = pyro.poutine.trace(conditioned).get_trace(*self.args, **self.kwargs)
            for name in observed:
                site = trace.nodes[name]
                found[name].append(_numpy(site["fn"].log_prob(site["value"])))
        return {name: self._by_chain(np.stack(rows)) for name, rows in found.items()}

    def _diverging(self):
        """Where transitions diverged; Pyro lists their numbers by chain."""
        listed = self.mcmc.diagnostics().get("divergences", {})
        shape = next(iter(self.samples.values())).shape[:2]
        found = np.zeros(shape, bool)
        for chain, where in enumerate(listed.values()):
            found[chain, list(where)] = True
        return found

    def to_datatree(self):
        """Make the tree of the groups that there are."""
        groups = {}
        if self.samples:
            groups["posterior"] = self._dataset(self.samples)
            if hasattr(self.mcmc, "diagnostics"):
                groups["sample_stats"] = self._dataset({"diverging": self._diverging()}, dims={})
        if self.log_likelihood and self.sites:
            groups["log_likelihood"] = self._dataset(self._densities())
        for name in ("posterior_predictive", "predictions"):
            if self.given[name]:
                draws = {key: self._by_chain(value) for key, value in self.given[name].items()}
                groups[name] = self._dataset(
                    draws, dims=self.pred_dims if name == "predictions" else None
                )
        prior = self.given["prior"]
        observed = {
            name: _numpy(site["value"]) for name, site in self.sites.items() if site["is_observed"]
        }
        if prior:  # what the posterior does not have is predictive
            latent = set(self.samples) or set(prior) - set(observed)
            for name, chosen in (("prior", latent), ("prior_predictive", set(prior) - latent)):
                draws = {key: value[None] for key, value in prior.items() if key in chosen}
                if draws:
                    groups[name] = self._dataset(draws)
        if observed:
            groups["observed_data"] = self._dataset(observed, sample_dims=[])
        for name, data in self.constant.items():
            if data:
                dims = self.pred_dims if name == "predictions_constant_data" else None
                groups[name] = self._dataset(data, dims=dims, sample_dims=[])
        return DataTree.from_dict(groups)


def from_pyro(posterior=None, **options):
    """Convert a Pyro ``MCMC`` run, draws by ``Predictive``, or both into a ``DataTree``.

    Parameters
    ----------
    posterior : pyro.infer.MCMC, optional
        Sampler after its run.
    **options
        As of :class:`PyroConverter`.

    Returns
    -------
    xarray.DataTree
    """
    return PyroConverter(posterior=posterior, **options).to_datatree()
