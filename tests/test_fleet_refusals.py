"""Who may not ask is refused by every operation of the API, with the right code, and nothing is stored or shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import insert
from starlette.testclient import TestClient

from edgekit.fleet.context import Fleet
from edgekit.fleet.identity.access import hashed, make_token, revoke_token
from edgekit.fleet.server.app import create_app
from edgekit.fleet.storage.tables import metadata, tokens
from support.fleets import rows
from support.served_fleet import ADA, a_fleet, enrolled

SCRIPT = "<script>alert(1)</script>"
# In the place of each parameter of an address.
GIVEN = {
    "rollout": "ab",
    "release": "0" * 64,
    "other": "0" * 64,
    "sha256": "0" * 64,
    "token": "ab",
    "webhook": "ab",
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("refusals")
    with a_fleet(folder, api_calls_per_s=1e6, api_burst=10**6) as found:
        enrolled(found, "kiln", site="secret-site")
        yield found


@pytest.fixture(scope="module")
def client(fleet: Fleet) -> Iterator[TestClient]:
    with TestClient(create_app(fleet), raise_server_exceptions=False) as found:
        yield found


def operations(client: TestClient, scheme: str) -> list[tuple[str, str]]:
    """Method and address of those that want a token of a kind."""
    document = client.get("/openapi.json").json()
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if any(scheme in each for each in operation.get("security", ())):
                address = path.format_map(_Given())
                found.append((method.upper(), address))
    return found


class _Given(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return GIVEN.get(name, "kiln")


def stored(fleet: Fleet) -> dict[str, Any]:
    return {name: rows(fleet.database, table) for name, table in metadata.tables.items() if name != "leases"}


def bad_tokens(fleet: Fleet) -> dict[str, str]:
    taken_back = make_token(fleet, ADA, name="old", role="admin")
    with fleet.database.writing() as connection:
        connection.execute(
            insert(tokens).values(
                id="ee", name="late", token_hash=hashed("edgk_late"), role="admin", created_s=1, created_by="ada",
                expires_s=2, revoked=False,
            )
        )  # fmt: skip
    revoke_token(
        fleet, ADA, next(each["id"] for each in rows(fleet.database, tokens) if each["name"] == "old")
    )
    return {
        "none": "", "made up": "Bearer edgk_" + "A" * 43, "revoked": f"Bearer {taken_back}",
        "expired": "Bearer edgk_late", "another scheme": f"Basic {taken_back}", "long": "Bearer " + "x" * 5000,
        "of a device": f"Bearer {enrolled(fleet, 'oven')[1]}", "script": f"Bearer {SCRIPT}",
        "a hash": f"Bearer {hashed('edgk_late')}",
    }  # fmt: skip


def test_no_operation_of_people_answers_without_a_token_that_is_valid(
    client: TestClient, fleet: Fleet
) -> None:
    bad = bad_tokens(fleet)
    before = stored(fleet)
    asked = operations(client, "token")
    assert len(asked) > 35
    for kind, header in bad.items():
        for method, address in asked:
            headers = {"Authorization": header} if header else {}
            found = client.request(method, address, headers=headers, json={})
            assert found.status_code == 401, (kind, method, address, found.text)
            assert found.headers["www-authenticate"] == "Bearer"
            assert found.headers["content-type"] == "application/json"
            assert "secret-site" not in found.text
    assert stored(fleet) == before


def test_a_token_of_a_viewer_changes_nothing(client: TestClient, fleet: Fleet) -> None:
    viewer = {"Authorization": f"Bearer {make_token(fleet, ADA, name='vic', role='viewer')}"}
    before = stored(fleet)
    for method, address in operations(client, "token"):
        if method == "GET" and "tokens" not in address and "webhooks" not in address:
            continue
        found = client.request(method, address, headers=viewer, json={})
        # What is not even understood may be refused before that is looked at.
        assert found.status_code in {403, 422}, (method, address, found.text)
    assert stored(fleet) == before


@pytest.mark.parametrize(
    "name", ["../x", "..%2fx", "%2e%2e", "a/b", "a%5cb", "a%00b", SCRIPT, ".hidden", "x" * 300]
)
@pytest.mark.parametrize(
    "address",
    ["/v1/devices/{}", "/v1/channels/{}/settle", "/v1/uploads/{}", "/v1/rollouts/{}", "/v1/versions/{}/report",
     "/v1/tokens/{}", "/v1/webhooks/{}"],
)  # fmt: skip
def test_a_name_in_an_address_that_leads_elsewhere_is_refused(
    client: TestClient, fleet: Fleet, address: str, name: str
) -> None:
    admin = {"Authorization": f"Bearer {make_token(fleet, ADA, name='ada', role='admin')}"}
    before = stored(fleet)
    for method in ("GET", "PUT", "POST", "DELETE"):
        found = client.request(method, address.format(name), headers=admin, json={})
        assert found.status_code in {404, 405, 422}, (method, found.text)
        assert found.headers["content-type"] == "application/json"
        assert found.headers.get("x-content-type-options", "nosniff") == "nosniff"
    assert stored(fleet) == before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/codes", {"labels": {SCRIPT: "x"}}),
        ("/v1/codes", {"channel": "../x"}),
        ("/v1/tokens", {"name": SCRIPT, "role": "viewer"}),
        ("/v1/rollouts", {"model": "../m", "version": "1", "channel": "../x"}),
        ("/v1/channels/stable/settle", {"release": "../../x"}),
        ("/v1/versions", {"release": "{}", "parent": "../x"}),
        ("/v1/missing", {"sha256": ["../../etc/passwd"]}),
        ("/v1/webhooks", {"url": "file:///etc/passwd"}),
        ("/v1/webhooks", {"url": "javascript:alert(1)"}),
    ],
)
def test_a_name_in_a_body_that_leads_elsewhere_is_refused(
    client: TestClient, fleet: Fleet, path: str, body: dict[str, Any]
) -> None:
    admin = {"Authorization": f"Bearer {make_token(fleet, ADA, name='ada', role='admin')}"}
    before = stored(fleet)
    found = client.post(path, headers=admin, json=body)
    assert found.status_code == 422, found.text
    assert stored(fleet) == before


def test_script_in_a_label_is_kept_as_text_and_shown_as_json(client: TestClient, fleet: Fleet) -> None:
    admin = {"Authorization": f"Bearer {make_token(fleet, ADA, name='ada', role='admin')}"}
    found = client.put("/v1/devices/kiln/labels", headers=admin, json={"labels": {"site": SCRIPT}})
    assert (found.status_code, found.json()["labels"]) == (200, {"site": SCRIPT})
    for address in ("/v1/devices/kiln", "/v1/devices", "/v1/audit"):
        assert client.get(address, headers=admin).headers["content-type"] == "application/json"
