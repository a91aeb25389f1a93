# SPDX-License-Identifier: Apache-2.0
"""Import of existing ``.npz`` shards: values arrive unchanged and bad shards are named."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch

from ris_pytorch_pipeline.configs import SimulationConfig, SystemConfig
from ris_pytorch_pipeline.shards import ShardDataset, ShardError, import_npz
from ris_pytorch_pipeline.simulate import Simulator, true_covariance

SYSTEM = SystemConfig(n_h=4, n_v=3, antennas=3, snapshots=5)
SCENES = Simulator(SYSTEM, SimulationConfig(), seed=11, split="npz").batch(12)


def pairs(x):
    return torch.view_as_real(x).numpy()


def layout(scenes=SCENES):
    """The fields of an existing shard that holds ``scenes``."""
    folded = torch.einsum("bmn,bln->blm", scenes.h, scenes.codes)
    covariance = pairs(true_covariance(SYSTEM, scenes))
    return {
        "y": pairs(scenes.y),
        "H": pairs(folded),
        "H_full": pairs(scenes.h),
        "codes": pairs(scenes.codes),
        "ptr": torch.cat((scenes.phi, scenes.theta, scenes.r), -1).numpy(),
        "K": scenes.num_sources.numpy(),
        "snr": scenes.snr_db.numpy(),
        "R": covariance,
        "R_samp": covariance,
    }


@pytest.fixture
def save(tmp_path):
    def write(name="old.npz", *, without=(), **changes):
        fields = {**layout(), **changes}
        path = tmp_path / name
        np.savez(path, **{k: v for k, v in fields.items() if k not in without})
        return path

    return write


def test_import_keeps_every_value(save, tmp_path):
    paths = [save("a.npz"), save("b.npz", K=np.full(12, 5, np.float32))]
    calls = []
    manifest = import_npz(
        paths, tmp_path / "new", system=SYSTEM, progress=lambda *args: calls.append(args)
    )
    assert calls == [(1, 2), (2, 2)] and manifest["samples"] == 24
    data = ShardDataset(tmp_path / "new")
    data.verify()
    assert data.system == SYSTEM and data.simulation is None
    got = data.batch(range(12))
    for name in ("y", "h", "codes", "phi", "theta", "r", "num_sources", "snr_db"):
        assert torch.equal(getattr(got, name), getattr(SCENES, name)), name
    expected = SCENES.mask / SCENES.num_sources[:, None]
    torch.testing.assert_close(got.power, expected)
    assert bool((data.batch(range(12, 24)).num_sources == 5).all())


def test_covariances_are_neither_needed_nor_kept(save, tmp_path):
    import_npz([save()], tmp_path / "with", system=SYSTEM)
    import_npz([save("x.npz", without=("R", "R_samp", "H"))], tmp_path / "without", system=SYSTEM)
    poison = np.full_like(layout()["R"], np.nan)
    import_npz([save("y.npz", R=poison, R_samp=poison)], tmp_path / "poison", system=SYSTEM)
    reference = sorted((tmp_path / "with").glob("*.npy"))
    assert reference
    for other in ("without", "poison"):
        files = sorted((tmp_path / other).glob("*.npy"))
        assert [f.name for f in files] == [f.name for f in reference]
        assert [f.read_bytes() for f in files] == [f.read_bytes() for f in reference]
    kept = {name.split(".")[1] for name in (f.name for f in reference)}
    assert kept == {name for name, _ in SCENES.tensors()}


@pytest.mark.parametrize("name", ["H_full", "y", "codes", "ptr", "K", "snr"])
def test_missing_fields_are_named(save, tmp_path, name):
    with pytest.raises(ShardError, match=rf"shard .*old\.npz: field '{name}' is missing") as caught:
        import_npz([save(without=(name,))], tmp_path / "new", system=SYSTEM)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["old.npz"]


def test_a_later_bad_shard_leaves_nothing(save, tmp_path):
    paths = [save("good.npz"), save("bad.npz", without=("H_full",))]
    with pytest.raises(
        ShardError, match=r"bad\.npz: field 'H_full' is missing \(the channel cannot"
    ):
        import_npz(paths, tmp_path / "new", system=SYSTEM)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.npz", "good.npz"]


def with_value(name, index, value):
    array = layout()[name].copy()
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"y": layout()["y"][:, :4]}, r"'y' has shape \(12, 4, 3, 2\), expected \(12, 5, 3, 2\)"),
        ({"H_full": layout()["H_full"][..., :9, :]}, r"'H_full' has shape .*elements=12"),
        ({"H_full": layout()["H"]}, r"'H_full' has shape \(12, 5, 3, 2\)"),
        ({"H": layout()["H"][:, :2]}, r"'H' has shape \(12, 2, 3, 2\)"),
        ({"codes": layout()["codes"][:11]}, r"'codes' has shape \(11, 5, 12, 2\)"),
        ({"ptr": layout()["ptr"][:, :12]}, r"'ptr' has shape \(12, 12\), expected \(12, 15\)"),
        ({"K": np.empty(0)}, "'K' is empty"),
        ({"y": layout()["y"].astype(np.complex64)}, "'y' is complex64, expected float32"),
        (with_value("K", 3, 0), r"'K' holds values that are no integers in \[1, 5\]"),
        (with_value("K", 3, 6), r"'K' holds values that are no integers in \[1, 5\]"),
        ({"K": np.full(12, 1.5)}, "'K' holds values that are no integers"),
        (with_value("H_full", (0, 0, 0, 1), np.nan), "'H_full' holds non-finite values"),
        (with_value("snr", 0, np.inf), "'snr' holds non-finite values"),
        (with_value("ptr", (0, 10), -2.0), r"'ptr' holds angles beyond .* or ranges <= 0"),
        (with_value("ptr", (0, 0), 45.0), "'ptr' holds angles beyond"),
        ({"y": np.array([{"a": 1}], dtype=object)}, "'y' cannot be read .*allow_pickle"),
    ],
)
def test_bad_fields_are_named(save, tmp_path, changes, message):
    with pytest.raises(ShardError, match=message) as caught:
        import_npz([save(**changes)], tmp_path / "new", system=SYSTEM)
    assert "old.npz" in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_unreadable_files_are_named(save, tmp_path):
    path = save()
    truncated = tmp_path / "truncated.npz"
    truncated.write_bytes(path.read_bytes()[:-200])
    text = tmp_path / "text.npz"
    text.write_text(json.dumps({}))
    single = tmp_path / "single.npz"
    with single.open("wb") as file:
        np.save(file, np.zeros(3))
    for bad in (truncated, text, single, tmp_path / "absent.npz"):
        with pytest.raises(ShardError, match=bad.name):
            import_npz([bad], tmp_path / "new", system=SYSTEM)
    with pytest.raises(ShardError, match=r"no \.npz files"):
        import_npz([], tmp_path / "new", system=SYSTEM)


def test_damaged_member_is_named(save, tmp_path):
    path = save()
    data = bytearray(path.read_bytes())
    at = bytes(data).index(layout()["codes"].tobytes()[:64])
    data[at] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ShardError, match="field 'codes' cannot be read"):
        import_npz([path], tmp_path / "new", system=SYSTEM)


def test_sources_outside_the_field_of_view_are_reported(save, tmp_path):
    changes = with_value("ptr", (0, 0), 1.4)
    with pytest.warns(UserWarning, match=r"old\.npz: 1 of \d+ sources lie outside"):
        import_npz([save(**changes)], tmp_path / "new", system=SYSTEM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_npz([save("fine.npz")], tmp_path / "fine", system=SYSTEM)


def test_system_must_match_the_arrays(save, tmp_path):
    with pytest.raises(ShardError, match=r"old\.npz: field 'y' has shape"):
        import_npz([save()], tmp_path / "new", system=SystemConfig())
