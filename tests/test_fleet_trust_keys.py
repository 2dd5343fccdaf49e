"""Keys in files: who may read them, what they may be, and that none is ever lost to another."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekit.fleet.errors import FleetError
from edgekit.fleet.trust import keys

PASSPHRASE = "größe correct horse"


def refused(code: str, deed: Callable[[], object]) -> FleetError:
    with pytest.raises(FleetError) as caught:
        deed()
    assert caught.value.code == code
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "anna.pem"
    keys.create(path, PASSPHRASE)
    return path


def say(passphrase: str) -> Callable[[Path], str]:
    return lambda _: passphrase


def test_a_key_comes_back_with_its_passphrase_and_signs(path: Path) -> None:
    signer = keys.load(path, say(PASSPHRASE))
    assert keys.load_public(path.with_suffix(".pub")) == signer.public_key
    signer.public_key.verify_signature(signer.sign(b"content"), b"content")


def test_a_private_key_is_encrypted_with_scrypt_and_nobody_else_may_read_it(path: Path) -> None:
    content = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert content.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert max(map(len, content.splitlines())) <= 64
    key = serialization.load_pem_private_key(content, PASSPHRASE.encode())
    assert isinstance(key, Ed25519PrivateKey)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_reads_the_key_too(path: Path) -> None:
    command = ["openssl", "pkey", "-in", str(path), "-passin", f"pass:{PASSPHRASE}", "-pubout"]
    found = subprocess.run(command, capture_output=True, check=True).stdout
    assert found == path.with_suffix(".pub").read_bytes()


@pytest.mark.parametrize("taken", ["anna.pem", "anna.pub"])
def test_no_file_is_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_bytes(b"mine")
    refused("key_exists", lambda: keys.create(tmp_path / "anna.pem", PASSPHRASE))
    assert [each.name for each in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_bytes() == b"mine"


def test_a_link_in_the_place_of_a_new_key_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "anna.pem").symlink_to(tmp_path / "elsewhere")
    refused("key_exists", lambda: keys.create(tmp_path / "anna.pem", PASSPHRASE))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610])
def test_a_key_that_others_may_use_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    error = refused("key_mode", lambda: keys.load(path, say(PASSPHRASE)))
    assert f"{mode:04o}" in str(error)
    assert "chmod 600" in str(error)


@pytest.mark.parametrize("passphrase", ["", "wrong", PASSPHRASE + " "])
def test_a_wrong_passphrase_is_told_from_a_wrong_file(path: Path, passphrase: str) -> None:
    refused("passphrase", lambda: keys.load(path, say(passphrase)))


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    refused("passphrase", lambda: keys.create(tmp_path / "a.pem", "x" * 11))
    assert list(tmp_path.iterdir()) == []


def _other_kind() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAA==\n", None])
def test_a_file_that_holds_no_key_of_the_right_kind_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.pem"
    path.write_bytes(_other_kind() if content is None else content)
    path.chmod(0o600)
    refused("key_type", lambda: keys.load(path, say(PASSPHRASE)))
    refused("key_type", lambda: keys.load_public(path))


def test_a_missing_key_and_a_folder_are_told(tmp_path: Path) -> None:
    refused("key_file", lambda: keys.load(tmp_path / "no.pem", say(PASSPHRASE)))
    refused("key_file", lambda: keys.load_public(tmp_path))
    refused("key_file", lambda: keys.create(tmp_path / "no" / "a.pem", PASSPHRASE))
    refused("key_file", lambda: keys.load_online(tmp_path / "no"))


def test_the_environment_gives_the_passphrase(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.PASSPHRASE, PASSPHRASE)
    assert keys.load(path).public_key == keys.load_public(path.with_suffix(".pub"))
    assert keys.new_passphrase(path) == PASSPHRASE


def test_a_new_passphrase_is_asked_for_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([PASSPHRASE, PASSPHRASE, PASSPHRASE, "another"])
    monkeypatch.delenv(keys.PASSPHRASE, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda _: next(said))
    assert keys.new_passphrase(tmp_path) == PASSPHRASE
    refused("passphrase", lambda: keys.new_passphrase(tmp_path))


# Keys of a server


def test_keys_of_a_server_come_back_by_role_the_old_beside_the_new(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    made = keys.create_online(folder)
    more = keys.create_online(folder, ["timestamp"])
    found = keys.load_online(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [each.public_key for each in found["timestamp"]] == [made["timestamp"], more["timestamp"]]
    assert [each.public_key for each in found["rollout"]] == [made["rollout"]]


def test_secrets_that_a_host_mounts_for_a_group_are_taken_and_those_for_everybody_are_not(
    tmp_path: Path,
) -> None:
    keys.create_online(tmp_path)
    path = tmp_path / "snapshot-1.pem"
    path.chmod(0o440)
    keys.load_online(tmp_path)
    for mode in (0o444, 0o660):
        path.chmod(mode)
        refused("key_mode", lambda: keys.load_online(tmp_path))


def test_keys_that_are_kept_offline_are_neither_made_nor_taken_on_a_server(tmp_path: Path) -> None:
    refused("key_role", lambda: keys.create_online(tmp_path, ["targets"]))
    keys.create_online(tmp_path)
    keys.create(tmp_path / "rollout-9.pem", PASSPHRASE)
    refused("key_role", lambda: keys.load_online(tmp_path))
