"""Seals what devices saw: AES-256-GCM (NIST SP 800-38D), by a key in a file of the server, not in its database.

What a row says of itself is sealed with it, so that nobody moves what one device saw to another's row. Nonces are
random: of 96 bits, which for 2³² messages under one key leaves a chance of a repeat below 2⁻³².
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgekit.fleet.errors import UnavailableError

FILE: Final = "disagreements.key"
KEY_BYTES, NONCE_BYTES = 32, 12


def path_of(folder: Path) -> Path:
    """Where the key of a fleet lies.

    Args:
        folder: of the fleet.
    """
    return folder / "keys" / FILE


@dataclass(frozen=True, slots=True)
class Seal:
    """The key of a fleet.

    Attributes:
        key: 32 bytes.
        path: of its file, for messages.
    """

    key: bytes = field(repr=False)
    path: Path

    @property
    def id(self) -> str:
        """By which rows name it; nobody finds the key by it."""
        return hashlib.sha256(b"edgekit disagreements\0" + self.key).hexdigest()[:16]

    def seal(self, content: bytes, about: Sequence[str]) -> bytes:
        """Nonce and ciphertext.

        Args:
            content: to be sealed.
            about: what it is of; it has to be the same when it is opened.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + AESGCM(self.key).encrypt(nonce, content, _bound(about))

    def open(self, sealed: bytes, about: Sequence[str], key_id: str) -> bytes:
        """The content.

        Args:
            sealed: as `seal` made it.
            about: likewise.
            key_id: of the key that sealed it.

        Raises:
            UnavailableError: that was another key (`disagreement_key`), or the row was changed (`damaged`).
        """
        if key_id != self.id:
            raise other_key(self, key_id)
        try:
            return AESGCM(self.key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound(about))
        except InvalidTag:
            raise UnavailableError(
                "what was sealed is damaged, or belongs to another row", expected="what this server sealed",
                way_out="Restore the database from a backup; this one cannot be read.", code="damaged",
            ) from None  # fmt: skip


def load(folder: Path) -> Seal | None:
    """The key of a fleet, None where there is none yet.

    Raises:
        UnavailableError: it cannot be read, is no key, or others on the machine may read it.
    """
    path = path_of(folder)
    try:
        with path.open("rb") as file:
            mode, text = os.fstat(file.fileno()).st_mode, file.read(1 << 10)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error.strerror or str(error), "a file that can be read") from error
    if mode & stat.S_IRWXO:
        raise _unusable(path, "others on this machine may read it", "chmod 600")
    try:
        key = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise _unusable(path, "it is no key", f"{2 * KEY_BYTES} hexadecimal digits")
    return Seal(key, path)


def make(folder: Path) -> Seal:
    """The key of a fleet, made where there is none; of several that make one at once all get the same.

    Raises:
        UnavailableError: it cannot be written, or read.
    """
    path = path_of(folder)
    new = path.with_name(f".{FILE}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.touch(0o600, exist_ok=False)
        try:
            with new.open("wb") as file:
                file.write(secrets.token_hex(KEY_BYTES).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            # Whole, or not there; and never in the place of another.
            os.link(new, path)
        finally:
            new.unlink(missing_ok=True)
    except FileExistsError:
        # Another process was first, and its key is the one.
        pass
    except OSError as error:
        raise _unusable(path, error.strerror or str(error), "a folder that can be written") from error
    found = load(folder)
    assert found is not None
    return found


def other_key(seal: Seal, key_id: str) -> UnavailableError:
    """The error for what another key sealed."""
    return _unusable(seal.path, f"it is the key {seal.id}", f"the key {key_id}, which sealed what is there")


def no_key(folder: Path, key_id: str) -> UnavailableError:
    """The error for what was sealed by a key that is not here."""
    return _unusable(path_of(folder), "it is not there", f"the key {key_id}, which sealed what is there")


def _bound(about: Sequence[str]) -> bytes:
    return json.dumps(list(about)).encode()


def _unusable(path: Path, found: str, expected: str) -> UnavailableError:
    return UnavailableError(
        f"{path}: {found}",
        expected=expected,
        way_out="All servers of a fleet need the same file; `edgekit fleet backup --keys` has it. Without it, delete "
        "what it sealed (`edgekit rollout erase-disagreements`).",
        code="disagreement_key",
    )
