"""The folder of compiled objects, and the compiler behind it, when things go wrong."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import pyro
import pytest
import torch
from engine.native_function import NativeFunction

from pyro_nfvi import NFVI, clear_cache
from pyro_nfvi._engine import cache as cache_module
from pyro_nfvi._engine.cache import Cache, default_folder
from pyro_nfvi._engine.native import compiler
from pyro_nfvi._engine.native import shared_library as library
from pyro_nfvi._engine.native.compiled_objects import compile_text
from pyro_nfvi._engine.native.compiler import CompilerFault, find_compiler
from pyro_nfvi._engine.native.subprocesses import run, work_folder
from pyro_nfvi._engine.program import Unsupported
from pyro_nfvi._engine.recorder import Recorder
from pyro_nfvi.errors import FileError, ModelWarning

TRIFLE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'
KEY, OTHER = Cache.key("one"), Cache.key("other")


def put(cache, key=KEY, data=b"contents"):
    assert cache.put(key, data)
    return cache.folder / key


def names(folder):
    return {path.name for path in Path(folder).iterdir()} - {"CACHEDIR.TAG"}


def test_what_was_kept_is_found(tmp_path):
    cache = Cache(tmp_path / "c")
    assert cache.find(KEY) is None
    put(cache)
    put(cache, data=b"two")  # made by another process meanwhile: the first stays
    assert cache.find(KEY) == b"contents"
    assert names(cache.folder) == {KEY}


# What may stand in the place of an entry that was made as it should be. None of it is loaded; what
# has the form of an entry, or leads elsewhere, makes room for the next one.


def harm(entry, how, elsewhere):
    path, told = entry / "step.so", entry / "sum"
    twin = elsewhere / "twin"
    twin.mkdir()
    for one in (path, told):
        (twin / one.name).write_bytes(one.read_bytes())
    if how == "truncated":
        path.write_bytes(b"cont")
    elif how == "changed":
        path.write_bytes(b"c0ntents")
    elif how == "sum made up":
        told.write_text("made up")
    elif how == "sum not text":
        told.write_bytes(b"\xff\xfe" * 40)
    elif how == "no sum":
        told.unlink()
    elif how == "no object":
        path.unlink()
    elif how == "of another key":
        Cache(entry.parent).put(OTHER, b"other")
        for one in (path, told):
            one.write_bytes((entry.parent / OTHER / one.name).read_bytes())
    elif how == "object linked":
        path.unlink(), path.symlink_to(twin / "step.so")
    elif how == "sum linked":
        told.unlink(), told.symlink_to(twin / "sum")
    elif how == "object linked hard":
        path.unlink(), os.link(twin / "step.so", path)
    elif how == "entry linked":
        os.rename(entry, elsewhere / "gone"), entry.symlink_to(twin)
    elif how == "a pipe":
        path.unlink(), os.mkfifo(path)
    elif how == "object of others":
        os.chown(path, 12345, -1)
    elif how == "sum of others":
        os.chown(told, 12345, -1)
    elif how == "entry of others":
        os.chown(entry, 12345, -1)
    elif how == "object open to others":
        path.chmod(0o666)
    elif how == "object open to the group":
        path.chmod(0o660)
    elif how == "sum open to others":
        told.chmod(0o622)
    elif how == "entry open to others":
        entry.chmod(0o777)
    return twin


HARMS = (
    "truncated", "changed", "sum made up", "sum not text", "no sum", "no object", "of another key",
    "object linked", "sum linked", "object linked hard", "entry linked", "a pipe",
    "object of others", "sum of others", "entry of others", "object open to others",
    "object open to the group", "sum open to others", "entry open to others",
)  # fmt: skip


@pytest.mark.parametrize("how", HARMS)
def test_what_is_not_as_it_was_made_is_never_loaded(tmp_path, how):
    if "of others" in how and os.getuid():
        pytest.skip("only root can give files away")
    cache = Cache(tmp_path / "c")
    twin = harm(put(cache), how, tmp_path)
    assert cache.find(KEY) is None
    assert cache.put(KEY, b"again")
    assert cache.find(KEY) == b"again"
    assert (twin / "step.so").read_bytes() == b"contents"  # what a link leads to is let alone
    assert (twin / "sum").exists()


@pytest.mark.parametrize("what", ["file", "folder", "more beside it"])
def test_what_is_no_entry_is_let_alone(tmp_path, what):
    cache = Cache(tmp_path / "c")
    entry = put(cache)
    if what == "more beside it":
        (entry / "sum").write_text("made up")
        kept = entry / "thesis.tex"
    elif what == "folder":
        os.rename(entry, tmp_path / "gone")
        (entry / "chapters").mkdir(parents=True)
        kept = entry / "chapters" / "one.tex"
    else:
        os.rename(entry, tmp_path / "gone")
        kept = entry
    kept.write_text("mine")
    assert cache.find(KEY) is None
    assert not cache.put(KEY, b"again")
    cache.most = 0
    cache.put(OTHER, b"x" * 100)
    assert kept.read_text() == "mine"
    with pytest.raises(FileError, match=KEY):
        cache.clear()
    assert kept.read_text() == "mine"


def test_a_full_disk_keeps_nothing_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = Cache(tmp_path)
    monkeypatch.setattr(cache_module, "_write", full)
    assert not cache.put(KEY, b"contents")
    assert names(tmp_path) == set()


def test_beyond_its_bound_the_oldest_go(tmp_path):
    keys = [Cache.key(str(k)) for k in range(4)]
    (tmp_path / "thesis.tex").write_text("mine")
    cache = Cache(tmp_path, most=250)
    for k, key in enumerate(keys):
        entry = put(cache, key, b"x" * 100)
        os.utime(entry / "sum", (k, k))
        if k == 2:
            assert cache.find(keys[1]) is not None  # used: younger than the next one now
    assert names(tmp_path) == {keys[1], keys[3], "thesis.tex"}


def test_unfinished_work_of_the_dead_is_removed(tmp_path):
    old, young, other = (tmp_path / name for name in ("nfvi-0123abcd", "nfvi-4567abcd", "nfvi-x"))
    for folder in (old, young, other):
        folder.mkdir()
        (folder / "step.so").write_bytes(b"half")
    for folder in (old, other):
        os.utime(folder, (1, 1))
    put(Cache(tmp_path))
    assert names(tmp_path) == {KEY, young.name, other.name}


def test_threads_keep_the_same_at_once(tmp_path):
    cache, found = Cache(tmp_path / "c"), []
    gate = threading.Barrier(8)

    def work():
        gate.wait()
        found.append((cache.put(KEY, b"same"), cache.find(KEY)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found == [(True, b"same")] * 8
    assert names(cache.folder) == {KEY}


def test_a_folder_that_is_made_is_closed_to_others(tmp_path):
    cache = Cache(tmp_path / "deep" / "c")
    before = os.umask(0)
    try:
        put(cache)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((cache.folder / KEY / "step.so").stat().st_mode) == 0o600
    assert cache.find(KEY) == b"contents"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707, 0o722])
def test_entries_of_a_folder_that_was_open_to_others_are_discarded(tmp_path, mode):
    cache = Cache(tmp_path / "c")
    put(cache)
    cache.folder.chmod(mode)
    assert cache.find(KEY) is None
    assert names(cache.folder) == set()
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700  # this library made it
    assert cache.put(KEY, b"again")
    assert cache.find(KEY) == b"again"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o755, 0o700, 0o1777])
@pytest.mark.parametrize("tag", ["none", "made up", "linked"])
def test_a_folder_that_somebody_else_made_keeps_its_mode(tmp_path, mode, tag):
    folder = tmp_path / "c"
    folder.mkdir()
    folder.chmod(mode)
    if tag == "made up":
        (folder / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    elif tag == "linked":
        made = Cache(tmp_path / "made")
        put(made)
        (folder / "CACHEDIR.TAG").symlink_to(made.folder / "CACHEDIR.TAG")
    cache = Cache(folder)
    kept = cache.put(KEY, b"contents")
    assert kept == (not mode & 0o022)
    assert cache.find(KEY) == (b"contents" if kept else None)
    clear_cache(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == mode


@pytest.mark.parametrize("place", ["of others", "link", "file", "under a file", "missing"])
def test_a_folder_that_cannot_be_trusted_is_gone_around(tmp_path, place):
    folder = tmp_path / "c"
    if place == "of others":
        if os.getuid():
            pytest.skip("only root can give files away")
        put(Cache(folder))
        os.chown(folder, 12345, -1)
    elif place == "link":
        put(Cache(tmp_path / "made"))
        folder.symlink_to(tmp_path / "made")
    elif place == "file":
        folder.write_text("")
    elif place == "under a file":
        (tmp_path / "file").write_text("")
        folder = tmp_path / "file" / "c"
    assert Cache(folder).find(KEY) is None
    assert place == "missing" or not Cache(folder).put(KEY, b"contents")
    if place == "missing":
        assert clear_cache(folder) == 0
        assert not folder.exists()  # looking makes nothing
    else:
        with pytest.raises(FileError):
            clear_cache(folder)


def test_clear_cache_removes_entries_alone(tmp_path):
    cache = Cache(tmp_path / "c")
    put(cache), put(cache, OTHER)
    assert clear_cache(cache.folder) == 2
    assert names(cache.folder) == set()
    put(cache)
    (cache.folder / "thesis.tex").write_text("mine")
    with pytest.raises(FileError, match=r"thesis.tex.*Nothing was removed"):
        clear_cache(cache.folder)
    assert names(cache.folder) == {KEY, "thesis.tex"}


@pytest.mark.parametrize("name", ["thesis.tex", ".git", "nfvi-notes", "0" * 40, "CACHEDIR.TAG.old"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_clear_cache_refuses_a_folder_of_anything_else(tmp_path, name, kind):
    folder = tmp_path / "mine"
    folder.mkdir()
    folder.chmod(0o755)
    if kind == "file":
        (folder / name).write_text("mine")
    elif kind == "folder":
        (folder / name).mkdir()
        (folder / name / "chapter").write_text("mine")
    else:
        (folder / name).symlink_to(tmp_path)
    with pytest.raises(FileError, match="Nothing was removed"):
        clear_cache(folder)
    assert names(folder) == {name}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_the_default_folder_ignores_a_relative_name(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == Path("~/.cache/pyro_nfvi").expanduser()


def test_what_was_examined_is_what_is_loaded(fresh, monkeypatch):
    """The object is exchanged after it was examined, which a path would not notice."""
    data, _ = compile_text(TRIFLE, ("answer",))
    other, _ = compile_text(TRIFLE.replace("42", "13"), ("answer",))
    for path in Cache().folder.rglob("step.so"):
        path.write_bytes(other)
    assert library.load(data, ("answer",)).answer() == 42


# ------------------------------------------------------------------------------- the compiler


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A cache folder of the test's own, and no compiler known from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "_MEMORY", compiler._Memory())
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
        compile_text(TRIFLE, ("answer",))


def test_a_compiler_that_is_named_but_missing_is_a_reason(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unsupported, match="no-such-compiler"):
        compile_text(TRIFLE, ("answer",))


#: Ends of a command line that make an object which is none, from the good one in ``$made``.
GOOD = f"exec {find_compiler().command[0]}"
OUT = 'while [ "$1" != -o ]; do shift; done; out=$2'


def bad_object(body):
    """A compiler that takes C++ and makes an object with another body in its place."""
    return (
        f"{OUT}; printf '%s' '{body}' > other.cpp; "
        f'{GOOD} -shared -fPIC -x c++ other.cpp -o "$out"'
    )


_ENTER = "__attribute__((constructor)) void enter()"
#: Faulty compilers, and a word of what is said of them.
FAULTS = {
    "fails": ("exit 3", "status 3"),
    "is killed": ("kill -9 $$", "killed"),
    "says why": ("echo 'error: bad' >&2; exit 1", "bad"),
    "prints no UTF-8": (r"printf 'error: \377\376\200' >&2; exit 1", "error"),
    "floods": ("yes error | head -c 5000000 >&2; exit 1", "error"),
    "writes nothing": ("exit 0", "wrote nothing"),
    "an empty object": (f'{OUT}; : > "$out"', "no object"),
    "a folder": (f'{OUT}; mkdir "$out"', "no object"),
    "no object": (f'{OUT}; echo text > "$out"', "cannot be loaded"),
    "no symbols": (bad_object("int x;"), "cannot be loaded"),
    "segfaults": (bad_object(_ENTER + "{ *(volatile int*)8 = 1; }"), "crashes"),
    "aborts": (bad_object(_ENTER + "{ __builtin_abort(); }"), "crashes"),
    "exits": (bad_object(f'extern "C" void _exit(int); {_ENTER} {{ _exit(0); }}'), "ends"),
    "a missing library": (bad_object("extern int gone; int* x = &gone;"), "cannot be loaded"),
}
# A body in single quotes of the shell holds none itself.
assert not any("'" in body for body in ("int x;", _ENTER))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_compiler_is_a_reason_and_is_not_asked_again(fresh, monkeypatch, fault):
    body, word = FAULTS[fault]
    counted = f"echo >> {fresh}/asked\n{body}"
    monkeypatch.setenv("CXX", script(fresh / "cc", counted))
    for k in range(4):
        with pytest.raises(Unsupported, match=word):
            compile_text(TRIFLE.replace("42", str(k)), ("answer",))
    assert len((fresh / "asked").read_text()) == 2  # for its version, and for a trifle
    assert not list(default_folder().glob("*/step.so"))
    assert not list(fresh.glob("cache/pyro_nfvi/nfvi-*"))


@pytest.mark.parametrize("fault", ["fails", "segfaults", "no symbols", "prints no UTF-8"])
def test_a_compiler_that_takes_trifles_alone_is_given_up(fresh, monkeypatch, fault):
    body, word = FAULTS[fault]
    picky = (
        f"case \"$*\" in *--version*) echo 'c \377 1'; exit;; esac\n"
        f"if grep -q answer step.cpp 2>/dev/null; then echo >> {fresh}/asked\n{body}\nfi\n"
        f'{GOOD} "$@"'
    )
    monkeypatch.setenv("CXX", script(fresh / "cc", picky))
    for k in range(6):
        with pytest.raises(CompilerFault, match=word):
            compile_text(TRIFLE.replace("42", str(k)), ("answer",))
        with pytest.raises(CompilerFault, match=word):
            compile_text(TRIFLE.replace("42", str(k)), ("answer",))
    assert len((fresh / "asked").read_text()) == 2


def test_a_source_that_fails_alone_does_not_end_a_good_compiler(fresh):
    for k in range(4):
        with pytest.raises(CompilerFault):
            compile_text(f"nonsense {k}", ())
        assert compile_text(TRIFLE.replace("42", str(k)), ("answer",))[0]
    with pytest.raises(CompilerFault, match="status"):
        compile_text("nonsense 0", ())


@pytest.mark.parametrize(
    "body", ["exec sleep 60", "sleep 60", "trap '' TERM INT; sleep 60; sleep 60"]
)
def test_a_compiler_that_hangs_is_given_up_at_once(fresh, monkeypatch, body):
    hangs = f'case "$*" in *--version*) exit;; esac\necho >> {fresh}/asked\n{body}'
    monkeypatch.setenv("CXX", script(fresh / "cc", hangs))
    monkeypatch.setattr(compiler, "_PROBE_TIMEOUT", 0.3)
    begin = time.monotonic()
    for k in range(3):
        with pytest.raises(Unsupported, match="took more than"):
            compile_text(TRIFLE.replace("42", str(k)), ("answer",))
    assert time.monotonic() - begin < 10
    assert len((fresh / "asked").read_text()) == 1


@pytest.mark.parametrize("fault", ["prints no UTF-8", "no symbols", "segfaults"])
def test_a_fit_goes_on_with_the_next_engine(fresh, monkeypatch, fault):
    body, word = FAULTS[fault]
    monkeypatch.setenv("CXX", script(fresh / "cc", body))

    def model():
        pyro.sample("x", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))

    options = {"max_steps": 500, "stop": False, "precondition": False, "num_particles": 4}
    options["explore"] = "off"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        fit = NFVI(model, "planar*2", seed=0, progress=False, **options).run()
    assert "(native)" not in fit.engine_reason  # the faster of graph and eager, by chance
    assert "not compiled" in fit.engine_reason
    assert word in fit.engine_reason


def test_a_compiler_that_hangs_with_a_step_is_waited_for_once(fresh, monkeypatch):
    picky = (
        f"if grep -q answer step.cpp 2>/dev/null; then echo >> {fresh}/asked; sleep 60; fi\n"
        f'{GOOD} "$@"'
    )
    monkeypatch.setenv("CXX", script(fresh / "cc", picky))
    for k, timeout in enumerate((1.5, 1.5, 1.2, 1.4, 1.7)):
        with pytest.raises(CompilerFault, match="took more than"):
            compile_text(TRIFLE.replace("42", str(k)), ("answer",), timeout)
    assert len((fresh / "asked").read_text()) == 2  # only a longer timeout is another chance


def test_all_that_a_command_started_ends_with_it(tmp_path):
    code = f"(sleep 1; echo late > {tmp_path}/late) & sleep 60"
    assert run([script(tmp_path / "cc", code)], tmp_path, 0.2).hung
    time.sleep(1.3)
    assert not (tmp_path / "late").exists()


def test_the_next_compiler_is_taken_where_one_is_broken(fresh, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    folder = fresh / "bin"
    folder.mkdir()
    script(folder / "c++", "exit 1")
    script(folder / "g++", f'{GOOD} "$@"')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert find_compiler().command == (str(folder / "g++"),)


def test_a_compiler_that_was_mended_is_asked_again(fresh, monkeypatch):
    monkeypatch.setenv("CXX", script(fresh / "cc", "exit 1"))
    with pytest.raises(Unsupported):
        find_compiler()
    script(fresh / "cc", f'{GOOD} "$@"')
    assert find_compiler().command == (str(fresh / "cc"),)


def test_a_cache_folder_of_somebody_else_is_gone_around(fresh, monkeypatch):
    default_folder().mkdir(parents=True)
    default_folder().chmod(0o777)
    data, cached = compile_text(TRIFLE, ("answer",))
    assert library.load(data, ("answer",)).answer() == 42
    assert not cached
    assert names(default_folder()) == set()


def test_a_full_cache_disk_falls_back_to_a_private_folder(fresh, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "_write", full)
    text = TRIFLE.replace("42", "43")
    data, cached = compile_text(text, ("answer",))
    assert library.load(data, ("answer",)).answer() == 43
    assert not cached
    assert compile_text(text, ("answer",))[1] is False


def test_no_room_for_any_file_is_a_reason(fresh):
    """A limit on the size of files stands for full disks everywhere."""
    code = textwrap.dedent(
        """
        import resource
        from pyro_nfvi._engine.native.compiled_objects import compile_text
        from pyro_nfvi._engine.program import Unsupported
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            compile_text(%r, ("answer",))
        except Unsupported as error:
            print("reason")
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code % TRIFLE], capture_output=True, text=True
    )
    assert done.stdout.strip() == "reason", done.stderr


def test_the_compiler_is_tried_out_once(fresh, monkeypatch):
    first = find_compiler()
    compiler._find.cache_clear()
    monkeypatch.setattr(compiler, "_probe", lambda *_: pytest.fail("tried again"))
    assert find_compiler() == first


def test_a_child_forked_in_the_middle_of_a_compile_can_compile(fresh, monkeypatch):
    slow = f'case "$*" in *step.cpp*) echo > {fresh}/inside; sleep 0.5;; esac\n{GOOD} "$@"'
    monkeypatch.setenv("CXX", script(fresh / "cc", slow))
    thread = threading.Thread(target=lambda: compile_text(TRIFLE, ("answer",)))
    thread.start()
    while not (fresh / "inside").exists():
        time.sleep(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        signal.alarm(60)
        data, _ = compile_text(TRIFLE, ("answer",))
        os._exit(0 if library.load(data, ("answer",)).answer() == 42 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    thread.join()
    assert compile_text(TRIFLE, ("answer",))[1]


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


def work_in_a_child(place):
    """Fork a process that runs a command in a work folder; return it once the command has begun."""
    before = len(list(place.glob("*/begun")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        signal.alarm(60)
        with work_folder() as folder:
            (folder / "cc").mkdir()
            (folder / "cc" / "step.s").write_text("half")
            run(["sh", "-c", "echo > begun; sleep 1"], folder, 50)
        os._exit(1)
    deadline = time.monotonic() + 60
    while len(list(place.glob("*/begun"))) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    return pid


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_work_folders_of_a_killed_process_are_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, at_work = work_in_a_child(tmp_path), work_in_a_child(tmp_path)
    try:
        assert len(names(tmp_path)) == 2
        end(dead)
        with work_folder() as mine:
            assert len(names(tmp_path)) == 2  # that of the one that works, and this one
            assert mine.name in names(tmp_path)
    finally:
        end(at_work)
    with work_folder() as mine:
        assert names(tmp_path) == {mine.name}
    assert not names(tmp_path)


def test_nothing_else_is_removed_as_a_work_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with work_folder() as mine:
        mark = next(mine.iterdir()).name
        text = (mine / mark).read_bytes()
    name = "nfvi-work-" + "{:016x}"
    for number, inside in enumerate([{"thesis.tex": b"\\end"}, {mark: b"a word of mine"}]):
        (tmp_path / name.format(number)).mkdir()
        for file, data in inside.items():
            (tmp_path / name.format(number) / file).write_bytes(data)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / mark).write_bytes(text)
    (tmp_path / name.format(2)).symlink_to(tmp_path / "elsewhere")
    (tmp_path / name.format(3)).write_bytes(text)
    for other in ("nfvi-work-mine", "nfvi-01234567", name.format(4) + "0"):
        (tmp_path / other).mkdir()
        (tmp_path / other / mark).write_bytes(text)
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / name.format(5)).mkdir()  # killed before it was marked
    linked = tmp_path / name.format(6)  # of this form, with a link out of it
    linked.mkdir()
    (linked / mark).write_bytes(text)
    (linked / "link").symlink_to(tmp_path / "elsewhere")
    with work_folder():
        pass
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_processes_that_start_cold_at_once(fresh):
    code = textwrap.dedent(
        """
        from pyro_nfvi._engine.native.shared_library import load
        from pyro_nfvi._engine.native.compiled_objects import compile_text
        data, _ = compile_text(%r, ("answer",))
        print(load(data, ("answer",)).answer())
        """
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code % TRIFLE], stdout=-1, text=True
        )
        for _ in range(4)
    ]
    assert [run.communicate()[0].strip() for run in runs] == ["42"] * 4
