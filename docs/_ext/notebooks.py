"""Notebooks of the pages whose blocks run: a download on each page; ``make notebooks`` runs them.

A page stays one Markdown file that reads well anywhere; its notebook has the same text and code, so
that nothing is written twice.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["main", "notebook", "pages", "setup"]

DOCS = Path(__file__).resolve().parent.parent
#: A block that runs, possibly indented as a part of a list.
_BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```\n", re.M | re.S)
_SETUP = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python"},
}


def pages() -> list[Path]:
    """Return the pages with blocks that run, in alphabetical order."""
    return [page for page in sorted(DOCS.glob("*.md")) if _BLOCK.search(page.read_text("utf-8"))]


def notebook(text: str) -> nbformat.NotebookNode:
    """Turn a page into a notebook: a cell for each block, a cell for the text between two.

    Args:
        text: The page, in Markdown.
    """
    cells, end = [], 0
    for block in [*_BLOCK.finditer(text), None]:
        prose = text[end : block.start() if block else len(text)].strip()
        # Comments of the calibration scripts mark where numbers go, and say nothing to a reader.
        prose = re.sub(r"<!--.*?-->\n*", "", prose, flags=re.S)
        if prose:
            cells.append(new_markdown_cell(prose))
        if block is None:
            break
        indent, code = block.groups()
        lines = [line.removeprefix(indent) for line in code.rstrip().split("\n")]
        cells.append(new_code_cell("\n".join(lines)))
        end = block.end()
    for i, cell in enumerate(cells):  # the same file for the same page
        cell["id"] = f"cell-{i}"
    return new_notebook(cells=cells, metadata=_SETUP)


def _link(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the link below the title of a page that has a notebook."""
    if name in {page.stem for page in pages()}:
        link = (
            f'<a class="notebook" href="notebooks/{name}.ipynb" download>Download as a notebook</a>'
        )
        source[0] = re.sub(r"^(# .*\n)", rf"\1\n{link}\n", source[0], count=1)


def _write(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / "notebooks"
        folder.mkdir(exist_ok=True)
        for page in pages():
            path = folder / f"{page.stem}.ipynb"
            nbformat.write(notebook(page.read_text("utf-8")), path)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the link and the files."""
    app.connect("source-read", _link)
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def main(folder: str, *names: str) -> None:
    """Run notebooks from top to bottom, and write them with their output into a folder.

    Args:
        folder: Where to write.
        names: Pages; all that have blocks that run, by default.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell fails.
    """
    from nbclient import NotebookClient

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for page in pages():
        if names and page.stem not in names:
            continue
        book = notebook(page.read_text("utf-8"))
        NotebookClient(book, timeout=600, resources={"metadata": {"path": str(target)}}).execute()
        nbformat.write(book, target / f"{page.stem}.ipynb")
        print(f"ran {page.stem}: {target / page.stem}.ipynb")


if __name__ == "__main__":
    main(*sys.argv[1:])
