"""A real browser for tests: Chromium of the system, by playwright; and the dashboard on a port of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from edgekit.fleet.context import Fleet
from edgekit.fleet.server.app import create_app

CHROMIUM = Path("/usr/bin/chromium")
MISSING = f"{CHROMIUM} is not there; `apt-get install chromium` brings it"
DESKTOP, PHONE = (1280, 900), (390, 844)
# Chromium tells of some refusals only by this event, and only in the page.
_LISTEN = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


@contextmanager
def serving(fleet: Fleet) -> Iterator[str]:
    """Its address, while a real server answers on it."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(fleet), http="httptools", lifespan="on", log_level="error", access_log=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    try:
        while not running.started:
            if time.monotonic() > until or not thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(20)
        listener.close()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Desk:
    """A page of the browser, and what went wrong in it.

    Attributes:
        page: of playwright.
        address: of the dashboard.
        errors: of the console and of scripts.
    """

    page: Any
    address: str
    errors: list[str] = field(default_factory=list)

    def sign_in(self, token: str) -> None:
        """As a person does."""
        self.open("/sign-in")
        self.page.fill("#token", token)
        self.page.click("main button[type=submit]")

    def open(self, path: str) -> None:
        """A page of the dashboard, with its plots drawn."""
        self.page.goto(f"{self.address}/dashboard{path}")
        if self.page.query_selector("[data-plots]"):
            self.page.wait_for_selector("[data-drawn=yes]")

    def wrong(self) -> list[str]:
        """What the console, the scripts and the page's policy say."""
        return [*self.errors, *self.page.evaluate("window.violations")]


@contextmanager
def a_desk(browser: Any, address: str, size: tuple[int, int] = DESKTOP, **options: Any) -> Iterator[Desk]:
    """A page with cookies of its own."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    context.set_default_timeout(10_000)
    page = context.new_page()
    page.add_init_script(_LISTEN)
    found = Desk(page, address)
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.on(
        "console", lambda said: found.errors.append(said.text) if said.type in {"error", "warning"} else None
    )
    try:
        yield found
    finally:
        context.close()
