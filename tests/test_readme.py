"""The Python of the README and of the guides runs from top to bottom, as pasted by a reader."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


PAGES = [
    "README.md",
    pytest.param("docs/arviz.md", marks=pytest.mark.slow),
    "docs/extending.md",
    pytest.param("docs/getting_started.md", marks=pytest.mark.slow),
    pytest.param("docs/many_fits.md", marks=pytest.mark.slow),
    pytest.param("docs/trust.md", marks=pytest.mark.slow),
    "docs/vae.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    text = (ROOT / page).read_text("utf-8")
    blocks = list(BLOCK.finditer(text))
    assert blocks, f"{page} has no python block"
    module = ModuleType("page")  # a real module, so that what the page defines can be pickled
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        line = text.count("\n", 0, block.start()) + 1
        code = "\n" * line + block.group(1)  # so that a traceback names the page's own line
        exec(compile(code, str(ROOT / page), "exec"), vars(module))
