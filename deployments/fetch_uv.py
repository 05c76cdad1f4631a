"""Fetch uv from a package index with nothing but the standard library.

The last resort of ``bootstrap.sh``, for a Python that came without pip and venv (as on a fresh Debian).
Usage: ``PIP_INDEX_URL=... python fetch_uv.py FOLDER`` puts the program at ``FOLDER/bin/uv``.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import sys
import urllib.parse
import urllib.request
import zipfile
from html.parser import HTMLParser
from pathlib import Path


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def wheel_address(page: str, base: str, tags: tuple[str, ...]) -> str:
    """Address of the newest uv wheel on an index page whose file name holds all of ``tags``."""
    links = _Links()
    links.feed(page)
    best: tuple[tuple[int, ...], str] | None = None
    for href in links.found:
        name = urllib.parse.unquote(urllib.parse.urlsplit(href).path.rsplit("/", 1)[-1])
        version = re.match(r"uv-(\d+)\.(\d+)\.(\d+)-py3-none-", name)
        if version and name.endswith(".whl") and all(tag in name for tag in tags):
            number = tuple(int(part) for part in version.groups())
            if best is None or number > best[0]:
                best = number, urllib.parse.urljoin(base, href)
    if best is None:
        sys.exit(f"no uv wheel for {' '.join(tags)} on {base}; install uv yourself and run this again")
    return best[1]


def main(folder: Path) -> None:
    """Put uv into ``folder``/bin."""
    names = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
    index = next((os.environ[name] for name in names if os.environ.get(name)), None)
    if index is None:
        sys.exit(
            "this Python has neither venv nor pip, so uv cannot be fetched by itself; install one of them (on Debian: "
            "apt install python3-venv), or uv, or set PIP_INDEX_URL to your package index, and run this again"
        )
    base = index.rstrip("/") + "/uv/"
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform == "darwin":
        tags = ("macosx", "arm64" if machine == "aarch64" else machine)
    else:
        tags = ("manylinux", machine)
    with urllib.request.urlopen(base, timeout=60) as reply:  # noqa: S310 - the index the user set
        address = wheel_address(reply.read().decode(), base, tags)
    with urllib.request.urlopen(address.split("#")[0], timeout=300) as reply:  # noqa: S310
        wheel = reply.read()
    promised = re.search(r"sha256=([0-9a-f]{64})", address)
    if promised and hashlib.sha256(wheel).hexdigest() != promised[1]:
        sys.exit(f"{address} does not have the hash that the index promises")
    target = folder / "bin" / "uv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/scripts/uv"))
        target.write_bytes(archive.read(member))
    target.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
