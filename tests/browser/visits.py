"""A browser's visit to some pages: what they asked for, what went wrong on them, and pictures of what a person saw."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response

CHECKOUT = Path(__file__).resolve().parents[2]
# kept after the tests, for people to look at
PICTURES = Path(os.environ.get("SCREENSHOTS", CHECKOUT / ".tradeflows-screenshots"))
HERE = {"127.0.0.1", "localhost"}
# Prefect's own: before it knows a run's state it asks for the icon of none; MLflow's own: without accounts it asks
# who is logged in, and a browser's remark on a table that it lays out twice
PARDONED = ("/ico/undefined.svg", "/mlflow/users/current", "ResizeObserver loop")
# milliseconds; nobody waits so long where the machine has little else to do
PATIENCE = 120_000


@dataclass
class Visit:
    """One person's browser. ``outside`` has every request to another machine, ``wrong`` what went wrong on a page."""

    page: Page
    outside: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def shoot(self, name: str, page: Page | None = None) -> None:
        """Keep a picture of what is to be seen."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        (page or self.page).screenshot(path=PICTURES / f"{name}.png")


@contextmanager
def visiting(browser: Browser) -> Iterator[Visit]:
    """A visit by somebody who was never here before: no cookies, nothing remembered."""
    with browser.new_context(viewport={"width": 1440, "height": 1000}) as context:
        context.set_default_timeout(PATIENCE)
        visit = Visit(context.new_page())
        _listen(context, visit)
        yield visit


def _listen(context: BrowserContext, visit: Visit) -> None:
    def note(text: str) -> None:
        if not any(known in text for known in PARDONED):
            visit.wrong.append(text)

    def asked(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.hostname not in HERE:
            visit.outside.append(url)

    def answered(response: Response) -> None:
        # 503: Prefect's database is busy, and its pages ask again
        if response.status >= 400 and response.status != 503:
            note(f"{response.status} {response.request.method} {response.url}")

    def failed(request: Request) -> None:
        # a page that is left takes back what it asked for
        if request.failure != "net::ERR_ABORTED":
            note(f"{request.failure} {request.url}")

    def said(message: ConsoleMessage) -> None:
        # what could not be loaded was noted above, by its address
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            note(f"console: {message.text}")

    context.on("request", lambda request: asked(request.url))
    context.on("response", answered)
    context.on("requestfailed", failed)
    context.on("console", said)
    context.on("weberror", lambda error: note(f"script: {error.error}"))
    for page in context.pages:
        page.on("websocket", lambda socket: asked(socket.url))
    context.on("page", lambda page: page.on("websocket", lambda socket: asked(socket.url)))
