"""The built wheel, installed outside of the checkout, against old and new releases.

``make test-versions`` runs it on all of ``pinned lowest newest``, ``make test-wheel`` on ``pinned
--quick``. Each leg runs the README's Python, compares the names that the package uses with what is
there (``names.py``), and runs tests of guides, flows and fits (``--quick``: a few; ``--all``: all).
Environments stay in the checkout (``.venv-lowest``, ``.venv-newest``) for the next time. A leg with
another interpreter than the one that is found: ``newest=/path/to/python3.11``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

#: Interpreters that a leg takes, the first that is found.
PYTHONS = {
    "lowest": ("3.10",),
    "newest": ("3.14", "3.13", "3.12", "3.11"),
}
#: Guides, flows and fits; what they stand on; the conversion: all of it, with ``--all``.
ALL = (
    "tests/guides", "tests/flows", "tests/infer", "tests/train", "tests/objectives", "tests/engine",
    "tests/pyro_model", "tests/test_chain_rule.py", "tests/arviz",
)  # fmt: skip
#: Those of them that stand nearest to PyTorch, Pyro, NumPy and ArviZ: some minutes a leg.
TESTS = (
    "tests/test_chain_rule.py", "tests/arviz/test_to_arviz.py",
    "tests/train/test_engine_selection.py",
    *(f"tests/pyro_model/test_{one}.py" for one in ("latent_space", "log_joint", "second_opinion")),
    *(f"tests/guides/test_{one}.py"
      for one in ("density", "dtypes", "errors", "auto_mixture", "models", "param_store")),
    *(f"tests/flows/test_{one}.py"
      for one in ("autoregressive", "base", "tail_transform", "torch_transform")),
    *(f"tests/engine/test_{one}.py"
      for one in ("native_ops", "native_runner", "available_operators", "in_place_writes")),
    *(f"tests/infer/test_{one}.py" for one in ("fit", "multimodal", "nfvi", "predict")),
)  # fmt: skip
#: One file of each, of some seconds.
QUICK = ("tests/guides/test_density.py", "tests/flows/test_base.py", "tests/infer/test_nfvi.py")
#: What the tests read beside the package.
BESIDE = ("tests", "benchmarks", "examples", "docs", "README.md", "conftest.py")


def find_python(versions: tuple[str, ...]) -> str:
    """Return the first interpreter of some version: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in versions:
        names = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
        for name in names:
            if name and _runs(str(name), version):
                return str(name)
    raise SystemExit(f"No Python {' or '.join(versions)} was found. Name one: LEG=/path/to/python")


def _runs(python: str, version: str) -> bool:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() == version


def run(*command: str | Path, cwd: Path = ROOT, path: Path | None = None) -> int:
    """Run a command and return its status; ``path`` is where packages are looked for first."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run([str(x) for x in command], cwd=cwd, env=env, check=False).returncode


def must(*command: str | Path) -> None:
    """Run a command that has to succeed."""
    if run(*command):
        raise SystemExit(f"This failed: {' '.join(map(str, command))}")


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy, so that no earlier build in the checkout gets into it."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "pyro_nfvi", source / "pyro_nfvi", ignore=shutil.ignore_patterns("__pycache__")
    )
    must(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(leg: str, python: str | None) -> Path:
    """Return the interpreter of a leg's environment, which is made unless it is there."""
    folder, wanted = ROOT / f".venv-{leg}", HERE / f"{leg}.txt"
    mine, stamp = folder / "bin/python", folder / ".stamp"
    base = python or find_python(PYTHONS[leg])
    text = f"{base}\n{wanted.read_text('utf-8')}"
    if not stamp.exists() or stamp.read_text("utf-8") != text:
        print(f"== setting up {folder.name} with {base} (once; PyTorch is some gigabytes)")
        must(base, "-m", "venv", "--clear", folder)
        must(mine, "-m", "pip", "install", "--quiet", "--upgrade", "pip")
    elif leg != "newest":
        return mine
    # The newest of today is another one than that of the last time.
    must(mine, "-m", "pip", "install", "--quiet", "--upgrade", "-r", wanted,
         "-r", HERE / "tools.txt")  # fmt: skip
    stamp.write_text(text, "utf-8")
    return mine


def examine(leg: str, python: str | None, wheel: Path, tests: Sequence[str]) -> str:
    """Run one leg; return what failed, or an empty string."""
    with tempfile.TemporaryDirectory(prefix="nfvi-wheel-") as name:
        folder = Path(name)
        place: Path | None = None
        if leg == "pinned":
            mine, place = Path(sys.executable), folder / "site"
            must(mine, "-m", "pip", "install", "--quiet", "--no-deps", "--target", place, wheel)
            origin = place
        else:
            mine = environment(leg, python)
            must(mine, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
            must(mine, "-m", "pip", "check")
            origin = mine.parents[1]
        print(f"== {leg}: {_versions(mine)}", flush=True)
        (installed,) = [*origin.rglob("pyro_nfvi/__init__.py")]
        package = installed.parent
        if run(mine, "-W", "ignore", "-c", "import torch", cwd=folder):
            print("== this PyTorch cannot be imported here; its sources are read instead")
            (stubs,) = origin.rglob("torch/_C/__init__.pyi")
            sources = stubs.parents[2]
            failed = run(sys.executable, HERE / "names.py", package, "--sources", sources)
            return f"{leg}: names" if failed else ""
        for one in BESIDE:
            target = folder / one
            if (ROOT / one).is_dir():
                skip = shutil.ignore_patterns("__pycache__", "_build")
                shutil.copytree(ROOT / one, target, ignore=skip)
            else:
                shutil.copy(ROOT / one, target)
        shutil.copy(HERE / "pytest.ini", folder)
        stages = {
            "the README": [mine, HERE / "ten_lines.py", folder / "README.md", package],
            "names": [mine, "-W", "ignore", HERE / "names.py", package],
            "tests": [mine, "-m", "pytest", "-q", "-m", "not slow", *tests],
        }
        failures = []
        for what, command in stages.items():
            begin = time.monotonic()
            status = run(*command, cwd=folder, path=place)
            print(f"== {leg}: {what} took {time.monotonic() - begin:.0f} s", flush=True)
            if status:
                failures.append(f"{leg}: {what}")
        return ", ".join(failures)


def _versions(python: Path) -> str:
    code = (
        "import sys; from importlib.metadata import version as v; "
        "print('Python %d.%d,' % sys.version_info[:2], "
        "', '.join(n + ' ' + v(n) for n in ('torch', 'pyro-ppl', 'numpy', 'arviz')))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main() -> int:
    """Run the legs that are named."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__)
    parser.add_argument("legs", nargs="+", help="pinned, lowest or newest, or LEG=PYTHON")
    parser.set_defaults(tests=TESTS)
    size = parser.add_mutually_exclusive_group()
    for name, tests in (("--quick", QUICK), ("--all", ALL)):
        size.add_argument(name, dest="tests", action="store_const", const=tests)
    size.add_argument("--tests", dest="tests", nargs="+", help="these tests instead")
    options = parser.parse_args()
    legs = dict(one.partition("=")[::2] for one in options.legs)
    unknown = set(legs) - {"pinned", *PYTHONS}
    if unknown:
        parser.error(f"pinned, lowest and newest are the legs; got {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="nfvi-build-") as folder:
        wheel = build_wheel(Path(folder))
        failed = [
            examine(leg, python or None, wheel, options.tests) for leg, python in legs.items()
        ]
    failed = [one for one in failed if one]
    print("== failed: " + ", ".join(failed) if failed else f"== passed: {', '.join(legs)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
