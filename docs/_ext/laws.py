"""The table of laws, written from the registry itself so that it cannot go stale."""

from __future__ import annotations

from typing import TYPE_CHECKING

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["setup"]


class LawTable(Directive):
    """``.. laws::`` lists the laws of ``check_flow``."""

    def run(self) -> list[nodes.Node]:
        from pyro_nfvi.testing._check_flow import LAWS

        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 20 80", ""]
        lines += ["   * - law", "     - what it says"]
        for name, law in LAWS.items():
            says = law.promise.split("\n")[0].replace("|", "\\|")
            lines += [f"   * - {name}", f"     - {says}"]
        holder = nodes.container()
        self.state.nested_parse(StringList(lines, source="laws"), self.content_offset, holder)
        return list(holder.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("laws", LawTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
