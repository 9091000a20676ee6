"""Formulas as MathML, which browsers draw themselves: the pages need no script from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["setup"]

_log = logging.getLogger(__name__)


def _render(node: Any, *, block: bool) -> str:
    tex = node.astext()
    try:
        if block and "&" in tex and r"\begin{" not in tex:
            tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
        return str(tex2mathml(tex, as_block=block))
    except MathError as error:
        _log.warning("cannot write as MathML: %s (%s)", tex, error, location=node)
        return ""


def _inline(self: Any, node: Any) -> None:
    self.body.append(_render(node, block=False))
    raise nodes.SkipNode


def _block(self: Any, node: Any) -> None:
    self.body.append(f'<div class="math-block">{_render(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_inline, None), block_renderers=(_block, None)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
