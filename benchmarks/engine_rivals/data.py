"""Data of the benchmark's models, by NumPy alone, so that every rival reads the same."""

import numpy as np

#: Latents and words for the table, by name.
MODELS = {
    "schools": (10, "eight schools, non-centred"),
    "logistic": (26, "logistic regression, N = 1000, D = 25"),
    "minibatch": (101, "the same, N = 50 000, D = 100, mini-batch 256"),
    "radon": (90, "hierarchical, N = 919, 85 groups"),
    "wide": (501, "logistic regression, N = 300, D = 500"),
}
_SIZES = {"logistic": (1000, 25), "minibatch": (50_000, 100), "wide": (300, 500)}


def hidden(name):
    """Width of the two hidden layers of IAF: twice the latents, at 501 latents as many."""
    dim = MODELS[name][0]
    return dim if dim > 200 else 2 * dim


def data(name):
    """The model's arguments as NumPy arrays."""
    rng = np.random.default_rng(0)
    if name == "schools":
        y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
        sigma = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
        return np.array(y, np.float32), np.array(sigma, np.float32)
    if name == "radon":
        count, groups = 919, 85
        county = np.concatenate([np.arange(groups), rng.integers(0, groups, count - groups)])
        floor = (rng.random(count) < 0.17).astype(np.float32)
        level = rng.standard_normal(groups) * 0.3 + 1.4
        y = level[county] - 0.7 * floor + 0.75 * rng.standard_normal(count)
        return county.astype(np.int64), floor, y.astype(np.float32)
    count, dim = _SIZES[name]
    x = rng.standard_normal((count, dim)).astype(np.float32)
    w = rng.standard_normal(dim).astype(np.float32) * 0.5
    y = rng.random(count) < 1 / (1 + np.exp(-(x @ w)))
    return x, y.astype(np.float32)
