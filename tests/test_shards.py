# SPDX-License-Identifier: Apache-2.0
"""Shards: what is written is read back, and every way to damage a folder is named."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ris_pytorch_pipeline.configs import SimulationConfig, SystemConfig
from ris_pytorch_pipeline.shards import ShardDataset, ShardError, write_shards
from ris_pytorch_pipeline.simulate import Scenes, Simulator

SMALL = SystemConfig(n_h=4, n_v=3, antennas=3, snapshots=5, max_sources=3)
SIMULATION = SimulationConfig(min_separation=0.3)
FIELDS = {spec.name for spec in dataclasses.fields(Scenes)}


def equal(left: Scenes, right: Scenes) -> bool:
    return all(torch.equal(getattr(left, name), value) for name, value in right.tensors())


@pytest.fixture
def folder(tmp_path):
    """A folder of 25 small scenes in shards of 10."""
    write_shards(tmp_path / "data", SMALL, SIMULATION, samples=25, shard_size=10, seed=4)
    return tmp_path / "data"


def edit_manifest(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_default_size_round_trip():
    system, simulation = SystemConfig(), SimulationConfig()
    calls: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "train"
        manifest = write_shards(
            folder, system, simulation, samples=4096, seed=0,
            progress=lambda done, total: calls.append((done, total)),
        )  # fmt: skip
        assert calls[-1] == (4096, 4096) and [c[0] for c in calls] == sorted(c[0] for c in calls)
        files = list(folder.iterdir())
        assert sum(file.stat().st_size for file in files) < 45_000 * 4096
        assert {file.name.split(".")[1] for file in files if file.suffix == ".npy"} == FIELDS
        assert [shard["samples"] for shard in manifest["shards"]] == [1024] * 4
        data = ShardDataset(folder)
        assert (len(data), data.system, data.simulation) == (4096, system, simulation)
        data.verify()
        source = Simulator(system, simulation, seed=0, split="train")
        for start in range(0, 4096, 256):
            assert equal(data.batch(slice(start, start + 256)), source.batch(256))
        order = torch.randperm(4096, generator=torch.Generator().manual_seed(1))[:500]
        shuffled = data.batch(order)
        assert equal(shuffled[3], data.batch([int(order[3])]))
        assert shuffled.y.is_contiguous() and shuffled.y.dtype == torch.complex64


def test_no_covariance_is_stored(folder):
    elements = SMALL.elements
    for file in folder.glob("*.npy"):
        array = np.load(file, allow_pickle=False)
        assert array.shape[-2:] != (elements, elements)
        assert not {"true", "samp", "cov"} & set(file.name.lower().replace(".", "_").split("_"))
    text = (folder / "manifest.json").read_text()
    assert "R_true" not in text and "R_samp" not in text


@settings(max_examples=15, deadline=None)
@given(samples=st.integers(1, 30), shard_size=st.integers(1, 12), seed=st.integers(0, 2**40))
def test_any_sizes_round_trip(samples, shard_size, seed):
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "nested" / "data"
        write_shards(
            folder, SMALL, SIMULATION, samples=samples, shard_size=shard_size, seed=seed, split=3
        )
        data = ShardDataset(folder)
        data.verify()
        everything = data.batch(range(samples))
        source = Simulator(SMALL, SIMULATION, seed=seed, split=3)
        sizes = [min(shard_size, samples - s) for s in range(0, samples, shard_size)]
        assert equal(everything, Scenes.concat([source.batch(size) for size in sizes]))
        generator = np.random.default_rng(seed)
        index = generator.integers(0, samples, 17)
        assert equal(data.batch(index), everything[index])
        assert len(data.batch([])) == 0


def test_reading_does_not_change_files_or_hold_descriptors(folder):
    before = {file: file.read_bytes() for file in folder.iterdir()}
    descriptors = Path("/proc/self/fd")
    count = len(list(descriptors.iterdir())) if descriptors.exists() else 0
    datasets = [ShardDataset(folder) for _ in range(20)]
    for data in datasets:
        data.batch(range(25)).y.zero_()
    if count:
        assert len(list(descriptors.iterdir())) <= count + 2
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    datasets[0].verify()


def test_indices_are_checked(folder):
    data = ShardDataset(folder)
    for bad in ([25], [-1], torch.tensor([3, 99])):
        with pytest.raises(IndexError, match=r"indices must lie in \[0, 25\)"):
            data.batch(bad)
    with pytest.raises(IndexError, match="indices are bool, expected integers"):
        data.batch(np.ones(25, bool))
    with pytest.raises(IndexError, match="indices are float64, expected integers"):
        data.batch(np.array([0.5]))


@pytest.mark.parametrize("name", ["00000.y.npy", "00001.codes.npy", "00002.snr_db.npy"])
def test_missing_truncated_and_altered_files_are_named(folder, name):
    path = folder / name
    original = path.read_bytes()
    path.unlink()
    with pytest.raises(ShardError, match=f"{name}: missing"):
        ShardDataset(folder)
    for size in (0, 40, len(original) - 1):
        path.write_bytes(original[:size])
        with pytest.raises(ShardError, match=rf"{name}: has {size} bytes.*truncated"):
            ShardDataset(folder)
    path.write_bytes(original + b"x")
    with pytest.raises(ShardError, match=f"{name}: has {len(original) + 1} bytes"):
        ShardDataset(folder)
    altered = bytearray(original)
    altered[-3] ^= 1
    path.write_bytes(altered)
    with pytest.raises(ShardError, match=rf"{name}: SHA-256 differs.*altered"):
        ShardDataset(folder).verify()
    data = ShardDataset(folder)
    path.unlink()
    with pytest.raises(ShardError, match=f"{name}: cannot be read"):
        data.verify()
    path.write_bytes(original)
    ShardDataset(folder).verify()


def test_altered_headers_are_named_at_open(folder):
    path = folder / "00000.h.npy"
    original = path.read_bytes()
    for old, new in ((b"(10, 3, 12)", b"(10, 12, 3)"), (b"<c8", b"<f8"), (b"False", b"True ")):
        path.write_bytes(original.replace(old, new))
        with pytest.raises(ShardError, match=r"00000.h.npy: its \.npy header says"):
            ShardDataset(folder)
    path.write_bytes(b"\x00" * len(original))
    with pytest.raises(ShardError, match=r"00000.h.npy: its \.npy header cannot be read"):
        ShardDataset(folder)


def test_pickled_arrays_are_refused(folder):
    path = folder / "00000.phi.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)

    def fit(manifest):
        manifest["shards"][0]["files"]["phi"]["bytes"] = path.stat().st_size

    edit_manifest(folder, fit)
    with pytest.raises(ShardError, match=r"00000\.phi\.npy: its \.npy header says object"):
        ShardDataset(folder)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda m: m.update(schema=2), "schema version 2, this reader knows 1"),
        (lambda m: m.update(extra=1), "unknown key 'extra'"),
        (lambda m: m.pop("shards"), "missing key 'shards'"),
        (lambda m: m["system"].update(colour=1), "system: unknown key 'colour'"),
        (lambda m: m["system"].update(n_h=5), "'fields' do not match the system"),
        (lambda m: m["simulation"].update(codes="x"), "simulation.codes: got 'x'"),
        (lambda m: m.update(shards=[]), "'shards' is not a list of at least one"),
        (lambda m: m.update(samples=24), "'samples' is 24, its shards hold 25"),
        (lambda m: m["shards"][0].update(samples=True), r"shards\[0\].samples is True"),
        (lambda m: m["shards"][1].update(note=1), r"shards\[1\]: unknown key 'note'"),
        (lambda m: m["shards"][1]["files"].pop("h"), r"shards\[1\].files: missing key 'h'"),
        (lambda m: m["shards"][1]["files"].update(R_samp={}), "unknown key 'R_samp'"),
        (lambda m: m["shards"][1]["files"]["h"].update(x=1), r"files.h: unknown key 'x'"),
        (lambda m: m["shards"][1]["files"]["h"].update(path="00000.h.npy"), "used twice"),
        (lambda m: m["shards"][1]["files"]["h"].update(path=3), "path 3 is not the name"),
    ],
)
def test_bad_manifests_are_named(folder, change, message):
    edit_manifest(folder, change)
    with pytest.raises(ShardError, match=message) as caught:
        ShardDataset(folder)
    assert "manifest.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["../secret.npy", "/etc/passwd", "a/../../x.npy", "..", ".", "", "..\\x.npy", "a\0b"]
)
def test_manifest_paths_cannot_leave_the_folder(folder, path):
    (folder.parent / "secret.npy").write_bytes((folder / "00000.h.npy").read_bytes())
    edit_manifest(folder, lambda m: m["shards"][0]["files"]["h"].update(path=path))
    with pytest.raises(ShardError, match="is not the name of a file in the folder itself"):
        ShardDataset(folder)


def test_links_out_of_the_folder_are_refused(folder):
    target = folder.parent / "secret.npy"
    (folder / "00000.h.npy").rename(target)
    (folder / "00000.h.npy").symlink_to(target)
    with pytest.raises(ShardError, match="is not the name of a file in the folder itself"):
        ShardDataset(folder)


def test_altered_manifest_is_found_by_verify(folder):
    edit_manifest(folder, lambda m: m["system"].update(r_max=11.0))
    with pytest.raises(ShardError, match=r"manifest\.json: SHA-256 differs.*altered"):
        ShardDataset(folder).verify()


def test_folder_without_manifest_or_with_broken_json(folder):
    with pytest.raises(ShardError, match=r"manifest\.json: no such file"):
        ShardDataset(folder.parent)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="not valid JSON"):
        ShardDataset(folder)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(ShardError, match="is a list, expected a mapping"):
        ShardDataset(folder)


def test_existing_folders_are_kept(folder, tmp_path):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ShardError, match="exists already"):
        write_shards(folder, SMALL, SIMULATION, samples=3, seed=5)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ShardError, match=r"has no manifest\.json; refusing to replace"):
        write_shards(foreign, SMALL, SIMULATION, samples=3, seed=5, overwrite=True)
    assert (foreign / "thesis.txt").read_text() == "mine"
    write_shards(folder, SMALL, SIMULATION, samples=3, seed=5, overwrite=True)
    assert len(ShardDataset(folder)) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "foreign"]


def test_an_interrupted_writer_leaves_nothing(tmp_path, folder):
    def interrupt(done, total):
        raise KeyboardInterrupt

    for target, overwrite in ((tmp_path / "new", False), (folder, True)):
        with pytest.raises(KeyboardInterrupt):
            write_shards(
                target, SMALL, SIMULATION, samples=9, seed=1, overwrite=overwrite,
                progress=interrupt,
            )  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    ShardDataset(folder).verify()


def test_bad_counts_are_refused(tmp_path):
    for bad in ({"samples": 0}, {"samples": 5, "shard_size": 0}):
        with pytest.raises(ShardError, match="is 0, expected at least 1"):
            write_shards(tmp_path / "x", SMALL, SIMULATION, seed=0, **bad)
    assert not list(tmp_path.iterdir())
