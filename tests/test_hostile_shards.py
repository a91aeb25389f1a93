# SPDX-License-Identifier: Apache-2.0
"""Shards and .npz archives from strangers: one clear line and status 2, and nothing is executed."""

from __future__ import annotations

import io
import os
import struct
import zipfile

import numpy as np
import pytest
from fault_helpers import sign_shards
from hostile_helpers import edit, localize, originals, pickled, put, refusal

from ris_pytorch_pipeline import cli

FILE = "shards__0__files__h__path"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a checkpoint and shards, in which the command works."""
    monkeypatch.chdir(tmp_path)
    return put(originals(), tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "..", ".", "", "../s/00000.h.npy", "/etc/passwd", "/dev/zero", "sub/00000.h.npy",
        "00000.h.npy\0", "\0", "a" * 5000, "../" * 2000, "\u202e00000.h.npy", "\ud800", "é\n",
        "\x1b[2J", "..\\x", "C:x", "~", "$HOME", None, 3, ["00000.h.npy"], {"a": "b"}, True,
    ],
)  # fmt: skip
def test_a_manifest_cannot_leave_its_folder(place, capsys, path):
    (place / "00000.h.npy").write_bytes((place / "s" / "00000.h.npy").read_bytes())
    edit(place / "s" / "manifest.json", **{FILE: path})
    refusal(capsys, localize)


@pytest.mark.parametrize("target", ["../outside.npy", "00001.h.npy", "/dev/zero", "/proc/self/mem"])
def test_links_are_refused(place, capsys, target):
    path = place / "s" / "00000.h.npy"
    path.rename(place / "outside.npy")
    path.symlink_to(target)
    refusal(capsys, localize, names="not the name of a file in the folder itself")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("samples", [0, -1, 10**30, 2**63, 9.0, "9", True, None, [9]]),
        ("shards__0__samples", [0, -5, 10**30, 2**63 - 1, 5.0, "5", True, None]),
        ("shards__0__files__h__bytes", [0, -1, 10**30, "1", None, [], {"a": 1}]),
        ("shards__0__files__h__sha256", [0, "", "0" * 64, None, ["x"], "A" * 10**5]),
        ("shards__0__files", [[], None, {}, 3]),
        ("shards", [[], {}, [[]], [None], "x", 10**20]),
        ("fields", [None, {}, [], "x"]),
        ("system", [None, [], {"n_h": 10**9}, {"n_h": "4"}, {"wavelength": 0}]),
        ("simulation", [[], 3, {"min_sources": 10**30}, {"codes": ["dft"]}]),
        ("k" * 10**5, [1]),
    ],
)
def test_hostile_manifests(place, capsys, name, values):
    path = place / "s" / "manifest.json"
    whole = path.read_bytes()
    for value in values:
        path.write_bytes(whole)
        edit(path, **{name: value})
        refusal(capsys, localize, names="s/")


def npy(header, version=(1, 0), length=None, data=b"x" * 2000):
    text = header if isinstance(header, bytes) else header.encode()
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + text + data


def plain(shape, descr="'<c8'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


HEADERS = [
    b"",
    b"\x93NUMPY",
    pickled("numpy"),
    pickled("pickle"),
    npy(plain("(1000000000000000000,)")),
    npy(plain("(9223372036854775808, 9223372036854775808)")),
    npy(plain("(-1, 4, 12)")),
    npy(plain("(True, 4, 12)")),
    npy(plain("(5, 4, 12)", "'|O'")),
    npy(plain("(5, 4, 12)", "'<c8'", "True")),
    npy(plain("(5, 4, 12)", "'<f4'")),
    npy(plain("(5, 4, 12)", "'<c99999999999'")),
    npy(plain("(5, 4, 12)", "[('a', '<f4'), ('b', '|O')]")),
    npy(plain("(5, 4, 12)", "{'names': 1}")),
    npy("(" * 9000),
    npy("[" * 5000 + "]" * 5000),
    npy("-" * 9000 + "1"),
    npy("{1: 2, 'a': 3, None: 4}"),
    npy("__import__('os').mkdir('executed')"),
    npy("{'descr': __import__('os').mkdir('executed'), 'fortran_order': False, 'shape': ()}"),
    npy(plain("(5, 4, 12)"), length=65535),
    npy(plain("(5, 4, 12)"), version=(2, 0), length=2**32 - 1),
    npy(plain("(5, 4, 12)"), version=(9, 0)),
    npy(b"\xff" * 100),
    npy(plain("9" * 6000)),
]


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_hostile_headers(place, capsys, number):
    (place / "s" / "00000.h.npy").write_bytes(HEADERS[number])
    sign_shards(place / "s")
    refusal(capsys, localize, names="00000.h.npy")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("num_sources", [0, -1, 3, 2**62, -(2**63)]),
        ("r", [0.0, -1.0, np.nan, np.inf]),
        ("power", [0.0, -1.0, np.nan]),
        ("phi", [np.nan, np.inf]),
        ("snr_db", [np.nan, -np.inf]),
        ("h", [np.nan, np.inf, complex(0, np.nan)]),
        ("y", [np.nan]),
        ("codes", [-np.inf]),
    ],
)
def test_values_that_no_scene_has(place, capsys, field, values):
    path = place / "s" / f"00000.{field}.npy"
    whole = path.read_bytes()
    for value in values:
        path.write_bytes(whole)
        array = np.load(path, mmap_mode="r+", allow_pickle=False)
        array.reshape(5, -1)[0, 0] = value
        array.flush()
        sign_shards(place / "s")
        said = refusal(capsys, localize, names=f"00000.{field}.npy: scene 0 of the folder")
        assert f"value of {field}" in said


def archive(path, changes, compression=zipfile.ZIP_STORED):
    """An .npz of 4 scenes for M = 3, L = 5, N = 12, with members as bytes or arrays."""
    draw = np.random.default_rng(0).standard_normal
    fields = {
        "y": draw((4, 5, 3, 2), np.float32),
        "H_full": draw((4, 3, 12, 2), np.float32),
        "codes": draw((4, 5, 12, 2), np.float32),
        "ptr": np.full((4, 15), 0.5, np.float32),
        "K": np.ones(4, np.int64),
        "snr": np.ones(4, np.float32),
        **changes,
    }
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, value in fields.items():
            stream = io.BytesIO()
            if isinstance(value, bytes):
                stream.write(value)
            else:
                np.save(stream, value, allow_pickle=True)
            file.writestr(f"{name}.npy", stream.getvalue())


def import_npz(path="a.npz"):
    sizes = {"n_h": 4, "n_v": 3, "antennas": 3, "snapshots": 5}
    options = [f"--system.{name}={value}" for name, value in sizes.items()]
    return cli.main(["import-shards", str(path), "--out", "new", *options])


def test_the_untouched_archive_is_accepted(place):
    archive("a.npz", {})
    assert import_npz() == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((field, content) for field in ("K", "H_full", "H") for content in HEADERS[2:]),
        ("K", np.array([1, 1, 1, -1])),
        ("K", np.array([1, 1, 1, 2**62])),
        ("K", np.array([1, 1, 1, np.nan])),
        ("K", np.array(["1"] * 4)),
        ("K", np.ones((4, 0), np.int64)),
        ("ptr", np.full((4, 15), 1e300)),
        ("y", np.ones((4, 5, 3, 2), np.complex64)),
        ("y", np.ones((4, 5, 3, 2), "M8[s]")),
    ],
)
def test_hostile_members(place, capsys, name, value):
    archive("a.npz", {name: value})
    refusal(capsys, import_npz, names=f"a.npz: field '{name}'")
    assert not (place / "new").exists()


def test_archives_that_expand_without_end(place, capsys):
    scenes = 1_000_000
    zeros = io.BytesIO()
    np.save(zeros, np.zeros(scenes, np.int8))
    members = {"K": zeros.getvalue()}
    shapes = {"y": (5, 3, 2), "H_full": (3, 12, 2), "codes": (5, 12, 2), "ptr": (15,), "snr": ()}
    for name, shape in shapes.items():
        members[name] = npy(plain(f"({scenes}, {', '.join(map(str, shape))})", "'<f4'"), data=b"")
    archive("a.npz", members, zipfile.ZIP_DEFLATED)
    refusal(capsys, import_npz, names="a.npz: field 'y' has")
    bomb = np.zeros((200_000, 5, 3, 2), np.float32)
    many = {"K": np.ones(200_000, np.int8), "y": bomb}
    archive("a.npz", many, zipfile.ZIP_LZMA)
    assert "times the file" in refusal(capsys, import_npz, names="a.npz: field 'y' takes")


def test_archives_that_lie(place, capsys):
    def twice(path):
        archive(path, {})
        with pytest.warns(UserWarning), zipfile.ZipFile(path, "a") as file:
            file.writestr("y.npy", b"x")

    def patched(offset, value, size="<I"):
        def change(path):
            archive(path, {})
            data = bytearray(path.read_bytes())
            at = data.index(b"PK\x01\x02") + offset
            struct.pack_into(size, data, at, value)
            path.write_bytes(data)

        return change

    lies = [
        twice,
        patched(24, 2**32 - 2),  # uncompressed size
        patched(16, 1),  # checksum
        patched(8, 1, "<H"),  # encrypted
        patched(10, 77, "<H"),  # unknown compression
        patched(42, 2**32 - 2),  # where the member starts
        lambda path: path.write_bytes(b"PK\x05\x06" + b"\0" * 16 + b"\xff\xff"),
        lambda path: path.write_bytes(pickled("pickle")),
        lambda path: path.write_bytes(npy(plain("(1000000000000000000,)", "'<f8'"))),
        lambda path: path.write_bytes(b""),
        lambda path: os.mkfifo(path),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/zero"),
    ]
    for number, lie in enumerate(lies):
        path = place / f"{number}.npz"
        lie(path)
        refusal(capsys, lambda path=path: import_npz(path), names=f"{number}.npz")
        assert not (place / "new").exists()


@pytest.mark.parametrize("content", [b'{"train": {"seed": 1, "seed": 2}}', b'{"a": NaN}', b"\xff"])
def test_hostile_configuration_files(place, capsys, content):
    (place / "c.json").write_bytes(content)
    for option in ("--config", "--from_hpo"):
        refusal(capsys, lambda option=option: cli.main(["train", option, "c.json"]), names="c.json")
    (place / "c.json").unlink()
    os.mkfifo(place / "c.json")
    refusal(capsys, lambda: cli.main(["train", "--config", "c.json"]), names="c.json")
