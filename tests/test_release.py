"""What is published: versions that agree, links that lead somewhere, a page that PyPI renders."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from pyro_nfvi._version import __version__

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "https://example.org/owner/project"


@pytest.fixture
def dist(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "release"))
    return importlib.import_module("dist")


def test_version_and_date_are_the_same_everywhere():
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    cited = (ROOT / "CITATION.cff").read_text("utf-8")
    version, date = re.findall(r"^## \[(\d[\d.]*)\] - (\d{4}-\d\d-\d\d)$", changes, re.M)[0]
    assert version == __version__
    assert f"\nversion: {version}\n" in cited
    assert f"\ndate-released: {date}\n" in cited


@pytest.mark.parametrize("address", ["", ADDRESS])
def test_the_page_that_pypi_shows_has_no_link_to_nowhere(dist, address):
    render = pytest.importorskip("readme_renderer.markdown").render
    page = dist.absolute_links((ROOT / "README.md").read_text("utf-8"), address, "v1")
    html = render(page)
    assert html
    targets = re.findall(r'(?:href|src)="([^"]+)"', html)
    assert [one for one in targets if not one.startswith(("https://", "#"))] == []
    assert ("<img" in html) == bool(address)


def test_code_is_not_taken_for_links(dist):
    page = "[a](a.md)\n```python\nflows[0](x)\n```\n[b](b.md)\n"
    assert dist.absolute_links(page, "", "v1") == "a\n```python\nflows[0](x)\n```\nb\n"


def test_what_links_point_to_is_there(dist):
    page = (ROOT / "README.md").read_text("utf-8")
    with_address = dist.absolute_links(page, ADDRESS, "v1")
    files = re.findall(rf"{ADDRESS}/(?:blob|raw)/v1/([^)#]+)", with_address)
    assert files
    assert [one for one in files if not (ROOT / one).exists()] == []


def test_the_address_is_one_setting(dist):
    tomllib = pytest.importorskip("tomllib")
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert "urls" not in tomllib.loads(dist.with_urls(text, ""))["project"]
    set_here = text.replace('repository = ""', f'repository = "{ADDRESS}"')
    urls = tomllib.loads(dist.with_urls(set_here, dist.address(set_here)))["project"]["urls"]
    assert set(urls) == {"Source", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(ADDRESS) for url in urls.values())


def test_an_archive_with_a_file_too_many_or_too_few_is_refused(dist, tmp_path):
    import tarfile
    import zipfile

    (tmp_path / "pyro_nfvi").mkdir()
    (tmp_path / "pyro_nfvi" / "one.py").write_text("")
    wheel, sdist = tmp_path / "a.whl", tmp_path / "a.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(tmp_path / "pyro_nfvi" / "one.py", "a/pyro_nfvi/one.py")

    def pack(*names):
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in (*names, "a.dist-info/METADATA"):
                archive.writestr(name, "Name: a\n\nA page.")

    pack("pyro_nfvi/one.py", "tests/two.py")
    with pytest.raises(SystemExit, match="tests/two"):
        dist.check_contents(wheel, sdist, tmp_path)
    pack()
    with pytest.raises(SystemExit, match="one.py"):
        dist.check_contents(wheel, sdist, tmp_path)
    pack("pyro_nfvi/one.py")
    with pytest.raises(SystemExit, match="has no .*CHANGELOG"):
        dist.check_contents(wheel, sdist, tmp_path)
