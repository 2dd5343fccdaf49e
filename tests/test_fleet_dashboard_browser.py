"""The dashboard in a real Chromium: every page at both widths, and what people do with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgekit.fleet.conduct import steering
from edgekit.fleet.identity import access
from edgekit.fleet.server.dashboard import sessions
from support import dashboard_world
from support.browser import CHROMIUM, DESKTOP, MISSING, PHONE, Desk, a_desk, chromium, serving
from support.dashboard_told import Board
from support.fleets import ADMIN

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=MISSING)
BOTH = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
PAGES = (
    "", "/rollouts", "/rollouts/{open}", "/rollouts/{failed}", "/rollouts/{completed}", "/rollouts/{open}/comparison",
    "/rollouts/{open}/comparison?stage=1&slice=region%3Deu&period=all", "/models", "/versions/{version}", "/devices",
    "/devices/{device}", "/devices?cohort=nonsense", "/audit", "/no/page",
)  # fmt: skip
# Text and what is behind it: WCAG 2.2, 1.4.3, AA.
LEAST_CONTRAST = 4.5
# A little more than pages wait between two looks.
POLL_MS = 5500
_CONTRAST = (Path(__file__).parent / "support" / "contrast.js").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    found = dashboard_world.copied(tmp_path_factory.mktemp("world") / "fleet")
    yield found
    found.world.fleet.close()


@pytest.fixture(scope="module")
def address(made: Board) -> Iterator[str]:
    with serving(made.world.fleet) as found:
        yield found


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """One to be changed."""
    found = dashboard_world.copied(tmp_path / "fleet")
    yield found
    found.world.fleet.close()


@contextmanager
def signed_in(
    browser: Any, address: str, board: Board, role: str, size: tuple[int, int] = DESKTOP, **options: Any
) -> Iterator[Desk]:
    """A person of a role, with a cookie as the server gives it: tries of one address are few."""
    fleet = board.world.fleet
    cookie = sessions.Keyring.of(fleet.settings.folder).cookie(
        sessions.token_id(board.tokens[role]), fleet.now()
    )
    with a_desk(browser, address, size, **options) as desk:
        place = {"domain": "127.0.0.1", "path": "/dashboard", "sameSite": "Strict"}
        desk.page.context.add_cookies([{"name": sessions.COOKIE, "value": cookie, **place}])
        yield desk


def path_of(path: str, board: Board) -> str:
    return path.format(**board.rollouts, version=board.versions["doorbell 1.5.0"], device=board.device)


def overflow(desk: Desk) -> list[str]:
    """What is wider than the page, or than the card that it lies in."""
    found: list[str] = desk.page.evaluate(
        """() => {
          const right = (each) => each.getBoundingClientRect().right;
          const room = (card) => right(card) - parseFloat(getComputedStyle(card).paddingRight) + 1;
          const wide = document.documentElement.scrollWidth > innerWidth
            ? [...document.querySelectorAll("body *")].filter((each) => right(each) > innerWidth + 1) : [];
          const out = [...document.querySelectorAll(".card, figure, .facts > div")]
            .flatMap((card) => [...card.children].filter((each) => right(each) > room(card)));
          return [...wide, ...out].map((each) => each.outerHTML.slice(0, 120));
        }"""
    )
    return found


def state_of(board: Board, name: str = "open") -> Any:
    with board.world.fleet.database.reading() as connection:
        return steering.read(connection, board.rollouts[name])[0]


@BOTH
def test_every_page_fits_and_breaks_no_rule(
    browser: Any, made: Board, address: str, size: tuple[int, int]
) -> None:
    with signed_in(browser, address, made, "operator", size) as desk:
        for path in PAGES:
            desk.open(path_of(path, made))
            refused = "nonsense" in path or path == "/no/page"
            said = [each for each in desk.wrong() if not (refused and "Failed to load resource" in each)]
            desk.errors.clear()
            assert not said, path
            assert not overflow(desk), path
            assert desk.page.evaluate("window.hostile") is None, path
            assert desk.page.locator("h1").count() == 1, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_what_is_behind_it(browser: Any, made: Board, address: str, scheme: str) -> None:
    with signed_in(browser, address, made, "operator", color_scheme=scheme) as desk:
        for path in PAGES:
            desk.open(path_of(path, made))
            poor = desk.page.evaluate(_CONTRAST, LEAST_CONTRAST)
            assert not poor, path


@BOTH
def test_plots_are_drawn(browser: Any, made: Board, address: str, size: tuple[int, int]) -> None:
    painted = """() => [...document.querySelectorAll(".uplot canvas")].map((canvas) => {
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return data.some((value) => value !== 0); })"""
    with signed_in(browser, address, made, "viewer", size) as desk:
        for path, least in (("/rollouts/{open}", 6), ("/rollouts/{open}/comparison", 3)):
            desk.open(path_of(path, made))
            drawn = desk.page.evaluate(painted)
            assert len(drawn) >= least
            assert all(drawn)
            assert not overflow(desk)


def test_names_labels_notes_and_reasons_are_text(browser: Any, made: Board, address: str) -> None:
    with signed_in(browser, address, made, "admin") as desk:
        desk.open("/models")
        assert "<script>" in desk.page.inner_text("main")
        hostile = next(release for name, release in made.versions.items() if name.endswith("2.0.0"))
        desk.open(f"/versions/{hostile}")
        assert "onerror=" in desk.page.inner_text(".notes")
        desk.open("/devices")
        assert "window.hostile" in desk.page.inner_text("main")
        assert desk.page.locator("main script, main img").count() == 0
        assert not desk.wrong()


def test_signing_in_and_out(browser: Any, made: Board, address: str) -> None:
    with a_desk(browser, address) as desk:
        desk.open("")
        assert desk.page.url.endswith("/sign-in")
        desk.sign_in("edgk_0000_wrong")
        assert "none that this fleet knows" in desk.page.inner_text("[role=alert]")
        desk.errors.clear()
        desk.sign_in(made.tokens["viewer"])
        assert desk.page.inner_text("h1") == "Overview"
        assert "vic" in desk.page.inner_text(".who")
        assert desk.page.evaluate("document.cookie") == ""
        desk.page.click("text=Sign out")
        assert desk.page.url.endswith("/sign-in")
        desk.open("/devices")
        assert desk.page.url.endswith("/sign-in")
        assert not desk.wrong()


def test_a_rollout_is_promoted_by_clicking(browser: Any, board: Board) -> None:
    with serving(board.world.fleet) as address, signed_in(browser, address, board, "operator") as desk:
        before = state_of(board)
        desk.open(path_of("/rollouts/{open}", board))
        desk.page.click("button[data-ask=promote]")
        dialog = desk.page.locator("#ask-promote")
        assert dialog.is_visible()
        dialog.locator("input[name=why]").fill("seen on the pilot <b>sites</b>")
        dialog.locator("button[type=submit]").click()
        desk.page.wait_for_selector("text=seen on the pilot <b>sites</b>")
        after = state_of(board)
        assert (before.phase, after.phase, after.stage) == ("shadow", "live", before.stage)
        assert not desk.wrong()


def test_a_rollout_is_aborted_by_clicking(browser: Any, board: Board) -> None:
    with serving(board.world.fleet) as address, signed_in(browser, address, board, "operator", PHONE) as desk:
        desk.open(path_of("/rollouts/{open}", board))
        desk.page.click("button[data-ask=abort]")
        desk.page.fill("#why-abort", "customers complain")
        desk.page.click("#ask-abort button[type=submit]")
        desk.page.wait_for_selector(".state .chip:has-text('Aborted')")
        assert state_of(board).state == "aborted"
        assert desk.page.locator("[data-ask]").count() == 0
        assert not desk.wrong()


def test_a_completed_rollout_is_rolled_back_by_clicking(browser: Any, board: Board) -> None:
    with serving(board.world.fleet) as address, signed_in(browser, address, board, "operator") as desk:
        desk.open(path_of("/rollouts/{open}", board))
        desk.page.click("button[data-ask=abort]")
        desk.page.fill("#why-abort", "first the other one")
        desk.page.click("#ask-abort button[type=submit]")
        desk.open(path_of("/rollouts/{completed}", board))
        desk.page.click("button[data-ask=rollback]")
        desk.page.fill("#why-rollback", "wrong labels")
        desk.page.click("#ask-rollback button[type=submit]")
        desk.page.wait_for_selector(".state")
        assert desk.page.locator("button[data-ask=rollback]").count() == 0
        desk.open("/models")
        assert "1.3.0" in desk.page.inner_text(".settled")
        assert not desk.wrong()


def test_a_device_is_revoked_by_clicking(browser: Any, board: Board) -> None:
    with serving(board.world.fleet) as address, signed_in(browser, address, board, "operator") as desk:
        desk.open(f"/devices/{board.device}")
        desk.page.click("button[data-ask=revoke]")
        desk.page.click("#ask-revoke button[type=submit]")
        desk.page.wait_for_selector(".chip:has-text('Revoked')")
        assert desk.page.locator("[data-ask=revoke]").count() == 0
        assert not desk.wrong()


def test_who_may_only_look_sees_no_button(browser: Any, made: Board, address: str) -> None:
    with signed_in(browser, address, made, "viewer") as desk:
        for path in ("/rollouts/{open}", "/devices/{device}"):
            desk.open(path_of(path, made))
            assert desk.page.locator("[data-ask], dialog").count() == 0


def test_a_page_follows_what_others_do_and_keeps_an_open_dialog(browser: Any, board: Board) -> None:
    with serving(board.world.fleet) as address, signed_in(browser, address, board, "operator") as desk:
        desk.page.clock.install()
        desk.open(path_of("/rollouts/{open}", board))
        drawn = desk.page.locator(".uplot canvas").count()
        desk.page.click("button[data-ask=pause]")
        desk.page.fill("#why-pause", "half a sen")
        steering.said(
            board.world.fleet, dashboard_world.OLGA, board.rollouts["open"], "pause", why="by another"
        )
        desk.page.clock.fast_forward(POLL_MS)
        desk.page.wait_for_selector(".state .chip:has-text('Paused')")
        assert desk.page.input_value("#why-pause") == "half a sen"
        assert desk.page.locator(".uplot canvas").count() == drawn > 0
        # What is decided on is what was seen when the dialog was opened.
        desk.page.click("#ask-pause button[type=submit]")
        desk.page.wait_for_selector("text=gone on since")


def test_a_server_that_is_gone_is_said(browser: Any, made: Board, address: str) -> None:
    with signed_in(browser, address, made, "viewer") as desk:
        desk.page.clock.install()
        desk.open("")
        desk.page.context.set_offline(True)
        desk.page.clock.fast_forward(POLL_MS)
        desk.page.wait_for_selector("#lost:visible")
        desk.page.context.set_offline(False)
        desk.page.clock.fast_forward(POLL_MS)
        desk.page.wait_for_selector("#lost", state="hidden")


def test_a_page_leads_to_the_sign_in_once_its_token_is_taken_back(browser: Any, board: Board) -> None:
    with serving(board.world.fleet) as address, signed_in(browser, address, board, "viewer") as desk:
        desk.page.clock.install()
        desk.open("")
        access.revoke_token(board.world.fleet, ADMIN, sessions.token_id(board.tokens["viewer"]))
        desk.page.clock.fast_forward(POLL_MS)
        desk.page.wait_for_url("**/dashboard/sign-in")


def test_the_keyboard_is_enough(browser: Any, made: Board, address: str) -> None:
    with signed_in(browser, address, made, "operator") as desk:
        desk.open(path_of("/rollouts/{open}", made))
        desk.page.keyboard.press("Tab")
        assert desk.page.evaluate("document.activeElement.className") == "skip"
        desk.page.focus("button[data-ask=abort]")
        assert desk.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        desk.page.keyboard.press("Enter")
        assert desk.page.locator("#ask-abort").is_visible()
        assert desk.page.evaluate("document.activeElement.closest('dialog').id") == "ask-abort"
        desk.page.keyboard.press("Escape")
        assert not desk.page.locator("#ask-abort").is_visible()
        assert desk.page.evaluate("document.activeElement.dataset.ask") == "abort"


@BOTH
def test_a_fleet_without_anything_says_what_to_type(
    browser: Any, tmp_path: Path, size: tuple[int, int]
) -> None:
    board = dashboard_world.empty(tmp_path / "fleet")
    with serving(board.world.fleet) as address, signed_in(browser, address, board, "admin", size) as desk:
        for path, command in (
            ("", "edgekit publish"), ("/rollouts", "edgekit rollout create"), ("/models", "edgekit publish"),
            ("/devices", "edgekit fleet code"),
        ):  # fmt: skip
            desk.open(path)
            assert command in desk.page.inner_text("main"), path
            assert not overflow(desk), path
        assert not desk.wrong()
