"""A private key under a passphrase: PKCS #8 (RFC 5958) with PBES2 (RFC 8018) and scrypt (RFC 7914).

`cryptography` reads this form and writes PBKDF2 with 2,048 rounds, which a graphics card tries a million times a
second. The cost here is 16 MiB and a fifth of a second a try, and what `openssl pkey` reads without more options.
"""

from __future__ import annotations

import base64
import os
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

COST_N: Final = 1 << 14
COST_R: Final = 8
COST_P: Final = 5

_SEQUENCE, _OCTETS, _INTEGER = 0x30, 0x04, 0x02
_PBES2: Final = bytes.fromhex("06092a864886f70d01050d")  # 1.2.840.113549.1.5.13
_SCRYPT: Final = bytes.fromhex("06092b06010401da47040b")  # 1.3.6.1.4.1.11591.4.11
_AES256_CBC: Final = bytes.fromhex("060960864801650304012a")  # 2.16.840.1.101.3.4.1.42
_BLOCK_BYTES: Final = 16


def encrypt(private: bytes, passphrase: bytes) -> bytes:
    """PEM of an encrypted key.

    Args:
        private: the key as PKCS #8 in DER, not encrypted.
        passphrase: in UTF-8.
    """
    salt, start = os.urandom(16), os.urandom(_BLOCK_BYTES)
    key = Scrypt(salt=salt, length=32, n=COST_N, r=COST_R, p=COST_P).derive(passphrase)
    fill = _BLOCK_BYTES - len(private) % _BLOCK_BYTES
    cipher = Cipher(algorithms.AES(key), modes.CBC(start)).encryptor()
    secret = cipher.update(private + bytes([fill]) * fill) + cipher.finalize()
    scrypt = _der(_SEQUENCE, _der(_OCTETS, salt), *map(_integer, (COST_N, COST_R, COST_P)))
    scheme = _der(
        _SEQUENCE, _der(_SEQUENCE, _SCRYPT, scrypt), _der(_SEQUENCE, _AES256_CBC, _der(_OCTETS, start))
    )
    whole = _der(_SEQUENCE, _der(_SEQUENCE, _PBES2, scheme), _der(_OCTETS, secret))
    text = base64.b64encode(whole)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join(
        [b"-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, b"-----END ENCRYPTED PRIVATE KEY-----", b""]
    )


def _integer(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    length = len(content)
    if length < 128:
        return bytes([tag, length]) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + content
