"""A model of PyMC fitted by flows: its log density and gradient, and constrained draws back.

PyMC is not among the requirements. Install it beside this library in an environment of its own:
``pip install pyro-nfvi pymc``. Without it the example says so and ends. The number: the posterior
mean of tau in the eight schools, 3.60 by long MCMC runs (posteriordb).
"""

import numpy as np
from _cli import check, options

from pyro_nfvi import NFVI, Target

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(pm):
    """A model as PyMC's users write it."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        theta = pm.Normal("theta", mu, tau, shape=8)
        pm.Normal("y", theta, SIGMA, observed=Y)
    return model


def pymc_target(model):
    """Make a target of a PyMC model: one unconstrained vector, its parts named as in the model."""
    density = model.logp_dlogp_function(ravel_inputs=True)
    density.set_extra_values({})
    names = {value.name: value.type.shape for value in model.value_vars}
    start = model.initial_point()
    init = np.concatenate([np.ravel(start[name]) for name in names])
    outputs = [value for value in model.unobserved_value_vars if value.name not in names]
    constrain = model.compile_fn(outputs, inputs=model.value_vars, on_unused_input="ignore")

    def derived(z):
        parts, begin = {}, 0
        for name, shape in names.items():
            size = int(np.prod(shape))
            parts[name] = z[begin : begin + size].reshape(shape)
            begin += size
        return {value.name: array for value, array in zip(outputs, constrain(parts), strict=True)}

    return Target(
        density,
        len(init),
        returns="value_and_grad",
        batched=False,
        names=names,
        derived=derived,
        init=init,
    )


def main():
    run = options(__doc__, "pymc_target")
    try:
        import pymc as pm
    except ImportError:
        print("PyMC is not installed here: pip install pymc. Nothing was fitted.")
        return
    target = pymc_target(eight_schools(pm))
    print(target)
    steps = {"max_steps": 60, "explore": "off"} if run.smoke else {}
    fit = NFVI(target, seed=0, progress=False, **steps).run()
    draws = fit.sample(4000, seed=0, deterministic=True)
    print(fit.report)
    check("tau by NFVI", float(draws["tau"].mean()), 3.2, 4.0, smoke=run.smoke)
    path = run.out / "fit.nfvi"
    fit.save(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
