# SPDX-License-Identifier: Apache-2.0
"""Records of an evaluation: damaged ones, those of other code, and bounds made in parts."""

from __future__ import annotations

import importlib
import json

import pytest
from evaluation_helpers import SYSTEM, Fixed, small_suite

from ris_pytorch_pipeline import evaluation_tasks
from ris_pytorch_pipeline.bounds import deterministic_bound
from ris_pytorch_pipeline.configs import ConfigError
from ris_pytorch_pipeline.evaluate import evaluate
from ris_pytorch_pipeline.evaluation_tasks import BOUNDS_BLOCK, BoundsTask
from ris_pytorch_pipeline.source_digest import source_digest

EMPTY = '[{"deterministic": [], "stochastic": [], "coordinates": [], "xyz": [[1]], "R_samp": {}}]'


@pytest.mark.parametrize(
    "records", ["5", "[{}]", "[3]", "null", '[{"xyz": 5, "seconds": 1}]', EMPTY]
)
@pytest.mark.parametrize("task", ["bounds", "covariances", "fixed-known"])
def test_damaged_records_are_named(tmp_path, task: str, records: str) -> None:
    suite = small_suite(1, (1,), (20.0,))
    evaluate([Fixed()], suite, tmp_path, sources="known")
    path = tmp_path / "cells" / f"{task}_K1_SNR20.json"
    code = json.loads(path.read_text())["code"]
    path.write_text(f'{{"code": {json.dumps(code)}, "records": {records}}}')
    with pytest.raises(ConfigError, match=f"{path.name}: damaged; delete it"):
        evaluate([Fixed()], suite, tmp_path, sources="known")
    path.unlink()
    assert evaluate([Fixed()], suite, tmp_path, sources="known")["complete"]


def test_records_of_an_edited_estimator_are_refused(tmp_path, monkeypatch) -> None:
    source = "from evaluation_helpers import Fixed\n\nclass Edited(Fixed):\n    pass\n"
    (tmp_path / "edited_estimator.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("edited_estimator")
    suite, out = small_suite(1, (1,), (20.0,)), tmp_path / "out"
    evaluate([module.Edited(name="edited")], suite, out)
    evaluate([module.Edited(name="edited")], suite, out)
    before = (out / "evaluation.json").read_text()
    (tmp_path / "edited_estimator.py").write_text(source + "# better\n")
    with pytest.raises(ConfigError, match="made by another version of estimator edited; --over"):
        evaluate([module.Edited(name="edited")], suite, out)
    assert (out / "evaluation.json").read_text() == before
    assert evaluate([module.Edited(name="edited")], suite, out, overwrite=True)["complete"]


def test_a_source_digest_is_of_what_is_imported_too(tmp_path, monkeypatch) -> None:
    (tmp_path / "digest_one.py").write_text("def f():\n    from digest_two import g\n")
    (tmp_path / "digest_two.py").write_text("import json\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = source_digest("digest_one")
    assert first is not None and first == source_digest("digest_one")
    (tmp_path / "digest_two.py").write_text("import json  # other\n")
    assert source_digest("digest_one") != first
    assert source_digest("builtins") is None and source_digest("no_such_module_at_all") is None


def test_bounds_of_many_scenes_are_made_in_parts(monkeypatch) -> None:
    suite = small_suite(BOUNDS_BLOCK + 3, (2,), (20.0,))
    drawn, sizes = suite.draw(suite.cells[0], 0, suite.scenes), []

    def counted(points, *args, **kwargs):
        sizes.append(len(points[0]))
        return deterministic_bound(points, *args, **kwargs)

    monkeypatch.setattr(evaluation_tasks, "deterministic_bound", counted)
    records = BoundsTask(SYSTEM)(drawn)
    assert sizes == [BOUNDS_BLOCK, 3] and len(records) == len(drawn.scenes)
    alone = BoundsTask(SYSTEM)(suite.draw(suite.cells[0], BOUNDS_BLOCK, suite.scenes))
    for one, other in zip(records[BOUNDS_BLOCK:], alone, strict=True):
        assert one["deterministic"] == pytest.approx(other["deterministic"])
