# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from strangers: one clear line and status 2, and no code is executed."""

from __future__ import annotations

import ast
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from fault_helpers import sign_checkpoint, sign_shards
from hostile_helpers import DEEP, edit, localize, originals, pickled, put, refusal
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a checkpoint and shards, in which the command works."""
    monkeypatch.chdir(tmp_path)
    return put(originals(), tmp_path)


def test_the_untouched_files_are_accepted(place, capsys):
    assert localize() == 0, capsys.readouterr().err
    sign_checkpoint(place / "ckpt")
    sign_shards(place / "s")
    assert localize() == 0, capsys.readouterr().err


CHECKPOINT_FILES = [
    "weights.safetensors", "state.safetensors", "state.json", "config.json", "manifest.json",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["torch", "numpy", "pickle"])
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_pickles_in_a_checkpoint_are_not_opened(place, capsys, name, kind):
    (place / "ckpt" / name).write_bytes(pickled(kind))
    if name != "manifest.json":
        sign_checkpoint(place / "ckpt")
    refusal(capsys, localize, names=name)


def test_a_checkpoint_of_the_old_format_is_refused(place, capsys):
    (place / "ckpt" / "state.json").unlink()
    (place / "ckpt" / "state.safetensors").unlink()
    (place / "ckpt" / "state.pt").write_bytes(pickled("torch"))
    (place / "ckpt" / "manifest.json").write_text('{"format": 1, "sha256": {}}')
    assert "checkpoint format 1, this version reads 2" in refusal(capsys, localize)


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape, end, dtype="F32", start=0):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("name", ["weights.safetensors", "state.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 99_000_000) + b"{}",
        safetensors({"a": tensor([2**40], 2**42)}),
        safetensors({"a": tensor([2**62, 4], 0)}),
        safetensors({"a": tensor([2**63], 8)}, b"x" * 8),
        safetensors({"a": tensor([-1], 4)}, b"x" * 4),
        safetensors({"a": tensor([0, 2**62, 2**62], 0)}),
        safetensors({"a": tensor([1], 4, "PICKLE")}, b"x" * 4),
        safetensors({"a": tensor([1], 4), "b": tensor([1], 4)}, b"x" * 4),
        safetensors({"a": tensor([1], 4)}, b"x" * 5),
        safetensors(DEEP),
        safetensors(b'{"a": {"dtype": "F32"}, "a": 1}'),
        safetensors(b"\xff\xfe"),
    ],
)
def test_hostile_tensor_files(place, capsys, name, content):
    (place / "ckpt" / name).write_bytes(content)
    sign_checkpoint(place / "ckpt")
    refusal(capsys, localize, names=name if name.startswith("weights") or content else "")


def test_weights_of_another_kind(place, capsys):
    path = place / "ckpt" / "weights.safetensors"
    whole = load_file(path)
    first = next(iter(whole))
    for change, said in (
        ({first: whole[first].to(torch.int64)}, "torch.int64"),
        ({first: whole[first][None]}, "size mismatch"),
        ({"R_true": torch.zeros(3)}, "Unexpected key"),
    ):
        save_file({**whole, **change}, path)
        sign_checkpoint(place / "ckpt")
        assert said in refusal(capsys, localize, names="weights.safetensors")
    # Larger than memory, without a byte on the disk.
    os.truncate(path, 2**42)
    assert "expected at most" in refusal(capsys, localize)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"system__n_h": 10**9}, "n_h is 1000000000, expected at most"),
        ({"system__n_h": 10**30}, "expected at most"),
        ({"system__n_h": 60_000, "system__n_v": 60_000}, "takes|cannot be made"),
        ({"model__width": 65_536, "model__layers": 256}, "takes|cannot be made"),
        ({"model__layers": 10**8}, "expected at most"),
        ({"model__width": "128"}, "got '128', expected int"),
        ({"model__width": -4}, "at least 1"),
        ({"model__dropout": True}, "got True, expected float"),
        ({"system__n_h": True}, "got True, expected int"),
        ({"data__shards": "x" * 10**5}, None),
        ({"system__extra": 1}, "unknown key 'extra'"),
        ({"\x1b[31m" + "k" * 10**5: 1}, "unknown key"),
    ],
)
def test_hostile_configurations_in_a_checkpoint(place, capsys, changes, said):
    edit(place / "ckpt" / "config.json", **changes)
    sign_checkpoint(place / "ckpt")
    if said is None:
        assert localize() == 0
        return
    error = refusal(capsys, localize, names="config.json")
    assert any(part in error for part in said.split("|"))


BAD_JSON = [
    (b"", "not valid JSON"),
    (b"[]", ""),
    (b"null", ""),
    (DEEP, "not valid JSON"),
    (b"[" * 900_000, "not valid JSON"),
    (b'{"format": NaN}', "NaN is no JSON number"),
    (b'{"format": -Infinity}', "-Infinity is no JSON number"),
    (b'{"format": 1e999}', "beyond the largest float"),
    (b'{"format": 2, "format": 2}', "key 'format' is there twice"),
    (b'{"format": ' + b"9" * 5000 + b"}", ""),
    (b"\xff\xfe{\x00}\x00", "not valid JSON"),
    (b'{"\xe9": 1}', "not valid JSON"),
    (b"\xef\xbb\xbf{}", "not valid JSON"),
    (b" " * (65 << 20), "expected at most"),
]


@pytest.mark.parametrize(("content", "said"), BAD_JSON)
@pytest.mark.parametrize("path", ["ckpt/manifest.json", "ckpt/config.json", "s/manifest.json"])
def test_hostile_json(place, capsys, path, content, said):
    (place / path).write_bytes(content)
    if path == "ckpt/config.json":
        sign_checkpoint(place / "ckpt")
    assert said in refusal(capsys, localize, names=path)


@pytest.mark.parametrize("version", [0, 3, -1, 10**40, "2", True, 2.0, None, [2], {"a": 2}])
def test_wrong_versions(place, capsys, version):
    edit(place / "ckpt" / "manifest.json", format=version)
    refusal(capsys, localize, names="manifest.json")
    edit(place / "ckpt" / "manifest.json", format=2)
    edit(place / "s" / "manifest.json", schema=version)
    refusal(capsys, localize, names="schema version")


@pytest.mark.parametrize("path", ["ckpt/config.json", "ckpt/weights.safetensors", "s/manifest.json",
                                  "s/00000.y.npy", "s/00001.h.npy"])  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_files_that_are_no_files(place, capsys, path, kind):
    """None is waited for, and none is read without end."""
    target = place / path
    target.unlink()
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "device":
        target.symlink_to("/dev/zero")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(target.name)
    refusal(capsys, localize, names=path.split("/")[1])


def test_nothing_in_the_sources_unpickles():
    """No module that could, and no call of a reader that would."""
    modules = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle", "yaml"}
    calls = {"torch.load", "np.load", "numpy.load", "eval", "exec", "pickle.loads", "pickle.load"}
    files = [p for folder in ("python", "riskernels") for p in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert not {a.name.split(".")[0] for a in node.names} & modules, where
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in modules, where
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in calls, where
                for word in node.keywords:
                    assert word.arg != "allow_pickle" or ast.unparse(word.value) == "False", where
