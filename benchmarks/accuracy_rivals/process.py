"""The NumPyro of another environment, asked from this one."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

WORKER = Path(__file__).resolve().parent / "numpyro_worker.py"
#: Warm-up and draws of NUTS, each as many, in the order in which they are tried. 250 independent
#: exact draws score about 2.7 floors, which is above every goal, so there is nothing to try below.
SIZES = (500, 1000, 2000, 4000)
#: What is scored at most; longer chains are thinned to it.
DRAWS = 2000


class NoNumPyroError(Exception):
    """The Python that was named does not start, or has no NumPyro: no result of a rival."""


class Rival:
    """A process of ``python`` that fits ``posterior``; leave the context to end it."""

    def __init__(self, python, posterior):
        self.folder, self.process = tempfile.TemporaryDirectory(), None
        data, self.draws = (Path(self.folder.name) / name for name in ("data.npz", "draws.npz"))
        np.savez(data, **{name: np.asarray(value) for name, value in posterior.data.items()})
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [python, str(WORKER), posterior.name, str(data)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, env={**os.environ, **threads, "JAX_PLATFORMS": "cpu"},
            )  # fmt: skip
            self.versions = self.read()
        except (OSError, RuntimeError) as error:
            self.__exit__()
            raise NoNumPyroError(f"{python} does not run NumPyro; try {command}") from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
        self.folder.cleanup()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("NumPyro's process ended without an answer")
        return json.loads(line)

    def ask(self, method, **settings):
        self.process.stdin.write(json.dumps({"method": method, **settings}) + "\n")
        self.process.stdin.flush()
        found = self.read()
        if "error" in found:
            raise RuntimeError(f"NumPyro: {found['error']}")
        return found

    def sample(self, method, **settings):
        """The draws by site as tensors, and other figures."""
        found = self.ask(method, into=str(self.draws), **settings)
        with np.load(self.draws) as file:
            draws = {name: torch.from_numpy(file[name]) for name in file.files}
        return draws, found

    def log_joint(self, points):
        """At ``{site: (count, *shape)}``; and the names of the latent sites in their order."""
        path = Path(self.folder.name) / "points.npz"
        np.savez(path, **points)
        found = self.ask("density", points=str(path))
        return np.array(found["log_joint"]), found["sites"]


def fit(python, posterior, method, scores_of, **settings):
    """A row of the table for ``AutoBNAFNormal`` or ``AutoIAFNormal``, as NumPyro makes them."""
    with Rival(python, posterior) as rival:
        draws, found = rival.sample(method, draws=DRAWS, **settings)
        return {**finite(scores_of(posterior, draws)), **found, **rival.versions}


def nuts(python, posterior, scores_of, seed, goal, sizes=SIZES):
    """A row for the first of ``sizes`` whose draws score ``goal`` floors or less, or the last."""
    tries = []
    with Rival(python, posterior) as rival:
        for size in sizes:
            draws, found = rival.sample("nuts", seed=seed, warmup=size, draws=size)
            thin = max(1, size // DRAWS)
            draws = {name: value[thin - 1 :: thin] for name, value in draws.items()}
            scores = finite(scores_of(posterior, draws))
            tries.append({"size": size, "w1_over_floor": scores["w1_over_floor"], **found})
            if scores["w1_over_floor"] <= goal:
                break
        about = {"goal": goal, "reached": scores["w1_over_floor"] <= goal, "tries": tries}
        return {**scores, **tries[-1], **about, **rival.versions}


def finite(scores):
    if not np.isfinite(list(scores.values())).all():
        raise FloatingPointError("the draws are not finite")
    return scores
