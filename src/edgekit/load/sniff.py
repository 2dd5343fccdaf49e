"""What a file is, from its bytes alone."""

from __future__ import annotations

from collections.abc import Sequence

# torch's own magic number at the head of files written before torch 1.6.
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# What is not a torch model: what to call it, and the way out.
FOREIGN: dict[str, tuple[str, str]] = {
    "onnx": (
        "an ONNX model",
        "edgekit quantizes the PyTorch model that it was exported from: "
        "torch.export.save(torch.export.export("
        "model.eval(), example), 'model.pt2').",
    ),
    "tflite": ("a TensorFlow Lite model", "Pass the PyTorch model that it was converted from."),
    "hdf5": ("an HDF5 file (Keras)", "Port the network to PyTorch, load its weights and export it."),
    "gzip": ("compressed with gzip", "Unpack it first: gunzip FILE, or tar xzf FILE."),
    "html": (
        "a web page, so the download went wrong",
        "Download the model itself: the raw file, not its page.",
    ),
    "lfs": ("a Git LFS pointer, not the model", "Run git lfs pull in that checkout."),
    "npz": ("a NumPy archive: data, not a model", "Pass it with --data."),
    "zip": ("a zip archive without a torch model in it", "Unpack it and pass the model inside."),
    "text": (
        "a text file, not a model",
        "Pass the file that torch.save, torch.jit.save or torch.export.save wrote.",
    ),
    "unknown": (
        "not a file that torch writes",
        "Pass the file that torch.save, torch.jit.save or torch.export.save wrote.",
    ),
}

KINDS = ("exported program", "torchscript", "torch zip", "legacy torch", "pickle", "safetensors", *FOREIGN)


def sniff(head: bytes, size_bytes: int, members: Sequence[str] | None) -> str:
    """Name the kind of a file.

    Args:
        head: its first bytes, 4096 are enough.
        size_bytes: its length.
        members: names in the archive if it is a zip.

    Returns:
        One of `KINDS`.
    """
    if members is not None:
        return _zip_kind(members)
    text = head.lstrip()[:64].lower()
    signatures = (
        ("gzip", head.startswith(b"\x1f\x8b")),
        ("hdf5", head.startswith(b"\x89HDF\r\n")),
        ("tflite", head[4:8] == b"TFL3"),
        ("html", text.startswith((b"<!doctype html", b"<html", b"<head"))),
        ("lfs", head.startswith(b"version https://git-lfs")),
        ("legacy torch", LEGACY_MAGIC in head[:32]),
        ("pickle", len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5),
        ("safetensors", _is_safetensors(head, size_bytes)),
        ("text", _is_text(head)),
        ("onnx", _is_onnx(head, size_bytes)),
    )
    return next((kind for kind, found in signatures if found), "unknown")


def _zip_kind(members: Sequence[str]) -> str:
    leaves = {name.rpartition("/")[2] for name in members}
    if "archive_format" in leaves and any("models/" in name for name in members):
        return "exported program"
    if "serialized_exported_program.json" in leaves:
        return "exported program"
    if "constants.pkl" in leaves and any("/code/" in name for name in members):
        return "torchscript"
    if "data.pkl" in leaves:
        return "torch zip"
    return "npz" if any(name.endswith(".npy") for name in members) else "zip"


def _is_safetensors(head: bytes, size_bytes: int) -> bool:
    """Eight bytes of header length, little endian, then a JSON object."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size_bytes - 8


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return False
        text = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c in "\r\n\t" for c in text)


# Fields of onnx.ModelProto by number: wire type, 0 a varint and 2 a length.
_MODEL_PROTO = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}


def _is_onnx(head: bytes, size_bytes: int) -> bool:
    """Top-level protobuf fields of a ModelProto, up to the graph or the end of `head`."""
    position, seen = 0, 0
    while position < len(head):
        key, position = _varint(head, position)
        number, wire = key >> 3, key & 7
        if _MODEL_PROTO.get(number) != wire or (seen == 0 and number not in (1, 7, 8)):
            return False
        value, position = _varint(head, position)
        if number == 1 and not 1 <= value <= 100:
            return False
        if wire == 2:
            position += value
            if position > size_bytes:
                return False
        seen += 1
    return seen >= 2 or position > len(head)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80 or shift > 63:
            break
    return value, position
