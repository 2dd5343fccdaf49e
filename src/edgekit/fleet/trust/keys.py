"""Ed25519 keys in files.

Private keys of `root` and `targets` are encrypted under a passphrase and belong on machines that are offline. Those of
`timestamp`, `snapshot` and `rollout` lie unencrypted in one folder of the server, `<role>-….pem`, or wherever the
host mounts its secrets. No file is ever overwritten, and none is used that others on the machine may read.
"""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, Key, SSlibKey  # type: ignore[attr-defined] # no `__all__`

from edgekit.fleet.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from edgekit.fleet.trust.layout import ONLINE
from edgekit.fleet.trust.pkcs8 import encrypt

PASSPHRASE: Final = "EDGEKIT_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable
MIN_PASSPHRASE: Final = 12
MAX_KEY_BYTES: Final = 16 << 10
# A signature is about 200 bytes, and devices take a timestamp of 16 KiB.
MAX_HELD: Final = 8

Online = Mapping[str, Sequence[CryptoSigner]]
"""Role to the keys that this server holds for it; more than one while they are replaced."""

_ENCRYPTED: Final = b"BEGIN ENCRYPTED PRIVATE KEY"


def generate() -> CryptoSigner:
    """A new key that no file holds."""
    return CryptoSigner(Ed25519PrivateKey.generate())


def create(path: Path, passphrase: str | None) -> Key:
    """Make a key and write it, and its public half beside it as `.pub`.

    Args:
        path: of the private key, which is not there yet.
        passphrase: to encrypt it under; None for a key that a server uses by itself.

    Returns:
        The public half.

    Raises:
        ConflictError: there is such a file already.
        InvalidError: the passphrase is too short, or the folder cannot be written.
    """
    if passphrase is not None and len(passphrase) < MIN_PASSPHRASE:
        raise InvalidError(
            f"a passphrase of {len(passphrase)} characters",
            expected=f"at least {MIN_PASSPHRASE}; whoever finds the file may try as often as they like",
            way_out="Take four or five random words.",
            code="passphrase",
        )
    private = Ed25519PrivateKey.generate()
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    if passphrase is None:
        content = private.private_bytes(serialization.Encoding.PEM, form, none)
    else:
        content = encrypt(private.private_bytes(serialization.Encoding.DER, form, none), passphrase.encode())
    public = path.with_suffix(".pub")
    _write_new(path, content, 0o600)
    try:
        _write_new(public, _public_pem(private.public_key()), 0o644)
    except ConflictError:
        path.unlink()
        raise
    return SSlibKey.from_crypto(private.public_key())


def load(path: Path, ask: Callable[[Path], str] | None = None) -> CryptoSigner:
    """Read a private key that is kept offline.

    Args:
        path: of the file.
        ask: for the passphrase, where the file has one; `passphrase_of` by default.

    Raises:
        NotFoundError: there is no such file.
        DeniedError: others may read it, or the passphrase is wrong.
        InvalidError: it holds no Ed25519 key.
    """
    return _load(path, ask or passphrase_of, forbidden=stat.S_IRWXG | stat.S_IRWXO)


def load_public(path: Path) -> Key:
    """Read a public key.

    Raises:
        NotFoundError: there is no such file.
        InvalidError: it holds no Ed25519 public key.
    """
    return read_public(_read(path, forbidden=0), str(path))


def read_public(content: bytes, where: str) -> Key:
    """A public key of a text in PEM.

    Args:
        content: the text.
        where: it comes from, for messages.

    Raises:
        InvalidError: it is no Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise _not_it(where, "a public Ed25519 key, as `-----BEGIN PUBLIC KEY-----`")
    return SSlibKey.from_crypto(key)


def create_online(folder: Path, roles: Sequence[str] = ONLINE) -> dict[str, Key]:
    """Make a key for each of these roles; those that are there already stay.

    Returns:
        Role to the public half.

    Raises:
        ConflictError: a file is there already.
        InvalidError: a role is none that a server signs, or the folder cannot be written.
    """
    if strange := set(roles) - set(ONLINE):
        raise InvalidError(
            f"a key of {min(strange)} on the server",
            expected=f"{', '.join(ONLINE)}; the others are kept offline",
            way_out="Make it with `edgekit fleet key` on another machine.",
            code="key_role",
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return {role: create(free_online(folder, role), None) for role in roles}


def free_online(folder: Path, role: str) -> Path:
    """Where the next key of a role is to lie, after all that were there.

    Raises:
        ConflictError: the server holds so many that what it signs would be too long for devices.
    """
    held = [each.stem.rpartition("-")[2] for each in folder.glob(f"{role}-*.pem")]
    if len(held) >= MAX_HELD:
        raise ConflictError(
            f"{len(held)} keys of {role} in {folder}",
            expected=f"fewer than {MAX_HELD}; the server signs with each of them",
            way_out="Move those away that `edgekit fleet keys` does not name.",
            code="keys_held",
        )
    return folder / f"{role}-{1 + max((int(each) for each in held if each.isdecimal()), default=0)}.pem"


def load_online(folder: Path) -> dict[str, tuple[CryptoSigner, ...]]:
    """Read the keys that a server signs with. A group may read them, which secrets of a host are often mounted for.

    Raises:
        NotFoundError: there is no such folder.
        DeniedError: others may read a file.
        InvalidError: a file holds no Ed25519 key, or an encrypted one.
    """
    if not folder.is_dir():
        raise _not_there(folder)
    forbidden = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP
    return {
        role: tuple(_load(path, _nobody_to_ask, forbidden) for path in sorted(folder.glob(f"{role}-*.pem")))
        for role in ONLINE
    }


def passphrase_of(path: Path) -> str:
    """The passphrase from `EDGEKIT_KEY_PASSPHRASE`, else from whoever sits there."""
    given = os.environ.get(PASSPHRASE)
    return given if given is not None else getpass.getpass(f"Passphrase of {path}: ")


def new_passphrase(path: Path) -> str:
    """A passphrase for a new key, asked for twice where the environment has none.

    Raises:
        InvalidError: the two differ.
    """
    first = passphrase_of(path)
    if PASSPHRASE not in os.environ and getpass.getpass("Once more: ") != first:
        raise InvalidError(
            "two different passphrases",
            expected="the same one twice",
            way_out="Try again.",
            code="passphrase",
        )
    return first


def _load(path: Path, ask: Callable[[Path], str], forbidden: int) -> CryptoSigner:
    content = _read(path, forbidden)
    secret = ask(path).encode() if _ENCRYPTED in content else None
    try:
        key = serialization.load_pem_private_key(content, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if secret is None:
            raise _not_it(path, "a private Ed25519 key, as `-----BEGIN … PRIVATE KEY-----`") from error
        raise DeniedError(
            f"{path}: the passphrase does not open it",
            expected="the passphrase that it was made with",
            way_out=f"Try again, or look at {PASSPHRASE}. If the file is damaged, take the copy.",
            code="passphrase",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_it(path, "a private Ed25519 key; this is one of another kind")
    return CryptoSigner(key)


def _nobody_to_ask(path: Path) -> str:
    raise InvalidError(
        f"{path}: a key under a passphrase",
        expected="unencrypted keys in the folder of a server, which has nobody to ask",
        way_out="Move it away. Keys of root and targets do not belong there.",
        code="key_role",
    )


def _read(path: Path, forbidden: int) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & forbidden:
                raise DeniedError(
                    f"{path}: others may use it (mode {stat.S_IMODE(mode):04o})",
                    expected="a private key that nobody else on this machine can read",
                    way_out=f"chmod 600 {path}; if others were on this machine, replace the key.",
                    code="key_mode",
                )
            return file.read(MAX_KEY_BYTES)
    except FileNotFoundError as error:
        raise _not_there(path) from error
    except OSError as error:
        raise InvalidError(
            f"{path}: {error.strerror or error}",
            expected="a file that this user can read",
            way_out="Run as the user who owns the key.",
            code="key_file",
        ) from error


def _write_new(path: Path, content: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(path, flags, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise ConflictError(
            f"{path}: is there already",
            expected="a name that is free; a key is never overwritten",
            way_out="Choose another name, or move the old key away.",
            code="key_exists",
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _not_there(path: Path) -> NotFoundError:
    return NotFoundError(
        f"{path}: not there",
        expected="the file or folder of a key",
        way_out="Look at the name, or make the keys with `edgekit fleet init`.",
        code="key_file",
    )


def _not_it(path: Path | str, expected: str) -> InvalidError:
    return InvalidError(
        f"{path}: not the key that is needed",
        expected=expected,
        way_out="Make one with `edgekit fleet key`.",
        code="key_type",
    )


def _unwritable(path: Path, error: OSError) -> InvalidError:
    return InvalidError(
        f"{path}: {error.strerror or error}",
        expected="a folder that this user can write",
        way_out="Choose another folder, or run as the user who owns it.",
        code="key_file",
    )
