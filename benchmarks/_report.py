"""What every benchmark writes beside its numbers, and where."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from pyro_nfvi import __version__

ROOT = Path(__file__).resolve().parent.parent
#: Where results go: a JSON file with all numbers and a page with the table.
DOCS = ROOT / "docs" / "benchmarks"


def environment(device="cpu"):
    """Versions and device, as every result has to state them."""
    import numpy
    import pyro

    if str(device).startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        name = cpu_name()
    return {
        "pyro_nfvi": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "device": name,
        "threads": torch.get_num_threads(),
    }


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"CPU, {names[0]}" if names else f"CPU, {platform.machine()}"


def in_words(env):
    return (
        f"{env['device']}, {env['threads']} thread{'s' * (env['threads'] != 1)}; "
        f"Python {env['python']}, torch {env['torch']}, Pyro {env['pyro']}, "
        f"pyro_nfvi {env['pyro_nfvi']}."
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write(name: str, title: str, results: dict, body: str, folder: Path | None = None) -> Path:
    """Write ``NAME.json`` and the page ``NAME.md``; return the page's path."""
    folder = folder or DOCS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    page = folder / f"{name}.md"
    page.write_text(f"---\norphan: true\n---\n\n# {title}\n\n{body.strip()}\n")
    return page


def put(page: str, mark: str, text: str) -> str:
    """Replace what stands between two comments of the page."""
    begin, end = f"<!-- {mark} -->", f"<!-- end {mark} -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}"
