"""Who may come in and do what in the dashboard, over real HTTP; and what its pages never do."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgekit.fleet.conduct import steering
from edgekit.fleet.errors import DeniedError, UnavailableError
from edgekit.fleet.identity import access
from edgekit.fleet.server.dashboard import pages, sessions
from edgekit.fleet.server.dashboard.desk import SIGN_INS_AT_ONCE
from support import dashboard_world
from support.browser import serving
from support.dashboard_told import Board
from support.fleets import ADMIN

STATIC = Path(pages.__file__).parent / "static"


class Person:
    """Somebody at a browser that runs no scripts."""

    def __init__(self, board: Board, address: str) -> None:
        self.board = board
        self.http = httpx.Client(base_url=f"{address}/dashboard", follow_redirects=False, timeout=20)

    def get(self, path: str, status: int = 200) -> str:
        answer = self.http.get(path)
        assert answer.status_code == status, answer.text
        return answer.text

    def post(self, path: str, **fields: str) -> httpx.Response:
        return self.http.post(path, data=fields)

    def sign_in(self, role: str) -> Person:
        """With a cookie as the server gives it; tries of one address are few."""
        fleet = self.board.world.fleet
        ring = sessions.Keyring.of(fleet.settings.folder)
        cookie = ring.cookie(sessions.token_id(self.board.tokens[role]), fleet.now())
        self.http.cookies.set(sessions.COOKIE, cookie, domain="127.0.0.1", path="/dashboard")
        return self

    def form(self) -> str:
        return form_of(self.get("/models"))

    def decide(self, word: str, **more: str) -> httpx.Response:
        rollout = self.board.rollouts["open"]
        seen = re.search(r'data-step="([^"]+)"', self.get(f"/rollouts/{rollout}"))
        assert seen is not None
        return self.post(
            f"/rollouts/{rollout}/{word}",
            **{"form": self.form(), "step": seen[1], "why": "as agreed", **more},
        )


def form_of(text: str) -> str:
    """What the first form of a page carries."""
    found = re.search(r'name="form" value="([0-9a-f]+)"', text)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    found = dashboard_world.copied(tmp_path_factory.mktemp("world") / "fleet")
    yield found
    found.world.fleet.close()


@pytest.fixture(scope="module")
def address(board: Board) -> Iterator[str]:
    with serving(board.world.fleet) as found:
        yield found


@pytest.fixture
def person(board: Board, address: str) -> Iterator[Person]:
    found = Person(board, address)
    with found.http:
        yield found


@pytest.mark.parametrize(
    "path", ["/live", "/models", "/rollouts", "/devices", "/audit", "/audit/chain", "/nothing/at/all"]
)
def test_nobody_sees_a_page_without_a_session(person: Person, path: str) -> None:
    answer = person.http.get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/sign-in")


def test_a_fragment_leads_the_whole_page_to_where_one_signs_in(person: Person) -> None:
    answer = person.http.get("/live", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/dashboard/sign-in")


@pytest.mark.parametrize("path", ["/", "/dashboard/"])
def test_the_address_of_the_server_alone_is_the_dashboard(address: str, path: str) -> None:
    answer = httpx.get(address + path)
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/metadata/timestamp.json", "/openapi.json"])
def test_what_others_ask_the_server_is_not_hidden_by_pages(address: str, path: str) -> None:
    # The description of the interface is made when it is first asked for.
    answer = httpx.get(address + path, timeout=60)
    assert answer.status_code == 200
    assert "text/html" not in answer.headers["content-type"]


def test_pages_are_no_part_of_the_documented_interface(address: str) -> None:
    paths = httpx.get(address + "/openapi.json", timeout=60).json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/dashboard")]


def test_the_cookie_is_for_this_server_alone_and_no_script_reads_it(person: Person) -> None:
    form = form_of(person.get("/sign-in"))
    answer = person.post("/sign-in", form=form, token=person.board.tokens["viewer"])
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
    cookie = next(each for each in answer.headers.get_list("set-cookie") if each.startswith(sessions.COOKIE))
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/dashboard" in cookie
    assert person.board.tokens["viewer"] not in cookie


def test_a_wrong_token_is_refused_with_a_page_that_says_so(person: Person) -> None:
    form = form_of(person.get("/sign-in"))
    answer = person.post("/sign-in", form=form, token="edgk_0123_nothing")
    assert answer.status_code == 401
    assert "none that this fleet knows" in answer.text
    assert sessions.COOKIE not in answer.headers.get("set-cookie", "")


def test_a_token_that_was_taken_back_ends_its_sessions(person: Person) -> None:
    fleet = person.board.world.fleet
    token = access.make_token(fleet, ADMIN, name="tom", role="viewer")
    person.post("/sign-in", form=form_of(person.get("/sign-in")), token=token)
    person.get("/models")
    access.revoke_token(fleet, ADMIN, sessions.token_id(token))
    assert person.http.get("/models").headers["location"] == "/dashboard/sign-in"


def test_signing_out_ends_the_session_of_this_browser(person: Person) -> None:
    person.sign_in("viewer")
    answer = person.post("/sign-out", form=person.form())
    assert answer.headers["location"] == "/dashboard/sign-in"
    assert person.http.get("/models").status_code == 303


def test_guessing_tokens_is_slowed_down(board: Board) -> None:
    with serving(board.world.fleet) as address:
        person = Person(board, address)
        with person.http:
            form = form_of(person.get("/sign-in"))
            tries = [f"edgk_{number}_x" for number in range(SIGN_INS_AT_ONCE + 1)]
            said = [person.post("/sign-in", form=form, token=each).status_code for each in tries]
    assert said == [401] * SIGN_INS_AT_ONCE + [429]


@pytest.mark.parametrize("form", ["", "0" * 64, "ä"])
def test_a_form_that_none_of_our_pages_made_is_refused(person: Person, form: str) -> None:
    person.sign_in("operator")
    answer = person.decide("pause", form=form)
    assert answer.status_code == 403
    assert "not made by a page of this session" in answer.text


def test_the_form_of_somebody_else_is_refused(person: Person, address: str) -> None:
    other = Person(person.board, address)
    with other.http:
        form = other.sign_in("admin").form()
    assert person.sign_in("operator").decide("pause", form=form).status_code == 403


def test_a_post_that_the_browser_calls_foreign_is_refused(person: Person) -> None:
    person.sign_in("operator")
    answer = person.http.post(
        "/sign-out", data={"form": person.form()}, headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert answer.status_code == 403


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data; boundary=x"])
def test_a_body_that_is_no_form_is_refused(person: Person, kind: str) -> None:
    person.sign_in("operator")
    answer = person.http.post("/sign-out", content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 415


def test_a_form_that_is_too_long_or_has_too_many_fields_is_refused(person: Person) -> None:
    person.sign_in("operator")
    assert person.post("/sign-out", form=person.form(), why="x" * 20_000).status_code == 413
    assert person.http.post("/sign-out", data={f"f{n}": "1" for n in range(30)}).status_code == 422


@pytest.mark.parametrize("role", ["viewer", "publisher"])
def test_who_may_only_look_can_neither_decide_nor_revoke(person: Person, role: str) -> None:
    person.sign_in(role)
    page = person.get(f"/rollouts/{person.board.rollouts['open']}")
    assert "data-ask" not in page
    assert "<dialog" not in page
    assert person.decide("promote").status_code == 403
    answer = person.post(f"/devices/{person.board.device}/revoke", form=person.form())
    assert answer.status_code == 403


def test_a_decision_on_a_step_that_is_over_is_refused(person: Person) -> None:
    person.sign_in("operator")
    answer = person.decide("promote", step="running.0.shadow")
    assert answer.status_code == 409
    assert "gone on since" in answer.text


def test_a_word_that_no_button_has_is_refused(person: Person) -> None:
    person.sign_in("operator")
    assert person.decide("delete").status_code == 422


def test_a_reason_is_in_the_decision_and_in_the_log(person: Person) -> None:
    person.sign_in("operator")
    answer = person.decide("pause", why="<b>lunch</b> & tea")
    assert answer.status_code == 303
    assert person.decide("resume").status_code == 303
    with person.board.world.fleet.database.reading() as connection:
        found, _ = steering.read(connection, person.board.rollouts["open"])
    assert found.state == "running"
    text = person.get(f"/rollouts/{found.id}")
    assert "paused: &lt;b&gt;lunch&lt;/b&gt; &amp; tea" in text
    assert "<b>lunch" not in text
    assert "rollout.paused" in person.get("/audit?search=olga&action=rollout")


@pytest.mark.parametrize(
    "path",
    [
        "/rollouts/none", "/versions/none", "/devices/none", "/devices/%00", "/rollouts/none/history.json",
        "/rollouts/none/comparison", "/rollouts/none/comparison.json", "/static/../pages.py", "/static/none.js",
        "/no/page",
    ],
)  # fmt: skip
def test_what_is_not_there_is_a_page_that_says_so(person: Person, path: str) -> None:
    person.sign_in("viewer")
    assert person.get(path, 404)


@pytest.mark.parametrize(
    "path",
    [
        "/audit?before=x", "/audit?before=99999999999999999999", "/audit?search=%25_%5C", "/devices?search=%25",
        "/devices?after=zzz", "/devices?cohort=" + "x" * 3000,
    ],
)  # fmt: skip
def test_any_search_is_answered(person: Person, path: str) -> None:
    person.sign_in("viewer")
    assert person.http.get(path).status_code in {200, 422}


def test_a_cohort_that_is_none_says_where_it_is_wrong(person: Person) -> None:
    person.sign_in("viewer")
    assert 'role="alert"' in person.get("/devices?cohort=region ==", 422)


def test_devices_are_found_by_cohort_and_by_part_of_the_id_a_page_at_a_time(person: Person) -> None:
    person.sign_in("viewer")
    text = person.get('/devices?cohort=hardware == "pi4" and region == "us"')
    assert "pi4" in text
    assert "pi5</span>" not in text
    first = person.get("/devices")
    after = re.search(r'href="(\?[^"]*after=[^"]+)">Next', first)
    assert after is not None
    second = person.get("/devices" + after[1].replace("&amp;", "&"))
    ids = [set(re.findall(r"/devices/(door-[0-9a-f]+)", each)) for each in (first, second)]
    assert len(ids[0]) == len(ids[1]) == 50
    assert not ids[0] & ids[1]


def test_the_log_is_paged_and_its_chain_is_whole(person: Person) -> None:
    person.sign_in("viewer")
    first = person.get("/audit")
    older = re.search(r"before=(\d+)", first)
    assert older is not None
    assert '<td class="n quiet" data-label="Row"' in person.get(f"/audit?before={older[1]}")
    assert "Whole" in person.get("/audit/chain")


def test_every_answer_forbids_what_is_not_from_this_server(person: Person) -> None:
    person.sign_in("viewer")
    for path in (
        "",
        "/sign-in",
        "/nothing",
        "/static/dashboard.js",
        f"/rollouts/{person.board.rollouts['open']}/history.json",
    ):
        headers = person.http.get(path).headers
        assert headers["content-security-policy"] == pages.POLICY, path
        assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in pages.POLICY


def test_templates_have_neither_scripts_nor_styles_of_their_own() -> None:
    for path in (Path(pages.__file__).parent / "templates").glob("*.html"):
        text = path.read_text()
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|\|\s*safe", text), path.name


def test_files_of_others_are_the_ones_that_the_list_names() -> None:
    rows = re.findall(
        r"^\| (\S+) \|.*\| ([0-9a-f]{64}) \|$", (STATIC / "vendor" / "VENDORED.md").read_text(), re.M
    )
    assert len(rows) == 3
    for name, digest in rows:
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == digest


def test_files_are_kept_by_browsers_until_they_change(person: Person) -> None:
    answer = person.http.get(pages.address("dashboard.css").removeprefix(pages.ROOT))
    assert "immutable" in answer.headers["cache-control"]
    assert person.http.get("/static/dashboard.css").headers["cache-control"] == "no-cache"


def test_two_servers_of_one_folder_have_one_key(tmp_path: Path) -> None:
    first, second = sessions.Keyring.of(tmp_path), sessions.Keyring.of(tmp_path)
    assert first == second
    assert (tmp_path / sessions.KEY_FILE).stat().st_mode & 0o077 == 0


def test_a_key_that_is_cut_short_is_not_used(tmp_path: Path) -> None:
    (tmp_path / sessions.KEY_FILE).write_bytes(b"short")
    with pytest.raises(UnavailableError, match="5 bytes"):
        sessions.Keyring.of(tmp_path)


def test_a_cookie_that_was_changed_or_is_too_old_is_nobodys(board: Board) -> None:
    fleet, ring = board.world.fleet, sessions.Keyring(b"k" * 32)
    cookie = ring.cookie(sessions.token_id(board.tokens["viewer"]), fleet.now())
    with fleet.database.reading() as connection:
        assert ring.session(connection, cookie, fleet.now()).actor.name == "vic"
        flipped = cookie[:-1] + ("0" if cookie[-1] != "0" else "1")
        for bad, late_s in ((flipped, 0), ("", 0), (cookie, sessions.LIFE_S)):
            with pytest.raises(DeniedError):
                ring.session(connection, bad, fleet.now() + late_s)
