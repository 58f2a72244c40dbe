"""The documentation's site: it builds without a warning, loads nothing from other hosts, and its links lead somewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.docs_check import broken_blocks, broken_links, external_resources, read_page

ROOT = Path(__file__).parents[2]


def run(*command: str) -> None:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "client")))
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documentation")
    config = {"INHERIT": str(ROOT / "mkdocs.yml"), "docs_dir": "pages", "site_dir": "site"}
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(config))
    run(sys.executable, "deploy/docs_site.py", str(folder / "pages"))
    run(sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(folder / "mkdocs.yml"))
    return folder / "site"


def test_a_browser_fetches_nothing_from_other_hosts(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > 40
    assert external_resources(site) == []


def test_every_link_within_the_site_leads_to_a_page_and_a_heading(site: Path) -> None:
    assert broken_links(site) == []


def test_every_code_block_is_shown_as_one(site: Path) -> None:
    assert broken_blocks(site) == []


def test_the_references_have_every_route_and_the_methods_of_the_client(site: Path) -> None:
    routes = read_page(site / "reference" / "http.html").ids
    assert {"get-apijobs", "post-apijobs", "post-v1chatcompletions", "mergerequest"} <= routes
    methods = read_page(site / "reference" / "python.html").ids
    client = {f"graftwerk.client.Client.{name}" for name in ("merge", "submit", "pull")}
    assert client | {"graftwerk.job_handle.JobHandle.wait", "graftwerk.errors.ApiError"} <= methods
    assert "graftwerk.async_client.AsyncClient.merge" in methods


def test_the_check_finds_what_it_looks_for(tmp_path: Path) -> None:
    page = '<script src="//cdn.example/x.js"></script><img src="a.png"><a href="b.html"></a><a href="#c"></a><a id="d" href="#d">'
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "a.css").write_text("@font-face { src: url('https://fonts.example/f.woff2') }")
    assert external_resources(tmp_path) == [
        "a.html: //cdn.example/x.js",
        "a.css: https://fonts.example/f.woff2",
    ]
    assert broken_links(tmp_path) == ["a.html: b.html", "a.html: #c"]
    (tmp_path / "b.html").write_text("<p>```sh")
    assert broken_blocks(tmp_path) == ["b.html: ```"]
