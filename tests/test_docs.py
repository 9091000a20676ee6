"""The API pages name everything that is public, and the table of flows every flow."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
PACKAGES = [
    "arviz",
    "calibration",
    "diagnostics",
    "distributions",
    "flows",
    "guides",
    "infer",
    "objectives",
    "plots",
    "testing",
    "vae",
]


def names_on(page: Path) -> set[str]:
    """Names that the page's autodoc directives cover."""
    text = page.read_text("utf-8")
    entry = re.compile(r"auto(?:class|function|data|exception):: [\w.]*?(\w+)(?:\(\))?$", re.M)
    found = set(entry.findall(text))
    for module, options in re.findall(r"automodule:: ([\w.]+)\n((?:   :.*\n)*)", text):
        members = re.search(r":members:(.*)", options)
        if members is None or ":no-members:" in options:
            continue
        listed = members.group(1).replace(" ", "")
        found |= set(listed.split(",")) if listed else set(importlib.import_module(module).__all__)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_its_entry(package):
    pytest.importorskip(f"pyro_nfvi.{package}")
    module = importlib.import_module(f"pyro_nfvi.{package}")
    text = "".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    covered = set().union(*map(names_on, (DOCS / "api").glob("*.md")))
    constants = {name for name in module.__all__ if name.isupper() and name in text}
    assert set(module.__all__) - covered - constants == set()


def test_every_top_level_name_is_on_the_front_page():
    import pyro_nfvi

    text = (DOCS / "api" / "index.md").read_text("utf-8")
    missing = [name for name in pyro_nfvi.__all__ if name not in text and name[0] != "_"]
    assert missing == []


def test_the_choosing_page_knows_every_flow():
    from pyro_nfvi.flows._registry import FLOW_NAMES

    text = (DOCS / "which_flow.md").read_text("utf-8")
    assert [name for name in FLOW_NAMES if f'"{name}' not in text] == []


PAGES = [*sorted(DOCS.rglob("*.md")), *sorted(DOCS.parent.glob("*.md"))]


def rows_outside_of_tables(text: str) -> list[str]:
    """Rows that no header and rule stand above: a page shows them as they are written."""
    wrong, inside = [], False
    lines = FENCED.sub("", text).splitlines()
    for k, line in enumerate(lines):
        if not line.startswith("|"):
            inside = False
        elif not inside:
            rule = lines[k + 1] if k + 1 < len(lines) else ""
            inside = re.fullmatch(r"\|(?:\s*:?-+:?\s*\|)+", rule.strip()) is not None
            if not inside:
                wrong.append(line)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_rows_belong_to_a_table(page):
    assert rows_outside_of_tables(page.read_text("utf-8")) == []


def test_a_row_that_fell_out_of_its_table_is_found():
    table = "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert rows_outside_of_tables(table) == []
    assert rows_outside_of_tables(table + "\n| 3 | 4 |\n") == ["| 3 | 4 |"]


#: Code in the middle of a sentence, outside of fenced blocks.
FENCED, INLINE = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.M | re.S), re.compile(r"`([^`\n]+)`")
#: Names of files that look like attributes.
FILES = {"fit.nfvi"}


def attributes_in_prose(text: str, names: set[str]) -> set[str]:
    """Chains such as ``fit.training.losses`` that a page names in prose."""
    start = "|".join(map(re.escape, sorted(names)))
    chain = re.compile(rf"(?<![\w./])(?:{start})(?:\.[A-Za-z_]\w*)+")
    found: set[str] = set()
    for code in INLINE.findall(FENCED.sub("", text)):
        found |= set(chain.findall(code))
    return {chain for chain in found - FILES if not chain.endswith((".py", ".md"))}


def missing_attributes(chains: set[str], objects: dict[str, object]) -> list[str]:
    """Chains of which a part does not exist, looked up on real objects."""
    missing = []
    for chain in sorted(chains):
        name, *parts = chain.split(".")
        here = objects[name]
        for part in parts:
            if not hasattr(here, part):
                missing.append(chain)
                break
            here = getattr(here, part)
            if inspect.isroutine(here):  # what it returns is another story
                break
    return missing


@pytest.fixture(scope="module")
def objects():
    """What the pages call ``fit``, ``nfvi`` and so on."""
    import pyro
    import pyro.distributions as dist
    import torch

    import pyro_nfvi as nfvi

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = nfvi.NFVI(model, "affine", max_steps=20, seed=0, progress=False).run(torch.tensor(1.0))
    return {
        "fit": fit,
        "nfvi": nfvi,
        "pyro_nfvi": nfvi,
        "guide": fit.guide,
        "log_joint": fit.log_joint,
        "density": fit.guide.density(),
        "flow": nfvi.flows.make_flow("iaf*2", 3),
    }


PAGES = sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_attributes_that_prose_names_exist(page, objects):
    chains = attributes_in_prose(page.read_text("utf-8"), set(objects))
    assert missing_attributes(chains, objects) == []


def test_the_check_itself_sees_what_does_not_exist(objects):
    text = "See `fit.settings` and `fit.training.settings.flow`.\n```python\nfit.nothing\n```\n"
    assert missing_attributes(attributes_in_prose(text, {"fit"}), objects) == ["fit.settings"]


#: Dotted names of the package, in prose and in code; ``python -m pyro_nfvi.vae.train`` is one too.
DOTTED = re.compile(r"(?<![\w./-])(?:pyro_nfvi|nfvi)(?:\.[A-Za-z_]\w*)+")
#: References in docstrings, such as :func:`pyro_nfvi.vae.training_pass`.
REFERENCE = re.compile(r":\w+:`~?(pyro_nfvi(?:\.[A-Za-z_]\w*)+)`")
TEXTS = [*sorted(DOCS.rglob("*.md")), *sorted(DOCS.parent.glob("*.md"))]
SOURCES = sorted((DOCS.parent / "pyro_nfvi").rglob("*.py"))


def resolves(dotted: str) -> bool:
    """Tell whether a dotted name is a module of the package, or reached by attributes from one."""
    path = "pyro_nfvi"  # which pages call nfvi
    here: object = importlib.import_module(path)
    for part in dotted.split(".")[1:]:
        path = f"{path}.{part}"
        if not hasattr(here, part):
            try:
                importlib.import_module(path)
            except ImportError:
                return False
        here = getattr(here, part)
    return True


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_dotted_names_on_pages_resolve(page):
    names = set(DOTTED.findall(page.read_text("utf-8")))
    names = {name for name in names if not name.endswith((".md", ".py"))}
    assert sorted(name for name in names if not resolves(name)) == []


def private_imports(source: str) -> list[str]:
    """Imports of private modules or names of the package."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_nfvi"):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("pyro_nfvi")]
    return [name for name in found if re.search(r"\._[a-z]", name)]


BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def test_examples_and_pages_import_public_names():
    wrong = {}
    for path in sorted((DOCS.parent / "examples").glob("*.py")):
        wrong[path.name] = private_imports(path.read_text("utf-8"))
    for path in TEXTS:
        blocks = BLOCK.findall(path.read_text("utf-8"))
        wrong[path.name] = [name for block in blocks for name in private_imports(block)]
    assert {name: found for name, found in wrong.items() if found} == {}


def test_the_check_itself_sees_a_private_import():
    assert private_imports("from pyro_nfvi._math import bounded\nimport pyro_nfvi.vae") == [
        "pyro_nfvi._math.bounded"
    ]


def test_references_in_docstrings_resolve():
    names = {name for path in SOURCES for name in REFERENCE.findall(path.read_text("utf-8"))}
    assert len(names) > 10
    assert sorted(name for name in names if not resolves(name)) == []


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("nfvi.clear_cache", True),
        ("nfvi.engine.clear_cache", False),
        ("pyro_nfvi.vae.train", True),
        ("pyro_nfvi.vae.NLL", False),
    ],
)
def test_the_check_itself_knows_what_resolves(name, known):
    assert resolves(name) == known


def test_pages_state_the_thresholds_of_khat():
    from pyro_nfvi.diagnostics._psis import khat_threshold
    from pyro_nfvi.diagnostics._recipe import KHAT

    text = (DOCS / "trust.md").read_text("utf-8")
    for number in (KHAT.close, round(khat_threshold(2000), 1), KHAT.no_mean):
        assert f"{number:g}" in text.partition("## How k-hat is read")[2].partition("\n## ")[0]


def test_tables_of_our_own_directives_stand_in_restructured_text():
    """Markdown would show their list-table as text, without a warning."""
    ours = re.compile(r"^```\{(recipes|laws)\}", re.M)
    wrong = [page.name for page in DOCS.rglob("*.md") if ours.search(page.read_text("utf-8"))]
    assert wrong == []
