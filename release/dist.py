"""Build and check what is published: ``make dist`` leaves the sdist and the wheel in ``dist/``.

1. The files of the checkout are copied, and what needs the project's address is written into the
   copy (``[project.urls]``, links and pictures of the README, CITATION.cff); without an address
   (``[tool.pyro-nfvi]`` in pyproject.toml) it is left out.
2. Both archives are built from the copy, then looked at: metadata (``twine check --strict``),
   contents, the page as PyPI renders it.
3. Each is installed into a fresh environment outside of the checkout, where the Python of the
   README runs; tests of the sdist run from the unpacked sdist.

``--full`` downloads the dependencies into these environments; else those of this Python are used.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What the sdist has beside the package.
BESIDE = (
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md",
    "conftest.py", "constraints.txt", "pyproject.toml", "docs/index.md", "examples/demo.py",
    "tests/test_readme.py", "benchmarks/accuracy.py", "release/dist.py",
)  # fmt: skip
#: Tests of the sdist that run from it: some seconds.
OWN_TESTS = ("tests/test_math.py", "tests/test_validation.py", "tests/flows/test_base.py")
#: Blocks of code of the README, and links: to pictures, and others.
_CODE = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def address(pyproject: str) -> str:
    """Return the project's address, the one setting; empty if it has none yet."""
    found = re.search(r'^\[tool\.pyro-nfvi\]\nrepository = "([^"]*)"', pyproject, re.M)
    if found is None:
        raise SystemExit('pyproject.toml has no [tool.pyro-nfvi] with repository = "...".')
    return found.group(1).rstrip("/")


def with_urls(pyproject: str, repository: str) -> str:
    """Return pyproject.toml with ``[project.urls]``; as it is without an address."""
    if not repository:
        return pyproject
    urls = {
        "Source": repository,
        "Documentation": f"{repository}/tree/main/docs",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    lines = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    mark = "[project.optional-dependencies]"
    return pyproject.replace(mark, f"[project.urls]\n{lines}\n{mark}", 1)


def absolute_links(page: str, repository: str, tag: str) -> str:
    """Return a page whose links lead somewhere from anywhere.

    Without an address, a link to a file of the project is its text alone, and a picture is left
    out.

    >>> absolute_links("[a](docs/a.md) ![p](p.png)", "https://e.org/x", "v1")
    '[a](https://e.org/x/blob/v1/docs/a.md) ![p](https://e.org/x/raw/v1/p.png)'
    >>> absolute_links("[a](docs/a.md) ![p](p.png)", "", "v1")
    'a '
    """

    def one(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        if "://" in target or target.startswith("#"):
            return match.group(0)
        if not repository:
            return "" if picture else text
        return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/{tag}/{target})"

    parts = _CODE.split(page)  # every second part is a block of code
    return "".join(part if i % 2 else _LINK.sub(one, part) for i, part in enumerate(parts))


def copy_of(root: Path, folder: Path) -> Path:
    """Copy the files of a checkout, or of an unpacked sdist, and fill the address in."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and (root / ".git").exists():
        names = [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]
    else:
        names = [str(one.relative_to(root)) for one in root.rglob("*") if one.is_file()]
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target)
    text = (folder / "pyproject.toml").read_text("utf-8")
    repository, version = address(text), version_of(folder)
    (folder / "pyproject.toml").write_text(with_urls(text, repository), "utf-8")
    readme = folder / "README.md"
    page = absolute_links(readme.read_text("utf-8"), repository, f"v{version}")
    readme.write_text(page, "utf-8")
    if repository:
        with (folder / "CITATION.cff").open("a", encoding="utf-8") as file:
            file.write(f'repository-code: "{repository}"\n')
    return folder


def version_of(root: Path) -> str:
    """Return the version of the package in a folder."""
    text = (root / "pyro_nfvi" / "_version.py").read_text("utf-8")
    return re.findall(r'__version__ = "(.+)"', text)[0]


def run(*command: str | Path, cwd: Path, **extra: str) -> None:
    """Run a command that has to succeed, without the paths of the checkout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    print(f"== {' '.join(str(one) for one in command)}", flush=True)
    words = [str(one) for one in command]
    if subprocess.run(words, cwd=cwd, env=env | extra, check=False).returncode:
        raise SystemExit("This failed.")


def check_contents(wheel: Path, sdist: Path, source: Path) -> None:
    """Compare both archives with the files that they were made of."""
    package = {
        str(one.relative_to(source)) for one in (source / "pyro_nfvi").rglob("*") if one.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        described = archive.read(metadata).decode("utf-8")
    require(not held ^ package, f"{wheel.name} differs from the package: {sorted(held ^ package)}")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {*package, *BESIDE}
    require(not wanted - names, f"{sdist.name} has no {sorted(wanted - names)}")
    stray = [name for name in names if re.search(r"\.pyc$|__pycache__|\.so$|^(out|dist)/", name)]
    require(not stray, f"{sdist.name} has {stray}")
    body = _CODE.sub("", described.split("\n\n", 1)[1])
    relative = [
        target for _, _, target in _LINK.findall(body) if "://" not in target and target[0] != "#"
    ]
    require(not relative, f"links of the page lead nowhere: {relative}")


def require(holds: bool, otherwise: str) -> None:  # noqa: FBT001
    """End with a sentence where something does not hold."""
    if not holds:
        raise SystemExit(otherwise)


def environment(folder: Path, *, full: bool) -> Path:
    """Make a fresh environment; return its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    if not full:  # the dependencies of this Python, not its editable installs
        site = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        (Path(site) / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", "utf-8")
    return python


def main() -> None:
    """Build, check, and leave both archives in ``dist/``."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--full", action="store_true", help="download the dependencies too")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the archives")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nfvi-dist-") as name:
        folder = Path(name)
        source, built = copy_of(ROOT, folder / "source"), folder / "dist"
        run(sys.executable, "-m", "build", "--outdir", built, source, cwd=folder)
        (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=folder)
        check_contents(wheel, sdist, source)
        for archive in (wheel, sdist):
            place = folder / f"try-{archive.suffix[1:]}"
            place.mkdir()
            python = environment(place / "venv", full=options.full)
            more = () if options.full else ("--no-deps",)
            run(python, "-m", "pip", "install", "--quiet", *more, archive, cwd=place)
            lines = source / "tests" / "versions" / "ten_lines.py"
            run(python, lines, source / "README.md", place / "venv", cwd=place)
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (unpacked,) = (folder / "unpacked").iterdir()
        tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *OWN_TESTS)
        run(sys.executable, *tests, cwd=unpacked, PYTHONPATH=str(unpacked))
        options.out.mkdir(exist_ok=True)
        for archive in (wheel, sdist):
            shutil.copy2(archive, options.out)
            print(f"{options.out / archive.name}: {archive.stat().st_size / 1e6:.1f} MB")
    if not address((ROOT / "pyproject.toml").read_text("utf-8")):
        print("The project has no address yet ([tool.pyro-nfvi] in pyproject.toml): no links.")


if __name__ == "__main__":
    main()
