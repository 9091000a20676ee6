"""The folder of compiled objects, and the compiler behind it, when things go wrong."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from pyro_nfvi.engine.cache import Cache, clear_cache, default_folder
from pyro_nfvi.engine.native import NativeFunction, compiler
from pyro_nfvi.engine.native.compiler import Compiler, find_compiler
from pyro_nfvi.engine.native.objects import compile_text
from pyro_nfvi.engine.program import Unsupported
from pyro_nfvi.engine.record import Recorder

TRIFLE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'


def writer(data, counts):
    def build(path):
        counts.append(1)
        path.write_bytes(data)

    return build


def test_a_second_time_nothing_is_built(tmp_path):
    cache, counts = Cache(tmp_path / "c"), []
    first = cache.get("key", writer(b"one", counts))
    assert cache.get("key", writer(b"two", counts)) == first
    assert first.read_bytes() == b"one"
    assert len(counts) == 1


@pytest.mark.parametrize("harm", ["truncate", "change", "foreign", "no sum", "other key", "file"])
def test_what_is_not_whole_is_built_again(tmp_path, harm):
    cache, counts = Cache(tmp_path), []
    path = cache.get("key", writer(b"contents", counts))
    entry = path.parent
    if harm == "truncate":
        path.write_bytes(b"cont")
    elif harm == "change":
        path.write_bytes(b"c0ntents")
    elif harm == "foreign":
        path.write_bytes(b"something else altogether")
        (entry / "sum").write_text("made up")
    elif harm == "no sum":
        (entry / "sum").unlink()
    elif harm == "other key":
        other = cache.get("other", writer(b"other", []))
        path.write_bytes(other.read_bytes())
        (entry / "sum").write_text((other.parent / "sum").read_text())
    else:
        path.unlink(), (entry / "sum").unlink(), entry.rmdir()
        entry.write_bytes(b"a file where a folder should be")
    assert cache.find("key") is None
    assert cache.get("key", writer(b"contents", counts)).read_bytes() == b"contents"
    assert len(counts) == 2


def test_a_build_that_fails_leaves_nothing(tmp_path):
    cache = Cache(tmp_path)

    def build(path):
        path.write_bytes(b"half")
        raise Unsupported("killed")

    with pytest.raises(Unsupported, match="killed"):
        cache.get("key", build)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_reason(tmp_path):
    def build(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(Unsupported, match="No space left"):
        Cache(tmp_path).get("key", build)
    assert list(tmp_path.iterdir()) == []


def test_beyond_its_bound_the_oldest_go(tmp_path):
    cache = Cache(tmp_path, most=250)
    for k in range(4):
        path = cache.get(f"key{k}", writer(b"x" * 100, []))
        os.utime(path.parent / "sum", (k, k))
        if k == 2:
            assert cache.find("key1") is not None  # used: younger than key2 now
    assert {path.name for path in tmp_path.iterdir()} == {"key1", "key3"}


def test_unfinished_work_of_the_dead_is_removed(tmp_path):
    old, young = tmp_path / "nfvi-old", tmp_path / "nfvi-young"
    old.mkdir(), young.mkdir()
    os.utime(old, (1, 1))
    Cache(tmp_path).get("key", writer(b"x", []))
    assert not old.exists()
    assert young.exists()


def test_threads_build_the_same_at_once(tmp_path):
    cache, found = Cache(tmp_path), []
    gate = threading.Barrier(4)

    def build(path):
        gate.wait()
        path.write_bytes(b"same")

    def work():
        found.append(cache.get("key", build).read_bytes())

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == [b"same"] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_the_folder_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Cache().folder
    assert folder == tmp_path / "pyro_nfvi"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    Cache()
    assert stat.S_IMODE(folder.stat().st_mode) & 0o022 == 0
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(Unsupported, match="another user"):
        Cache()


def test_a_folder_that_cannot_be_made_is_a_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unsupported, match="cannot be used"):
        Cache(tmp_path / "file" / "cache")


def test_clear_cache_removes_all(tmp_path):
    cache = Cache(tmp_path)
    for key in ("one", "two"):
        cache.get(key, writer(b"x", []))
    assert clear_cache(tmp_path) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_ignores_a_relative_name(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == Path("~/.cache/pyro_nfvi").expanduser()


# ------------------------------------------------------------------------------- the compiler


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A cache folder of the test's own, and no compiler known from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiler._find.cache_clear()
    yield tmp_path
    compiler._find.cache_clear()


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_no_compiler_is_a_reason(fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Unsupported, match="no C\\+\\+ compiler"):
        compile_text(TRIFLE)


def test_a_compiler_that_is_named_but_missing_is_a_reason(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unsupported, match="no-such-compiler"):
        compile_text(TRIFLE)


@pytest.mark.parametrize(
    ("body", "word"),
    [("exit 3", "status 3"), ("kill -9 $$", "killed"), ("echo error: bad >&2; exit 1", "bad")],
)
def test_a_compile_that_fails_is_a_reason_and_leaves_nothing(fresh, body, word):
    broken = Compiler((script(fresh / "cc", body),), "1", (), ())
    folder = fresh / "objects"
    with pytest.raises(Unsupported, match=word):
        Cache(folder).get("key", lambda path: broken.build(TRIFLE, path))
    assert list(folder.iterdir()) == []


def test_a_compiler_that_hangs_is_given_up(fresh):
    slow = script(fresh / "cc", "exec sleep 30")
    with pytest.raises(Unsupported, match="took more than"):
        compiler._run([slow], str(fresh), patience=0.2)


def test_a_cache_folder_of_somebody_else_is_gone_around(fresh, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: fresh.stat().st_uid + 1)
    path, cached = compile_text(TRIFLE)
    assert path.exists()
    assert not cached


def test_the_compiler_is_tried_out_once(fresh, monkeypatch):
    first = find_compiler()
    compiler._find.cache_clear()
    monkeypatch.setattr(compiler, "_probe", lambda *_: pytest.fail("tried again"))
    assert find_compiler() == first


def test_flags_let_nan_and_infinity_be_seen():
    assert not any("fast-math" in flag or "finite" in flag for flag in find_compiler().flags)
    x = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf] * 8)
    recorder = Recorder({"x": x})
    with recorder:
        outputs = [x.isnan(), x.isinf(), x.isfinite(), x != x, (x - x), x.sum(), x.amax(), x.exp()]
    recorder.output(outputs)
    graph = torch.fx.GraphModule(torch.nn.Module(), recorder.graph)
    for one, other in zip(NativeFunction(graph, recorder.consts)(x), outputs):
        torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.slow
def test_two_processes_that_start_cold_at_once(fresh):
    code = textwrap.dedent(
        """
        import ctypes
        from pyro_nfvi.engine.native.objects import compile_text
        path, _ = compile_text(%r)
        print(ctypes.CDLL(str(path)).answer())
        """
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code % TRIFLE], stdout=-1, text=True
        )
        for _ in range(2)
    ]
    assert [run.communicate()[0].strip() for run in runs] == ["42", "42"]
