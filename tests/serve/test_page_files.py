"""The built page: made from the sources beside it, served under its policy, no other host."""

import hashlib
import re
from pathlib import Path

import httpx

from mindllm.serve.app import PAGE
from tests.serve.serving import ALICE, RunningServer

SOURCES = Path(__file__).parents[2] / "page"
TOP = ["index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.js"]


def test_the_built_files_are_those_of_the_sources() -> None:
    names = sorted([*TOP, *(f"src/{file.name}" for file in (SOURCES / "src").iterdir())])
    checksum = hashlib.sha256()
    for name in names:
        checksum.update(f"{name}\n".encode() + (SOURCES / name).read_bytes())
    built = (PAGE / "sources.sha256").read_text().strip()
    assert built == checksum.hexdigest(), "the sources changed since; run `make page`"


def test_every_file_that_the_page_names_is_there_and_relative() -> None:
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    names = re.findall(r'(?:src|href)="([^"#]+)"', page)
    local = [name for name in names if not name.startswith("data:")]
    assert len(local) >= 2
    for name in local:
        assert name.startswith("./assets/")
        assert (PAGE / name).is_file()
    style = "".join(file.read_text(encoding="utf-8") for file in PAGE.glob("assets/*.css"))
    assert not re.search(r"url\(|@import|https?:", page + style)


def test_licenses_of_what_is_bundled_are_shipped() -> None:
    text = (PAGE / "licenses.md").read_text(encoding="utf-8")
    parts = re.split("^## ", text, flags=re.M)[1:]
    assert "gl-matrix" in text
    for part in parts:  # a name, and its license, except where npm has none
        name, content = part.split(" - ", 1)
        if name == "@niivue/niivue":
            content += (PAGE / "niivue-license.txt").read_text(encoding="utf-8")
        assert "AS IS" in content, name


def test_the_page_needs_no_token_and_has_a_policy(token_server: RunningServer) -> None:
    with token_server.http() as http:
        page = http.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe-eval" not in policy.replace("wasm-unsafe-eval", "")
        script = re.findall(r'src="\./(assets/[^"]+\.js)"', page.text)[0]
        answer = http.get(f"/{script}")
        assert "javascript" in answer.headers["content-type"]
        assert ALICE not in page.text + answer.text
        refused: httpx.Response = http.get("/v1/models")
        assert refused.status_code == 401
        missing = http.get("/assets/none.js")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "route_not_found"
