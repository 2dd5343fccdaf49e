"""Files are told apart by content; what is not a whole model is refused and runs no code."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.load import load_candidate
from edgekit.load.archive import FREE_EXPANSION_BYTES
from edgekit.load.files import identify
from edgekit.load.sniff import KINDS, sniff
from edgekit_converters.quiet import quiet_torch

FACTORY = """
import torch
def net():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
def wide():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
def broken():
    raise ValueError("no such width")
def number():
    return 7
"""


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A folder with the user's source; the module name is unique, since imports are remembered."""
    name = f"user_net_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return name


def exported_file(path: Path) -> Path:
    with quiet_torch():
        torch.export.save(torch.export.export(network(), (torch.randn(1, 3),)), path)
    return path


def refusal(path: Path, **options: object) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_candidate(path, **options)  # type: ignore[arg-type]
    assert str(path) in caught.value.what
    return caught.value


def test_state_dicts_load_bare_wrapped_and_prefixed(tmp_path, factory):
    weights = network().state_dict()
    prefixed = OrderedDict((f"module.{k}", v) for k, v in weights.items())
    variants = {
        "bare": weights,
        "state_dict": {"state_dict": prefixed, "epoch": 3, "best": np.float64(0.5)},
        "model": {"model": weights, "optimizer": {"lr": 0.1}},
        "model_state_dict": {"model_state_dict": prefixed},
    }
    x = torch.randn(2, 3)
    for name, value in variants.items():
        path = tmp_path / f"{name}.jpg"
        torch.save(value, path)
        candidate = load_candidate(path, factory=f"{factory}:net", input_shapes=[(1, 3)])
        assert candidate.form == "state dict"
        torch.testing.assert_close(candidate.program.graph(x)[0], network()(x))


def test_safetensors_are_weights_too(tmp_path, factory):
    torch_files = pytest.importorskip("safetensors.torch")
    torch_files.save_file(network().state_dict(), tmp_path / "w.bin")
    candidate = load_candidate(tmp_path / "w.bin", factory=f"{factory}:net", input_shapes=[(1, 3)])
    assert (candidate.form, candidate.params) == ("state dict", 26)
    assert "--factory" in refusal(tmp_path / "w.bin").way_out
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:-30])
    assert "damaged" in refusal(tmp_path / "w.bin", factory=f"{factory}:net").what


def test_the_old_file_format_of_torch_loads(tmp_path, factory):
    path = tmp_path / "old.pth"
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=False)
    candidate = load_candidate(path, factory=f"{factory}:net", input_shapes=[(1, 3)])
    assert candidate.params == 26


def test_a_state_dict_without_factory_says_so(tmp_path):
    torch.save(network().state_dict(), tmp_path / "w.pt")
    error = refusal(tmp_path / "w.pt")
    assert "--factory" in error.way_out
    assert "torch.export.save" in error.way_out


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("broken", "no such width"),
        ("number", "returned a int"),
        ("absent", "absent"),
        ("", "module:callable"),
    ],
)
def test_a_factory_that_cannot_build_the_network_is_named(tmp_path, factory, attribute, words):
    torch.save(network().state_dict(), tmp_path / "w.pt")
    spec = f"{factory}:{attribute}" if attribute else factory
    with pytest.raises(UsageError, match=words) as caught:
        load_candidate(tmp_path / "w.pt", factory=spec, input_shapes=[(1, 3)])
    assert "--factory" in str(caught.value)


def test_weights_of_another_network_list_what_does_not_fit(tmp_path, factory):
    torch.save(network().state_dict(), tmp_path / "w.pt")
    error = refusal(tmp_path / "w.pt", factory=f"{factory}:wide", input_shapes=[(1, 3)])
    assert "0.weight is (4, 3), the network wants (8, 3)" in error.what


class Mischief:
    """Leaves a mark if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_without_trust_is_refused_and_runs_nothing(tmp_path, zipped):
    torch.save(network(), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    error = refusal(tmp_path / "m.pt", input_shapes=[(1, 3)])
    assert "torch.nn.modules" in error.what
    assert "--trust" in error.way_out
    torch.save(
        {"state_dict": Mischief(tmp_path / "mark")}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped
    )
    assert "posix.mkdir" in refusal(tmp_path / "x.pt").what or "nt.mkdir" in refusal(tmp_path / "x.pt").what
    assert not (tmp_path / "mark").exists()


def test_a_bare_pickle_without_trust_runs_nothing(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Mischief(tmp_path / "mark")))
    assert "--trust" in refusal(tmp_path / "x.pkl").way_out
    assert not (tmp_path / "mark").exists()


def test_a_pickled_module_loads_with_trust(tmp_path):
    torch.save(network(), tmp_path / "m.pt")
    candidate = load_candidate(tmp_path / "m.pt", trust=True, input_shapes=[(1, 3)])
    assert (candidate.form, candidate.name) == ("pickled module", "m")


def test_a_pickled_module_whose_source_is_gone_says_which(tmp_path):
    class Gone(torch.nn.Linear):
        pass

    Gone.__module__, Gone.__qualname__ = "__main__", "Gone"
    import __main__

    __main__.Gone = Gone  # type: ignore[attr-defined]
    torch.save(Gone(3, 2), tmp_path / "m.pt")
    del __main__.Gone
    error = refusal(tmp_path / "m.pt", trust=True, input_shapes=[(1, 3)])
    assert "Gone" in error.what
    assert "import path" in error.expected


def test_exported_programs_and_scripts_need_no_name_and_no_option(tmp_path):
    path = exported_file(tmp_path / "数 据.onnx")
    candidate = load_candidate(path)
    assert (candidate.form, candidate.name, candidate.size_bytes) == (
        "exported program", "数 据", path.stat().st_size,
    )  # fmt: skip
    with quiet_torch():
        torch.jit.trace(network(), torch.randn(1, 3)).save(tmp_path / "m")
    assert load_candidate(tmp_path / "m").form == "torchscript"


def rewritten(path: Path, edit: object) -> Path:
    """The archive with every JSON member passed through `edit`."""
    out = path.with_name("edited.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, edit(name, data) if name.endswith(".json") else data)  # type: ignore[operator]
    return out


def test_an_exported_program_that_calls_a_function_of_its_choice_is_refused(tmp_path):
    path = exported_file(tmp_path / "m.pt2")
    evil = rewritten(path, lambda _, d: d.replace(b"torch.ops.aten.relu.default", b"torch.hub.load"))
    error = refusal(evil)
    assert "torch.hub.load" in error.what
    assert "--trust" in error.way_out


def test_an_exported_program_with_pickled_members_is_refused(tmp_path):
    path = exported_file(tmp_path / "m.pt2")

    def edit(name: str, data: bytes) -> bytes:
        value = json.loads(data)
        if "weights_config" in name:
            for entry in value["config"].values():
                entry["use_pickle"] = True
        return json.dumps(value).encode()

    assert "pickled" in refusal(rewritten(path, edit)).what


def test_example_inputs_inside_an_exported_program_run_nothing(tmp_path):
    path = exported_file(tmp_path / "m.pt2")
    buffer = io.BytesIO()
    torch.save((Mischief(tmp_path / "mark"),), buffer)
    out = tmp_path / "evil.pt2"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, buffer.getvalue() if "sample_inputs" in name else old.read(name))
    refusal(out)
    assert not (tmp_path / "mark").exists()


def test_a_program_saved_on_a_gpu_loads_on_the_cpu(tmp_path):
    path = exported_file(tmp_path / "m.pt2")
    gpu = b'"type": "cuda", "index": 0'
    on_gpu = rewritten(path, lambda _, d: d.replace(b'"type": "cpu", "index": null', gpu))
    assert gpu in zipfile.ZipFile(on_gpu).read(
        next(n for n in zipfile.ZipFile(on_gpu).namelist() if "model.json" in n)
    )
    x = torch.randn(2, 3)
    torch.testing.assert_close(load_candidate(on_gpu).program.graph(x)[0], network()(x))


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["exported", "script", "state"])
def test_truncated_files_are_called_so(tmp_path, kind, share):
    path = tmp_path / "m.pt"
    if kind == "exported":
        exported_file(path)
    elif kind == "script":
        with quiet_torch():
            torch.jit.trace(network(), torch.randn(1, 3)).save(path)
    else:
        torch.save(network().state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "truncated" in refusal(path).what


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_old_file_or_a_flipped_bit_is_called_damaged(tmp_path, zipped):
    path = tmp_path / "m.pt"
    torch.save(network().state_dict(), path, _use_new_zipfile_serialization=zipped)
    data = bytearray(path.read_bytes())
    if zipped:
        data[data.index(network()[0].weight.detach().numpy().tobytes())] ^= 0x40
        path.write_bytes(data)
    else:
        path.write_bytes(data[:-20])
    assert "damaged" in refusal(path).what


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\0" * (FREE_EXPANSION_BYTES + 1_000_000))
    assert "unpack" in refusal(path).what


FOREIGN_FILES = {
    "onnx": (b"\x08\x0a\x12\x07pytorch\x1a\x052.1.0" + b"\x3a\x06\x0a\x04\x12\x02ab", "torch.export.save"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + b"\0" * 40, "PyTorch"),
    "gzip": (gzip.compress(b"model"), "gunzip"),
    "html": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "raw file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "PyTorch"),
    "text": ("weights are elsewhere: ü\n".encode(), "torch.save"),
    "unknown": (b"\x93\x07\xff\x00" * 30, "torch.save"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN_FILES)
def test_other_files_are_recognised_and_refused_with_the_way_out(tmp_path, kind):
    data, way_out = FOREIGN_FILES[kind]
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    assert identify(path) == kind
    assert way_out in refusal(path).way_out


def test_a_real_onnx_file_is_recognised(tmp_path):
    import onnx

    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.pt")
    assert identify(tmp_path / "model.pt") == "onnx"


def test_data_and_plain_archives_are_not_models(tmp_path):
    np.savez(tmp_path / "d.pt", x=np.zeros(3))
    (tmp_path / "d.pt.npz").rename(tmp_path / "d.pt")
    assert "--data" in refusal(tmp_path / "d.pt").way_out
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "Unpack" in refusal(tmp_path / "z.pt").way_out


def test_missing_empty_and_folders_are_refused(tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "empty" in refusal(tmp_path / "empty.pt").what
    assert "no such file" in refusal(tmp_path / "none.pt").what
    assert "directory" in refusal(tmp_path).what


def test_a_file_of_something_else_than_weights_is_refused(tmp_path):
    torch.save([1, 2, 3], tmp_path / "list.pt")
    assert "neither" in refusal(tmp_path / "list.pt").what


@given(st.binary(max_size=200), st.integers(0, 10**9))
def test_sniffing_never_fails(head, size):
    assert sniff(head, size, None) in KINDS


@given(st.lists(st.text(max_size=30), max_size=8))
def test_sniffing_an_archive_never_fails(members):
    assert sniff(b"PK\x03\x04", 10, members) in KINDS
