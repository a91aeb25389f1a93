# SPDX-License-Identifier: Apache-2.0
"""Evaluations: their numbers by hand, stopping and going on, and what they refuse."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math

import numpy as np
import pytest
from evaluation_helpers import SYSTEM, Broken, Fixed, records_of, small_suite

from ris_pytorch_pipeline import evaluation_runner
from ris_pytorch_pipeline.bounds import deterministic_bound, position_error_bound
from ris_pytorch_pipeline.configs import ConfigError
from ris_pytorch_pipeline.evaluate import evaluate
from ris_pytorch_pipeline.evaluation_metrics import COLUMNS, RANGE_EDGES, estimator_results
from ris_pytorch_pipeline.evaluation_report import (
    csv_text,
    entry_of,
    markdown,
    read_report,
)
from ris_pytorch_pipeline.evaluation_runner import check_identity, run_tasks
from ris_pytorch_pipeline.evaluation_tasks import BoundsTask, EvaluationError
from ris_pytorch_pipeline.geometry import to_cartesian
from ris_pytorch_pipeline.suite import BLOCK


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("evaluation")
    made = evaluate([Fixed()], small_suite(5), folder)
    assert read_report(folder / "evaluation.json") == json.loads(json.dumps(made))
    assert (folder / "evaluation.json").read_text().count('{"estimator": ') == 4 * 2
    assert (folder / "evaluation.csv").read_text().count("\n") == 1 + 4 * 2
    return made


def test_numbers_of_an_estimator_by_hand() -> None:
    truths = [
        np.array([[2.0, 0, 0], [4.0, 0, 0]]),
        np.array([[0.9, 0, 0]]),
        np.array([[9.0, 0, 0]]),
    ]
    # A hit 0.3 m off in range and a miss; a second estimate in excess; nothing.
    estimates = [[[2.3, 0, 0], [7.0, 0, 0]], [[0.9, 0.6, 0], [0, 0, 0.9]], []]
    got = estimator_results(estimates, truths, [0.1, 0.3, 0.2])
    squares = [0.09 + 2 + 2, 0.36 + 2, 2.0]
    assert got["gospa"] == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-5)
    rest = [np.sqrt(np.mean(squares[:i] + squares[i + 1 :])) for i in range(3)]
    spread = math.sqrt(2 / 3 * sum((value - np.mean(rest)) ** 2 for value in rest))
    assert got["gospa_error"] == pytest.approx(spread, rel=1e-5)
    assert got["gospa_mean"] == pytest.approx(np.mean(np.sqrt(squares)), rel=1e-5)
    parts = [got[f"gospa_{part}"] for part in ("localisation", "missed", "false")]
    assert parts == pytest.approx([0.45 / 3, 4 / 3, 4 / 3], rel=1e-5)
    ospa = [math.sqrt((0.09 + 4) / 2), math.sqrt((0.36 + 4) / 2), 2.0]
    assert got["ospa"] == pytest.approx(np.mean(ospa), rel=1e-5)
    assert got["f1_0.5m"] == pytest.approx(2 * 1 / (4 + 4))
    assert got["f1_1m"] == pytest.approx(2 * 2 / (4 + 4))
    assert (got["sources"], got["estimates"], got["missed"], got["false"]) == (4, 4, 2, 2)
    errors = [0.3, 3.0, 0.6]
    assert got["median_error"] == pytest.approx(0.6)
    assert got["rms_error"] == pytest.approx(math.sqrt(np.mean(np.square(errors))), rel=1e-5)
    assert got["median_range_error"] == pytest.approx(0.3)
    assert got["rms_azimuth_error"] == pytest.approx(math.atan2(0.6, 0.9) / math.sqrt(3), rel=1e-5)
    assert got["median_elevation_error"] == 0
    assert got["seconds_per_scene"] == 0.2
    assert [bin["count"] for bin in got["range_error_by_range"]] == [1, 0, 1, 0, 1, 0, 0, 0, 0, 0]
    assert got["range_error_by_range"][2]["median"] == pytest.approx(0.3)
    assert set(COLUMNS) == set(got) - {"range_error_by_range"}
    assert len(RANGE_EDGES) == 1 + len(got["range_error_by_range"])


def test_scenes_without_sources_or_estimates_have_numbers() -> None:
    got = estimator_results([[], [[1.0, 0, 0]]], [np.empty((0, 3)), np.empty((0, 3))])
    assert got["gospa"] == 1.0 and got["median_error"] is None and got["f1_1m"] == 0.0
    assert (got["sources"], got["false"], got["seconds_per_scene"]) == (0, 1, None)
    one = estimator_results([[]], [[]])
    assert one["f1_1m"] is None and one["gospa_error"] is None
    with pytest.raises(ValueError, match="at least one"):
        estimator_results([], [])


def test_report_is_that_of_the_suite_and_the_estimates(report: dict) -> None:
    suite = small_suite(5)
    assert report["complete"] and len(report["cells"]) == 4
    for cell, entry in zip(suite.cells, report["cells"], strict=True):
        drawn = suite.draw(cell, 0, 5)
        scenes, k = drawn.scenes, cell.num_sources
        places = to_cartesian(scenes.phi.double(), scenes.theta.double(), scenes.r.double())
        truths = [row[:k].numpy() for row in places]
        assert (entry["num_sources"], entry["snr_db"], entry["scenes"]) == (k, cell.snr_db, 5)
        for known in (True, False):
            answer = [[i + 1.0, 0.0, 0.0] for i in range(k if known else 1)]
            wanted = estimator_results([answer] * 5, truths)
            got = entry_of(entry, "fixed", known)
            assert got is not None and 0 < got.pop("seconds_per_scene") < 1
            del wanted["seconds_per_scene"]
            for name, value in wanted.items():
                assert got[name] == (value if name.endswith("by_range") else pytest.approx(value))
        points = tuple(x.double() for x in (scenes.phi, scenes.theta, scenes.r))
        bound = deterministic_bound(
            points, scenes.h, scenes.codes, drawn.symbols, drawn.noise_power, SYSTEM,
            mask=scenes.mask,
        )  # fmt: skip
        peb = position_error_bound(bound, points)[scenes.mask]
        assert entry["bounds"]["peb_deterministic"] == pytest.approx(
            np.median(peb.numpy()), rel=1e-5
        )
        assert 0 < entry["covariances"]["R_samp"]["overlap"] < 1
        assert entry["covariances"]["R_samp"]["nmse"] > 0


def test_csv_holds_the_report(report: dict) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(report))))
    assert len(rows) == sum(len(cell["estimators"]) for cell in report["cells"])
    row, cell = rows[-1], report["cells"][-1]
    entry = cell["estimators"][-1]
    assert row["sources_known"] == str(entry["sources_known"])
    assert float(row["snr_db"]) == cell["snr_db"]
    for name in COLUMNS:
        assert row[name] == ("" if entry[name] is None else str(entry[name]))
    assert float(row["peb_stochastic"]) == cell["bounds"]["peb_stochastic"]


def test_tables_show_the_report_and_mark_the_best(report: dict) -> None:
    text = markdown(report)
    entry = entry_of(report["cells"][0], "fixed", True)
    assert entry is not None
    assert f"| 1 | fixed | **{entry['gospa']:.2f}** |" in text
    assert f"| 2 | *no answer* | {2:.2f} | {2:.2f} |" in text
    assert f"| 1 | *largest standard error* | {entry['gospa_error']:.2f} |" in text
    assert "bound (median PEB)" in text and "F1 at 0.5 m" in text
    assert report["suite"]["fingerprint"] in text
    two = json.loads(json.dumps(report))
    for cell in two["cells"]:
        other = json.loads(json.dumps(cell["estimators"][0]))
        cell["estimators"].append({**other, "estimator": "worse", "gospa": other["gospa"] + 1})
    assert f"| 1 | worse | {entry['gospa'] + 1:.2f} |" in markdown(two)
    with pytest.raises(ValueError, match="no finished cell"):
        markdown({**report, "cells": []})


def test_a_median_over_some_of_the_sources_shows_their_share_and_is_not_the_best(
    report: dict,
) -> None:
    edited = json.loads(json.dumps(report))
    for cell in edited["cells"]:
        first = cell["estimators"][0]
        few = {"estimator": "few", "median_error": 0.001, "estimates": first["estimates"] - 1}
        cell["estimators"].append({**json.loads(json.dumps(first)), **few})
    text = markdown(edited)
    assert "| 1 | few | 0.001 (80 %) | 0.001 (80 %) |" in text
    assert "| 2 | few | 0.001 (90 %) |" in text
    best = edited["cells"][0]["estimators"][0]["median_error"]
    assert f"| 1 | fixed | **{best:.3f}** |" in text


def test_the_line_below_names_the_checkpoint(report: dict) -> None:
    made = {"recipe": "default", "val_loss": 0.51234, "weights_sha256": "a" * 64}
    made |= {"config_sha256": "b" * 64}
    line = (
        "Checkpoint: configuration bbbbbbbbbbbb (recipe default), validation loss 0.5123, weights"
    )
    assert f"{line} aaaaaaaaaaaa." in markdown({**report, "checkpoint": made})
    assert "Checkpoint" not in markdown(report)


def test_an_estimator_sees_no_label(tmp_path) -> None:
    estimator = Fixed()
    evaluate([estimator], small_suite(2, (2,), (20.0,)), tmp_path)
    assert {count is None for _, count in estimator.calls} == {True, False}
    for scenes, count in estimator.calls:
        assert count is None or (count == 2).all()
        for name in ("phi", "theta", "r", "power", "snr_db"):
            assert getattr(scenes, name).isnan().all()
        assert (scenes.num_sources == 0).all()


def test_more_scenes_and_cells_extend_what_is_there(tmp_path) -> None:
    estimator = Fixed()
    evaluate([estimator], small_suite(BLOCK + 3, (1,), (20.0,)), tmp_path, sources="known")
    first = records_of(tmp_path, "fixed-known_K1_SNR20")
    seen = sum(len(scenes) for scenes, _ in estimator.calls)
    assert len(first) == BLOCK + 3 and seen == BLOCK + 3 + 1  # One to warm up.
    estimator.calls.clear()
    again = evaluate([estimator], small_suite(BLOCK + 3, (1,), (20.0,)), tmp_path, sources="known")
    assert not estimator.calls
    grown = evaluate(
        [estimator], small_suite(2 * BLOCK, (1, 2), (20.0,)), tmp_path, sources="known"
    )
    # The block that was there in part is computed again, the whole one is not.
    assert sum(len(scenes) for scenes, _ in estimator.calls) == BLOCK + 2 * BLOCK + 1
    assert records_of(tmp_path, "fixed-known_K1_SNR20")[:BLOCK] == first[:BLOCK]
    fresh = evaluate([Fixed()], small_suite(2 * BLOCK, (1, 2), (20.0,)), tmp_path / "fresh")
    for one, other in zip(grown["cells"], fresh["cells"], strict=True):
        for name in ("peb_deterministic", "peb_stochastic", "range_bound"):
            assert one["bounds"][name] == pytest.approx(other["bounds"][name], rel=1e-6)
        for name in ("gospa", "median_error", "ospa"):
            assert one["estimators"][0][name] == other["estimators"][0][name]
    fewer = evaluate([estimator], small_suite(BLOCK + 3, (1,), (20.0,)), tmp_path, sources="known")
    for name in ("gospa", "median_error", "f1_1m"):
        a, b = (r["cells"][0]["estimators"][0][name] for r in (fewer, again))
        assert a == b


def test_an_interrupted_evaluation_keeps_what_is_done(tmp_path) -> None:
    def stop(progress: evaluation_runner.Progress) -> None:
        if progress.cell.num_sources == 2:
            raise KeyboardInterrupt

    suite = small_suite(BLOCK + 1, (1, 2), (20.0,))
    with pytest.raises(KeyboardInterrupt):
        evaluate([Fixed()], suite, tmp_path, batch_size=BLOCK, on_progress=stop)
    left = read_report(tmp_path / "evaluation.json")
    assert not left["complete"] and [cell["num_sources"] for cell in left["cells"]] == [1]
    estimator = Fixed()
    whole = evaluate([estimator], suite, tmp_path, batch_size=BLOCK)
    assert whole["complete"] and whole["cells"][0] == left["cells"][0]
    # One source, and the bounds of the first batch of two, were there.
    assert {int(k[0]) for _, k in estimator.calls if k is not None} == {2}


def test_progress_counts_to_the_end_and_says_when_a_cell_is_done(tmp_path) -> None:
    seen: list[evaluation_runner.Progress] = []
    evaluate([Fixed()], small_suite(2), tmp_path, on_progress=seen.append)
    assert [p.cell for p in seen if p.cell_done] == small_suite(2).cells
    assert seen[-1].done == seen[-1].total == 4 * 2 * 4 and seen[-1].seconds_left == 0
    assert all(a.done < b.done for a, b in itertools.pairwise(seen))
    assert all(p.seconds_left > 0 for p in seen[:-1])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("error", "broken-known on K = 1, 0 dB, scenes 0 to 1: ZeroDivisionError: no such luck"),
        ("nan", "estimator broken: returned a position that is not finite"),
        ("kind", "estimator broken: valid is torch.float32"),
    ],
)
def test_an_estimator_that_fails_is_named(tmp_path, fault: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate([Broken(fault=fault)], small_suite(2), tmp_path)
    # What was done before it failed is there.
    assert len(records_of(tmp_path, "bounds_K1_SNR0")) == 2


def test_a_folder_of_another_evaluation_is_refused(tmp_path) -> None:
    suite = small_suite(1, (1,), (20.0,))
    evaluate([Fixed()], suite, tmp_path)
    with pytest.raises(ConfigError, match=r"another evaluation \(other checkpoint\)"):
        evaluate([Fixed()], suite, tmp_path, note={"checkpoint": "another"})
    done = evaluate([Fixed()], suite, tmp_path, note={"checkpoint": "another"}, overwrite=True)
    assert done["checkpoint"] == "another"
    (tmp_path / "cells" / "bounds_K1_SNR20.json").write_text("{")
    with pytest.raises(ConfigError, match=r"bounds_K1_SNR20.json: damaged; delete it"):
        evaluate([Fixed()], suite, tmp_path, note={"checkpoint": "another"})
    (tmp_path / "identity.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"identity.json: damaged"):
        evaluate([Fixed()], suite, tmp_path, note={"checkpoint": "another"})
    (tmp_path / "identity.json").unlink()
    with pytest.raises(ConfigError, match="holds records without identity"):
        check_identity(tmp_path, {})
    lock = evaluation_runner.locked(tmp_path)
    with pytest.raises(ConfigError, match="another evaluation is writing"):
        evaluation_runner.locked(tmp_path)
    lock.release()


def test_arguments_are_refused_before_any_work(tmp_path) -> None:
    suite = small_suite(1)
    for estimators, options, message in (
        ([Fixed("a b")], {}, "estimator 'a b': expected a name of its own"),
        ([Fixed(), Fixed()], {}, "estimator 'fixed'"),
        ([Fixed()], {"batch_size": 0}, "batch_size is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(estimators, suite, tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()
    (tmp_path / "no.json").write_text("{}")
    for name in ("no.json", "absent.json"):
        with pytest.raises(ConfigError, match=name):
            read_report(tmp_path / name)


def test_memory_is_that_of_a_batch(tmp_path) -> None:
    sizes = []

    class Sizes(BoundsTask):
        def __call__(self, drawn):
            sizes.append(len(drawn.scenes))
            return [{}] * len(drawn.scenes)

    suite = small_suite(5 * BLOCK + 1, (1,), (20.0,))
    run_tasks(suite, [Sizes(SYSTEM)], tmp_path, batch_size=BLOCK + 1)
    assert sizes == [1, 2 * BLOCK, 2 * BLOCK, BLOCK + 1]
