"""``vae.fit``: nets and data of a user's own, every way to train, resumed to the same bits."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
)
from vae.cases import SHAPE, make

from pyro_nfvi import vae as nfvae
from pyro_nfvi._files.fit_files import read_file
from pyro_nfvi._processes.process_group import ProcessGroup
from pyro_nfvi.errors import DataError, FileError, MissingPackageError, OptionError
from pyro_nfvi.objectives import Linear
from pyro_nfvi.vae import CSVLogger, ELBOLoss, FlowVAE, fit, load
from pyro_nfvi.vae.train._feeds import Feed, rows_of
from pyro_nfvi.vae.train._rates import Rates
from pyro_nfvi.vae.train._trainer import Plan, Trainer

X = torch.bernoulli(
    torch.rand(33, 1, 1, generator=torch.Generator().manual_seed(0)).expand(33, *SHAPE),
    generator=torch.Generator().manual_seed(1),
)
Y = X.flatten(1).sum(1).long().clamp(max=3)


class Net(nn.Module):
    """An encoder with batch normalisation and dropout."""

    def __init__(self, context=4):
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)
        )
        self.head, self.context = nn.Linear(8, 6), nn.Linear(8, context)

    def forward(self, x):
        h = self.body(x)
        loc, raw = self.head(h).chunk(2, -1)
        return loc, raw.exp(), self.context(h)


def decoder():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.Unflatten(1, SHAPE))


def own(seed=0, **options):
    torch.manual_seed(seed)
    return FlowVAE(Net(), decoder(), 3, 4, "planar*2", **options)


class Noisy(Dataset):
    """Draws by all three global states, as augmentations do."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        flip = random.random() < 0.5 or np.random.rand() < 0.1 or torch.rand(()) < 0.1  # noqa: NPY002
        return (1 - X[i] if flip else X[i]), Y[i]


class Stream(IterableDataset):
    def __iter__(self):
        order = torch.randperm(len(X)).tolist()
        return iter([X[i] for i in order])


def batches():
    for i in np.random.permutation(4):  # noqa: NPY002
        yield X[8 * i : 8 * i + 8]


def two_groups(vae):
    return torch.optim.AdamW(
        [{"params": vae.encoder.parameters(), "lr": 1e-2}, {"params": vae.decoder.parameters()},
         {"params": vae.flow.parameters(), "lr": 3e-3}], lr=2e-3,
    )  # fmt: skip


def sgd(vae):
    return torch.optim.SGD(vae.parameters(), lr=1e-2, momentum=0.9)


DATA = {
    "tensor": lambda: X,
    "array": lambda: X.numpy(),
    "dataset": lambda: Noisy(),
    "loader": lambda: DataLoader(Noisy(), 10, shuffle=True),
    "own generator": lambda: DataLoader(
        TensorDataset(X, Y), 10, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "dropped last": lambda: DataLoader(TensorDataset(X), 10, shuffle=True, drop_last=True),
    "stream": lambda: DataLoader(Stream(), 10),
    "function": lambda: batches,
    "list": lambda: [X[:10], {"x": X[10:20]}, (X[20:], Y[20:])],
}
WAYS = {
    "plain": {},
    "average": {"ema": 0.9},
    "accumulated": {"accumulate": 3},
    "bf16": {"precision": "bf16"},
    "groups": {"optimizer": two_groups},
    "momentum": {"optimizer": sgd},
    "adafactor": {"optimizer": lambda vae: torch.optim.Adafactor(vae.parameters())},
    "warm-up": {"loss": ELBOLoss(2, "path", beta=Linear(9))},
    "no validation": {"valid": None, "ema": 0.9},
}  # fmt: skip
if not hasattr(torch.optim, "Adafactor"):
    WAYS.pop("adafactor")
SCHEDULERS = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda t: 1 / (1 + t)),
    "multiplicative": lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.9),
    "step": lambda o: schedulers.StepLR(o, 2, 0.5),
    "multistep": lambda o: schedulers.MultiStepLR(o, [1, 3, 3], 0.5),
    "constant": lambda o: schedulers.ConstantLR(o, 0.5, 2),
    "linear": lambda o: schedulers.LinearLR(o, 0.3, total_iters=3),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.8),
    "polynomial": lambda o: schedulers.PolynomialLR(o, 4),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 4),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    "cyclic": lambda o: schedulers.CyclicLR(o, 1e-3, 1e-2, 3, mode="exp_range", gamma=0.9),
    "triangle": lambda o: schedulers.CyclicLR(
        o, 1e-3, 1e-2, 3, scale_fn=lambda x: 0.9**x, cycle_momentum=False
    ),
    "one cycle": lambda o: schedulers.OneCycleLR(o, 1e-2, total_steps=12),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, threshold=1e9),
    "sequence": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=2), schedulers.StepLR(o, 1, 0.5)], [2]
    ),
    "chain": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, 2), schedulers.ExponentialLR(o, 0.9)]
    ),
    "averaging": lambda o: torch.optim.swa_utils.SWALR(o, 1e-3, anneal_epochs=3),
}


def train(out, data="tensor", at=None, resume=False, **more):
    """Train for 3 epochs; stop after step ``at`` of this call."""
    vae = own()
    options = {"valid": X[:9], "epochs": 3, "batch_size": 10, "seed": 3, **more}
    given = options.pop("optimizer", None)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2) if given is None else given(vae)
    make_scheduler = options.pop("scheduler", None)
    scheduler = None if make_scheduler is None else make_scheduler(optimizer)
    callbacks = [] if at is None else [Stop(at)]
    run = fit(
        vae, DATA[data](), out=out, optimizer=optimizer, scheduler=scheduler, resume=resume,
        callbacks=callbacks, progress=False, **options,
    )  # fmt: skip
    return run, optimizer, scheduler


class Stop(nfvae.Callback):
    """A signal after a step, as a cluster sends."""

    def __init__(self, at):
        self.left = at

    def step(self, step, numbers):
        self.left -= 1
        if not self.left:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two or callable(one)


def check_resumed(tmp_path, at=(2, 5), **way):
    whole = train(tmp_path / "a", **way)
    for place, stop in enumerate(at):
        run, _, _ = train(tmp_path / "b", at=stop - (at[place - 1] if place else 0),
                          resume=bool(place), **way)  # fmt: skip
        assert (run.progress.done, run.progress.step) == ("interrupted", stop)
        torch.rand(3), random.random(), np.random.rand()  # whatever else happens  # noqa: NPY002
    second = train(tmp_path / "b", resume=True, **way)
    assert second[0].progress.epoch == 3
    for one, two in zip(whole, second):
        if hasattr(one, "state_dict"):
            assert same(one.state_dict(), two.state_dict())
    assert same(whole[0].vae.state_dict(), second[0].vae.state_dict())
    logs = [[{**line, "time": 0} for line in one[0].history] for one in (whole, second)]
    assert logs[0] == logs[1]


# --------------------------------------------------------------------------- resumed to the bit


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_stopped_anywhere_a_run_ends_with_the_same_bits(tmp_path, way):
    accumulated = "accumulate" in way
    check_resumed(tmp_path, at=(1, 3) if accumulated else (2, 5), **way)


@pytest.mark.parametrize("data", DATA)
def test_any_data_go_on_in_the_order_that_they_had(tmp_path, data):
    check_resumed(tmp_path, data=data)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_torch_goes_on_where_it_was(tmp_path, name):
    way = {"scheduler": SCHEDULERS[name]}
    if name not in ("plateau",):
        way["scheduler_interval"] = "step"
    check_resumed(tmp_path, optimizer=sgd, **way)


@pytest.mark.slow
def test_workers_of_a_loader_draw_the_same_after_a_resume(tmp_path):
    DATA["workers"] = lambda: DataLoader(Noisy(), 10, shuffle=True, num_workers=2)
    try:
        check_resumed(tmp_path, data="workers")
    finally:
        DATA.pop("workers")


# ------------------------------------------------------------------------------------- meanings


def test_batches_of_a_step_are_as_one_batch():
    states = []
    for size, count in ((8, 3), (24, 1)):
        vae = make("planar*2", seed=1)
        fit(vae, X, epochs=2, batch_size=size, accumulate=count, lr=1e-2, progress=False)
        states.append(vae.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], atol=1e-5, rtol=1e-4)


def test_groups_keep_their_own_rates_through_schedules_and_recoveries():
    vae = own()
    optimizer = two_groups(vae)
    rates = Rates(optimizer, schedulers.StepLR(optimizer, 1, 0.5), "step")
    assert rates.initial == [1e-2, 2e-3, 3e-3]
    seen = []
    optimizer.register_step_pre_hook(
        lambda o, *_: seen.append([group["lr"] for group in o.param_groups])
    )
    rates.step(0.5), rates.after_step(), rates.step(1.0)
    assert seen == [[5e-3, 1e-3, 1.5e-3], [5e-3, 1e-3, 1.5e-3]]


def test_the_average_is_what_is_validated_and_kept(tmp_path):
    vae = own()
    seen = []

    class Weights(nfvae.Callback):
        def step(self, step, numbers):
            seen.append(vae.decoder[0].weight.detach().clone())

    start = vae.decoder[0].weight.detach().clone()
    run = fit(
        vae, X, valid=X[:9], epochs=1, batch_size=11, ema=0.9, lr=0.05, callbacks=[Weights()],
        progress=False,
    )  # fmt: skip
    mean = start
    for count, value in enumerate(seen, 1):
        decay = min(0.9, count / (9 + count))
        mean = decay * mean + (1 - decay) * value
    torch.testing.assert_close(vae.decoder[0].weight, mean)
    with torch.no_grad():
        assert run.history[0]["valid"]["elbo"] == pytest.approx(-run.progress.best)


def test_a_new_rate_is_taken_only_where_it_is_asked_for(tmp_path):
    def go(rate, epochs, **more):
        vae = own()
        optimizer = torch.optim.Adam(vae.parameters(), lr=rate)
        scheduler = schedulers.ExponentialLR(optimizer, 0.5)
        fit(vae, X, out=tmp_path, optimizer=optimizer, scheduler=scheduler, epochs=epochs,
            progress=False, **more)  # fmt: skip
        return optimizer.param_groups[0]["lr"]

    assert go(0.1, 2) == pytest.approx(0.025)
    with pytest.raises(FileError, match=r"its rates is \[0.1\], not \[0.2\].*new_rate=True"):
        go(0.2, 3, resume=True)
    assert go(0.2, 3, resume=True, new_rate=True) == pytest.approx(0.025)
    assert go(0.2, 4, resume=True) == pytest.approx(0.0125)


def test_half_precision_is_for_the_nets_alone():
    kinds = {}
    vae = own()
    vae.encoder.head.register_forward_hook(
        lambda part, given, found: kinds.update({part.training: found.dtype})
    )
    run = fit(vae, X, valid=X[:9], epochs=1, precision="bf16", progress=False)
    assert kinds == {True: torch.bfloat16, False: torch.float32}
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    assert np.isfinite(run.history[0]["train"]["elbo"])


def test_without_validation_the_last_state_is_the_best(tmp_path):
    run = fit(own(), X, out=tmp_path, epochs=2, progress=False)
    assert run.progress.best_epoch == 2
    assert run.history[-1]["valid"] is None
    found = load(tmp_path, encoder=Net(), decoder=decoder())
    assert same(found.state_dict(), run.vae.state_dict())


def test_labels_condition_where_the_vae_has_them():
    def conditional():
        return make("iaf*1", condition_dim=4)

    run = fit(conditional(), DataLoader(TensorDataset(X, Y), 10), valid=(X, Y), epochs=1,
              progress=False)  # fmt: skip
    again = fit(conditional(), (X, Y), valid=(X, Y), epochs=1, progress=False)
    for one in (run, again):
        assert np.isfinite(one.history[0]["valid"]["elbo"])
    for data in (X, [X[:5]]):
        with pytest.raises(DataError, match=r"is conditional"):
            fit(conditional(), data, epochs=1, progress=False)


# -------------------------------------------------------------------------------------- loading


def test_own_nets_load_with_new_ones_and_ours_without(tmp_path):
    run = fit(own(), X, out=tmp_path / "own", epochs=1, progress=False)
    with pytest.raises(FileError, match=r"pass decoder=.*encoder=\.\.\. \(it was a .*Net\)"):
        load(tmp_path / "own")
    found = load(tmp_path / "own", encoder=Net(), decoder=decoder())
    assert same(found.state_dict(), run.vae.state_dict())
    with pytest.raises(FileError, match=r"(?s)with these parts.*size mismatch"):
        load(tmp_path / "own", encoder=Net(context=5), decoder=decoder())
    plain = fit(make("iaf*1", prior="maf*1"), X, out=tmp_path / "ours", epochs=1, progress=False)
    assert same(load(tmp_path / "ours").state_dict(), plain.vae.state_dict())
    with pytest.raises(FileError, match="leave out encoder"):
        load(tmp_path / "ours", encoder=Net())


def test_a_flow_of_ones_own_is_passed_too(tmp_path):
    from pyro_nfvi.flows import make_flow

    def build():
        torch.manual_seed(0)
        return FlowVAE(Net(), decoder(), 3, 4, make_flow("radial*2", 3, 4))

    run = fit(build(), X, out=tmp_path, epochs=1, progress=False)
    flow = make_flow("radial*2", 3, 4)
    found = load(tmp_path, encoder=Net(), decoder=decoder(), flow=flow)
    assert same(found.state_dict(), run.vae.state_dict())


# -------------------------------------------------------------------------------------- loggers


def test_a_table_goes_on_with_its_run(tmp_path):
    def go(epochs, resume=False):
        logger = CSVLogger(tmp_path / "log.csv")
        lines = []
        fit(make("planar*1"), X, valid=X, out=tmp_path / "run", epochs=epochs, resume=resume,
            callbacks=[logger, lines.append], progress=False)  # fmt: skip
        return lines

    assert [line["epoch"] for line in go(2)] == [1, 2]
    go(3, resume=True)
    table = (tmp_path / "log.csv").read_text().splitlines()
    assert table[0].startswith("epoch,step,train.elbo")
    assert [line.split(",")[0] for line in table[1:]] == ["1", "2", "3"]


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs needs to be a whole number"),
        ({"lr": 0.0}, "lr"),
        ({"ema": 1.0}, "ema is a decay between 0 and 1"),
        ({"precision": "fp16"}, "precision is 'fp32' or 'bf16'"),
        ({"patience": 2}, "needs validation images"),
        ({"resume": True}, "belong to a folder"),
        ({"optimizer": torch.optim.LBFGS}, "need no closure"),
        ({"optimizer": torch.optim.Adam([nn.Parameter(torch.ones(2))])}, "of which 0 are the VAE"),
        ({"scheduler": schedulers.StepLR(sgd(own()), 1)}, "that of another optimiser"),
        ({"scheduler_interval": "year"}, "'step' or 'epoch'"),
        ({"train": iter([X])}, "gives its batches once"),
        ({"train": 3}, "Data are a tensor, a Dataset"),
        ({"train": [[X, X]] * 0}, "gave no batch"),
        ({"train": ["text"]}, "A batch is a tensor of images"),
        ({"train": X[:0]}, "0 images"),
        ({"train": [X[:1]]}, "Batch normalisation needs two"),
        ({"vae": nn.Linear(2, 2)}, "fit trains a FlowVAE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_refused_in_words(change, words):
    given = {"vae": own(), "train": X, **change}
    vae, data = given.pop("vae"), given.pop("train")
    with pytest.raises((OptionError, DataError), match=words):
        fit(vae, data, **{"epochs": 1, "progress": False, **given})


def test_a_loader_that_divides_rows_among_processes_is_refused():
    vae = make("planar*1")
    sampler = DistributedSampler(X, num_replicas=2, rank=0)
    feed = Feed(rows_of(DataLoader(X, 10, sampler=sampler), batch_size=10, labelled=False), None)
    rates, plan = Rates(sgd(vae)), Plan(ELBOLoss(), 1, 10)
    with pytest.raises(OptionError, match="ordinary sampler"):
        Trainer(vae, feed, plan, rates, team=ProcessGroup(0, 2, torch.device("cpu")))
    assert Trainer(vae, feed, plan, rates).run().epoch == 1
    frozen = make("planar*1").requires_grad_(False)
    with pytest.raises(OptionError, match="nothing to train"):
        Trainer(frozen, feed, plan, Rates(sgd(frozen)))


def test_a_folder_of_another_run_is_refused(tmp_path):
    fit(own(), X, out=tmp_path, epochs=1, progress=False)
    held = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(FileError, match="holds a run already"):
        fit(own(), X, out=tmp_path, epochs=1, progress=False)
    for change, words in (
        ({"batch_size": 7}, "batch_size"), ({"ema": 0.5}, "its ema is"),
        ({"loss": ELBOLoss(2)}, "its loss is"), ({"train": X[:32]}, "its data is"),
        ({"vae": make("planar*2")}, "its"),
    ):  # fmt: skip
        given = {"vae": own(), "train": X, **change}
        with pytest.raises(FileError, match=words):
            fit(given.pop("vae"), given.pop("train"), out=tmp_path, resume=True, epochs=2,
                progress=False, **given)  # fmt: skip
    assert (tmp_path / "last.pt").read_bytes() == held


def test_random_states_of_the_caller_are_left_alone():
    vae = own()
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    fit(vae, DATA["loader"](), epochs=1, progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]  # noqa: NPY002


# ---------------------------------------------------------------------------- loops of one's own


def test_forward_is_the_loss_and_makes_no_statement_of_pyro():
    import pyro

    pyro.clear_param_store()
    vae = make("iaf*1")
    eps = torch.randn(1, 9, 3)
    found = vae(X[:9], eps=eps)
    torch.testing.assert_close(-found.surrogate.detach(), vae.elbo(X[:9], eps=eps).bound.detach())
    found.surrogate.mean().backward()
    assert all(p.grad is not None for p in vae.parameters())
    assert not list(pyro.get_param_store().keys())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "accelerate", "lightning"])
def test_two_processes_of_every_framework_end_with_the_same_weights(name):
    if name != "ddp":
        pytest.importorskip(name)
    import os
    import subprocess
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    # Lightning starts its processes by itself.
    launch = [sys.executable, *([] if name == "lightning" else torchrun)]
    started = subprocess.run(
        [*launch, root / "examples" / "trainers" / f"vae_{name}.py"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    sums = dict(re.findall(r"^([01]): (-?\d+\.\d+)$", started.stdout, re.MULTILINE))
    assert sums["0"] == sums["1"]


def gradient_of(rank, folder, x, eps):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    vae = make("iaf*1", seed=1)
    rows = slice(16 * rank, 16 * rank + 16)
    wrapped = DistributedDataParallel(vae)  # its hooks live as long as it does
    wrapped(x[rows], eps=eps[:, rows]).surrogate.mean().backward()
    torch.save([p.grad for p in vae.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_gradient_of_ddp_is_that_of_the_whole_batch(tmp_path):
    import torch.multiprocessing as mp

    eps = torch.randn(1, 32, 3)
    mp.spawn(gradient_of, (tmp_path, X[:32].clone(), eps), nprocs=2)
    vae = make("iaf*1", seed=1)
    vae(X[:32], eps=eps).surrogate.mean().backward()
    for rank in (0, 1):
        for one, two in zip(vae.parameters(), torch.load(tmp_path / f"{rank}.pt")):
            torch.testing.assert_close(one.grad, two, atol=1e-6, rtol=1e-5)


def test_tensorboard_gets_scalars_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = nfvae.TensorBoardLogger(tmp_path, every=2)
    fit(make("planar*1"), X, valid=X, epochs=2, batch_size=11, callbacks=[logger], progress=False)
    held = EventAccumulator(str(tmp_path))
    held.Reload()
    assert [one.step for one in held.Scalars("epoch/valid.elbo")] == [3, 6]
    assert [one.step for one in held.Scalars("step/bound")] == [2, 4, 6]


def test_without_tensorboard_the_other_logger_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match="take CSVLogger"):
        fit(make("planar*1"), X, epochs=1, callbacks=[nfvae.TensorBoardLogger("x")], progress=False)


SCRIPT = """
import sys
import torch
from torch.utils.data import DataLoader
sys.path.insert(0, {tests!r})
from vae.test_fit import Noisy, X, make, own, two_groups
from pyro_nfvi.vae import fit
torch.set_num_threads(1)
vae = own() if int(sys.argv[3]) > 1 else make("planar*2", seed=1)
optimizer = two_groups(vae)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=10_000)
run = fit(
    vae, DataLoader(Noisy(), 10, shuffle=True), valid=X[:9], out=sys.argv[1], resume=True,
    epochs=int(sys.argv[2]), optimizer=optimizer, scheduler=scheduler, ema=0.9, save_steps=3,
    accumulate=int(sys.argv[3]), progress=False,
)
sys.exit(143 if run.progress.done == "interrupted" else 0)
"""


def script(tmp_path, folder, epochs, accumulate, processes=0):
    import os
    from pathlib import Path

    tests = Path(__file__).resolve().parents[1]
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(tests=str(tests)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *(torchrun if processes else []), path, tmp_path / folder, str(epochs),
         str(accumulate)],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def weights(folder):
    return read_file(folder / "last.pt", "VAE")[1]


@pytest.mark.slow
def test_killed_at_any_time_a_run_ends_with_the_same_bits(tmp_path):
    with script(tmp_path, "whole", 60, 2) as whole:
        assert whole.wait() == 0, whole.stderr.read()
    kills = 0
    for attempt in range(12):
        with script(tmp_path, "killed", 60, 2) as process:
            log = tmp_path / "killed" / "log.jsonl"
            before = log.stat().st_size if log.exists() else 0
            while process.poll() is None and kills < 3:
                if log.exists() and log.stat().st_size > before + 300 * (attempt + 1):
                    time.sleep(0.013 * attempt)
                    process.kill()
                    break
                time.sleep(0.005)
            code = process.wait()
            words = process.stderr.read()
        if code == 0:
            break
        assert code == -signal.SIGKILL, words
        kills += 1
    assert kills >= 2
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path):
    for name, count in (("one", 0), ("two", 2)):
        with script(tmp_path, name, 3, 1, count) as process:
            assert process.wait() == 0, process.stderr.read()
    one, two = (weights(tmp_path / name)["vae"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=0)
