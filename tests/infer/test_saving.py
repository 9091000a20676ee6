"""Fits loaded with other data or priors, and saved while something goes wrong."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, constraints, transforms

import pyro_nfvi as nfvi
from pyro_nfvi._files.atomic_files import whole_file
from pyro_nfvi.arviz import save_netcdf
from pyro_nfvi.errors import DataWarning, FileError, ModelError, OptionError
from pyro_nfvi.infer._findings import OtherData, find
from pyro_nfvi.vae import load_vae
from pyro_nfvi.vae._architecture import Architecture
from pyro_nfvi.vae.train._run_folder import RunFolder

Y = torch.tensor([1.0, 2.0, 3.0])


def normal(y, spread=50.0, noise=1.0, low=None):
    prior = dist.Normal(torch.zeros((), dtype=y.dtype), spread)
    mu = pyro.sample("mu", prior if low is None else dist.Uniform(low, 60.0))
    pyro.deterministic("shifted", mu + y[0])
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, noise), obs=y)


def batches(y, size):
    mu = pyro.sample("mu", dist.Normal(0.0, 50.0))
    with pyro.plate("rows", len(y), subsample_size=size) as index:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def crossed(y, size):
    mu = pyro.sample("mu", dist.Normal(0.0, 50.0))
    with pyro.plate("rows", len(y), subsample_size=size, dim=-1) as row:
        with pyro.plate("again", len(y), subsample_size=size, dim=-2) as column:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[row] + 0 * y[column, None])


def fit(model, *args, **options):
    options = {"max_steps": 60, "explore": "off", "engine": "eager", **options}
    return nfvi.NFVI(model, "affine", seed=0, progress=False, **options).run(*args)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("fits") / "fit.nfvi"
    fit(normal, Y).save(path)
    return path


def test_the_same_model_and_data_give_the_same_fit(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, args in ((normal, (Y,)), (normal, (Y.clone(),)), (lambda y: normal(y), (Y,))):
            again = nfvi.load(saved, model=model, args=args)
            assert again.elbo == nfvi.load(saved).elbo
            assert str(again.verdict) == "good"


OTHERS = {
    "other data": ((Y + 100,), {}),
    "a little other data": ((Y + 0.01,), {}),
    "one datum more": ((torch.cat([Y, Y[:1]]),), {}),
    "one datum less": ((Y[:2],), {}),
    "another prior": ((Y,), {"spread": 40.0}),
    "another noise": ((Y,), {"noise": 1.01}),
}


@pytest.mark.parametrize("which", OTHERS)
def test_other_data_or_priors_are_told_and_all_is_computed_anew(saved, which):
    args, kwargs = OTHERS[which]
    with pytest.warns(DataWarning, match="other data or another model"):
        again = nfvi.load(saved, model=normal, args=args, kwargs=kwargs)
    assert find(again.training.findings, OtherData) is not None
    assert str(again.verdict) != "good"
    # By a normal prior and normal data: the log joint, at any point, less the guide's density.
    mu = again.draws.z[:, 0].double()
    y, spread, noise = args[0].double(), kwargs.get("spread", 50.0), kwargs.get("noise", 1.0)
    log_p = dist.Normal(0.0, spread).log_prob(mu)
    log_p += dist.Normal(mu[:, None], noise).log_prob(y).sum(-1)
    exact = float((log_p - again.draws.log_q.double()).mean())
    assert again.elbo == pytest.approx(exact, rel=1e-5)
    assert torch.allclose(again.draws.deterministic["shifted"], again.draws.z[:, 0] + args[0][0])
    if which == "other data":
        assert again.elbo < -1000
        assert str(again.verdict) == "do not trust"


def test_a_model_of_another_support_is_refused(saved):
    with pytest.raises(ModelError, match="support"):
        nfvi.load(saved, model=normal, args=(Y,), kwargs={"low": -60.0})


class Above(constraints._GreaterThan):
    """A support of a user's own class, with a bijection that he registered."""

    def __init__(self, lower_bound=0.0):
        super().__init__(lower_bound)


biject_to.register(Above, lambda support: transforms.ComposeTransform(
    [transforms.ExpTransform(), transforms.AffineTransform(support.lower_bound, 1.0)]
))  # fmt: skip


class Waiting(dist.Exponential):
    support = Above()


def waits(y, site="rate", law=Waiting):
    rate = pyro.sample(site, law(torch.ones(2)).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(rate.sum(-1, keepdim=True), 1.0), obs=y)


def test_supports_of_ones_own_class_come_from_the_model(tmp_path):
    path = tmp_path / "fit.nfvi"
    first = fit(waits, Y, max_steps=30)
    first.save(path)
    again = nfvi.load(path, model=waits, args=(Y,))
    assert torch.equal(again.sample(5, seed=0)["rate"], first.sample(5, seed=0)["rate"])
    with pytest.raises(OptionError, match=r"class of your own.*load\(path, model=model"):
        nfvi.load(path)
    with pytest.raises(ModelError, match="'rate' is missing"):
        nfvi.load(path, model=waits, args=(Y, "speed"))
    with pytest.raises(ModelError, match="support"):
        nfvi.load(path, model=waits, args=(Y, "rate", dist.Exponential))


def test_a_model_of_another_type_is_refused(saved):
    with pytest.raises(ModelError, match=r"numbers are float64.*set_default_dtype"):
        nfvi.load(saved, model=normal, args=(Y.double(),))


@pytest.mark.parametrize(("model", "exact"), [(batches, True), (crossed, False)])
def test_mini_batches_are_told_apart_by_what_was_given(tmp_path, model, exact):
    y = torch.linspace(0, 3, 12)
    fit(model, y, 4, max_steps=30).save(tmp_path / "fit.nfvi")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = nfvi.load(tmp_path / "fit.nfvi", model=model, args=(y, 4))
        assert again.draws.exact == exact
        if not exact:  # all data, where the fit saw mini-batches
            assert nfvi.load(tmp_path / "fit.nfvi", model=model, args=(y, 12)).draws.exact
    with pytest.warns(DataWarning):
        nfvi.load(tmp_path / "fit.nfvi", model=model, args=(y + 1, 4))


# ------------------------------------------------------------------------------------- drafts


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def killed_in_the_middle(target):
    """A process that is killed when half of a file is written."""
    code = textwrap.dedent(
        """
        import os, signal, sys
        from pyro_nfvi._files.atomic_files import whole_file
        with whole_file(sys.argv[1]) as draft:
            draft.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_a_kill_left_behind_is_removed_by_the_next_save(tmp_path):
    target = tmp_path / "fit.nfvi"
    target.write_bytes(b"earlier")
    killed_in_the_middle(target)
    assert target.read_bytes() == b"earlier"
    assert len(entries(tmp_path)) == 2
    with whole_file(target) as draft:
        draft.write_bytes(b"whole")
    assert entries(tmp_path) == ["fit.nfvi"]
    assert target.read_bytes() == b"whole"


def test_nothing_else_is_removed(tmp_path):
    target = tmp_path / "fit.nfvi"
    mine = [".fit.nfvi.settings", ".fit.nfvi.12345678", ".fit.nfvi.notes", "fit.nfvi.draft"]
    for name in mine:
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (1, 1))
    folder = tmp_path / ".fit.nfvi.0123abcd.draft"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    (tmp_path / ".fit.nfvi.4567abcd.draft").write_text("a file, not a folder")
    (tmp_path / ".fit.nfvi.89abcdef.draft").symlink_to(folder)
    before = set(entries(tmp_path))
    with whole_file(target) as draft:
        draft.write_text("whole")
    assert set(entries(tmp_path)) == before | {"fit.nfvi"}
    assert (folder / "thesis.tex").read_text() == "mine"


def test_drafts_of_version_0_1_are_removed_once_they_are_old(tmp_path):
    old, young = tmp_path / ".fit.nfvi.abcd_123", tmp_path / ".fit.nfvi.efgh_456"
    for path in (old, young):
        path.write_bytes(b"PK\x03\x04 ... pyro_nfvi ...")
    os.utime(old, (1, 1))
    with whole_file(tmp_path / "fit.nfvi") as draft:
        draft.write_text("whole")
    assert entries(tmp_path) == [young.name, "fit.nfvi"]


def test_a_draft_that_is_in_use_is_let_alone(tmp_path):
    target = tmp_path / "fit.nfvi"
    with whole_file(target) as first:
        first.write_text("one")
        with whole_file(target) as second:
            second.write_text("two")
        assert target.read_text() == "two"
        assert first.read_text() == "one"
    assert target.read_text() == "one"
    assert entries(tmp_path) == ["fit.nfvi"]


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_an_error_leaves_the_earlier_file(tmp_path, error):
    target = tmp_path / "fit.nfvi"
    target.write_text("earlier")
    expected = FileError if error is OSError else error

    def write():
        with whole_file(target) as draft:
            draft.write_text("half")
            raise error("in the middle")

    with pytest.raises(expected):
        write()
    assert entries(tmp_path) == ["fit.nfvi"]
    assert target.read_text() == "earlier"


def test_permissions_and_links_are_kept(tmp_path):
    target, link = tmp_path / "fit.nfvi", tmp_path / "link.nfvi"
    target.write_text("earlier")
    target.chmod(0o640)
    link.symlink_to(target)
    with whole_file(link) as draft:
        draft.write_text("whole")
    assert link.is_symlink()
    assert target.read_text() == "whole"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_threads_and_processes_that_save_at_once_leave_one_whole_file(tmp_path):
    target, contents = tmp_path / "fit.nfvi", [str(k) * 100_000 for k in range(6)]
    errors = []

    def work(text):
        try:
            for _ in range(20):
                with whole_file(target) as draft:
                    draft.write_text(text)
                assert target.read_text() in contents
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in contents]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == []
    assert entries(tmp_path) == ["fit.nfvi"]


def saving(what, folder, saved):
    """What writes a file of a kind again and again, and what reads it."""
    if what == "fit":
        fit = nfvi.load(saved)
        return lambda: fit.save(folder / "fit.nfvi"), lambda: nfvi.load(folder / "fit.nfvi")
    if what == "netcdf":
        az = pytest.importorskip("arviz")
        tree, path = nfvi.to_arviz(nfvi.load(saved), num_samples=50), folder / "draws.nc"
        return lambda: save_netcdf(tree, path), lambda: az.from_netcdf(str(path)).close()
    kind = Architecture((4, 4), latent_dim=2, flow="planar*2", hidden=(8,))
    files, vae = RunFolder(folder), kind.build(seed=0)
    return lambda: files.save_best(vae, {"architecture": kind.spec()}), lambda: load_vae(folder)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("what", ["fit", "netcdf", "vae"])
@pytest.mark.parametrize("kills", [3, pytest.param(15, marks=pytest.mark.slow)])
def test_kills_while_saving_leave_a_whole_file(saved, tmp_path, what, kills):
    """Kills, each at another moment of a loop that saves."""
    save, read = saving(what, tmp_path, saved)
    save()
    for k in range(kills):
        pid = os.fork()
        if not pid:
            try:
                while True:
                    save()
            finally:
                os._exit(1)
        time.sleep(0.02 + 0.003 * k)
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        read()
    save()
    assert len(entries(tmp_path)) == 1
