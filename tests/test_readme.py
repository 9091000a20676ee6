"""The Python of the README and of the guides runs from top to bottom, as pasted by a reader."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


#: Pages that take more than some seconds.
SLOW = {"amortised", "arviz", "cheat_sheet", "coming_from", "getting_started", "many_fits", "trust"}
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if BLOCK.search(page.read_text("utf-8"))
]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
        for page in PAGES
    ],
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    text = page.read_text("utf-8")
    blocks = list(BLOCK.finditer(text))
    module = ModuleType("page")  # a real module, so that what the page defines can be pickled
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        line = text.count("\n", 0, block.start()) + 1
        code = "\n" * line + block.group(1)  # so that a traceback names the page's own line
        exec(compile(code, str(page), "exec"), vars(module))


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_the_notebook_of_a_page_has_its_text_and_code(page, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    notebook = importlib.import_module("notebooks").notebook

    text = page.read_text("utf-8")
    book = notebook(text)
    nbformat.validate(book)
    code = [cell["source"] for cell in book["cells"] if cell["cell_type"] == "code"]
    for block in BLOCK.finditer(text):
        assert block.group(1).rstrip() in code
    prose = "".join(cell["source"] for cell in book["cells"] if cell["cell_type"] == "markdown")
    assert "```python" not in prose
    assert prose.startswith("# ")
