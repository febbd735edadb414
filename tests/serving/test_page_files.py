"""What the server gives to browsers: the page's files, and headers that let it run nothing else."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from arl2.serving.web.page_files import page_files, page_router


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page_router())
    return TestClient(app)


def test_the_page_may_load_only_what_its_server_has(client: TestClient) -> None:
    answer = client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert all("unsafe" not in value and "http" not in value and "*" not in value for value in policy.values())
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    # What the policy forbids is not there: scripts, styles and handlers in the page itself.
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", answer.text)


def test_everything_that_the_page_names_is_there(client: TestClient) -> None:
    text = client.get("/").text
    named = set(re.findall(r'(?:src|href)="(page/[^"]+)"', text))
    assert {"page/page.js", "page/page.css", "page/icon.svg"} <= named
    todo, seen = sorted(named), set()
    while todo:
        name = todo.pop()
        answer = client.get("/" + name)
        assert answer.status_code == 200, name
        seen.add(name)
        imported = {"page/" + found for found in re.findall(r'from "\./([^"]+)"', answer.text)}
        todo += sorted(imported - seen)
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in answer.text
    assert {name.removeprefix("page/") for name in seen} | {"page.html"} == set(page_files())
    # Every part that a script asks for by its name stands in the page.
    parts = set(re.findall(r'data-part="(\w+)"', text))
    for name in ("page.js", "panel.js"):
        used = set(re.findall(r"parts\.(\w+)", page_files()[name][0].decode()))
        assert used <= parts, name
    assert set(re.findall(r'href="#(i-\w+)"', text)) <= set(re.findall(r'<symbol id="(i-\w+)"', text))


@pytest.mark.parametrize("path", ["/page/none.js", "/page/..%2fpage_files.py", "/page/page.html%00", "/page/", "/page"])
def test_other_names_are_no_files(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_file_that_is_the_same_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/page.js")
    assert first.headers["content-type"].startswith("text/javascript")
    again = client.get("/page/page.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = client.head("/page/page.js")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == first.headers["etag"]
