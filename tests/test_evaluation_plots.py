# SPDX-License-Identifier: Apache-2.0
"""Figures of an evaluation show the numbers of its report."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from evaluation_helpers import SYSTEM, Fixed, small_suite

from ris_pytorch_pipeline.configs import CovarianceConfig
from ris_pytorch_pipeline.covariance import sample_covariance
from ris_pytorch_pipeline.evaluate import evaluate
from ris_pytorch_pipeline.evaluation_metrics import RANGE_EDGES
from ris_pytorch_pipeline.evaluation_plots import (
    error_figure,
    gospa_figure,
    nearest_scene,
    range_figure,
    report_figures,
    slices_figure,
)
from ris_pytorch_pipeline.geometry import steering, to_cartesian
from ris_pytorch_pipeline.suite import Cell


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("evaluation")
    return evaluate([Fixed(), Fixed("other")], small_suite(4, (1, 2), (0.0, 10.0, 20.0)), folder)


def lines(axes) -> dict:
    return {line.get_label(): line for line in axes.lines}


def test_errors_and_bounds_are_those_of_the_report(report: dict) -> None:
    figure = error_figure(report)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["K = 1", "K = 2"]
    for count, axes in zip((1, 2), figure.axes, strict=True):
        cells = [cell for cell in report["cells"] if cell["num_sources"] == count]
        shown = lines(axes)
        assert set(shown) == {"fixed", "other", "deterministic bound", "stochastic bound"}
        np.testing.assert_array_equal(shown["fixed"].get_xdata(), [0, 10, 20])
        errors = [cell["estimators"][0]["median_error"] for cell in cells]
        np.testing.assert_array_equal(shown["fixed"].get_ydata(), errors)
        for name in ("deterministic", "stochastic"):
            bound = [cell["bounds"][f"peb_{name}"] for cell in cells]
            np.testing.assert_array_equal(shown[f"{name} bound"].get_ydata(), bound)
        assert axes.get_yscale() == "log"


def test_errors_of_fewer_answers_than_sources_are_hollow(report: dict) -> None:
    assert "hollow" not in error_figure(report).get_suptitle()
    edited = copy.deepcopy(report)
    edited["cells"][0]["estimators"][0]["estimates"] -= 1
    figure = error_figure(edited)
    assert "hollow: fewer estimates than sources" in figure.get_suptitle()
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    cell = edited["cells"][0]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in hollow] == [
        ([cell["snr_db"]], [cell["estimators"][0]["median_error"]])
    ]
    figure = range_figure(edited)
    assert "hollow" in figure.get_suptitle()
    assert lines(figure.axes[0])["fixed"].get_markerfacecolor() == "white"
    assert lines(figure.axes[0])["other"].get_markerfacecolor() != "white"


@pytest.mark.parametrize("known", [True, False])
def test_gospa_bars_add_up(report: dict, known: bool) -> None:
    figure = gospa_figure(report, known)
    for cell, axes in zip(report["cells"], figure.axes, strict=True):
        assert axes.get_title(loc="left") == f"K = {cell['num_sources']}, {cell['snr_db']:g} dB"
        entries = [e for e in cell["estimators"] if e["sources_known"] == known]
        ends = [patch.get_x() + patch.get_width() for patch in axes.patches[-len(entries) :]]
        np.testing.assert_allclose(ends, [e["gospa"] ** 2 for e in entries], rtol=1e-4)
        assert max(ends) < axes.get_xlim()[1]
        nothing = axes.lines[0].get_xdata()[0]
        assert nothing == 2 * cell["num_sources"]


def test_range_errors_pool_the_cells(report: dict) -> None:
    figure = range_figure(report)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["0 dB", "20 dB"]
    axes = figure.axes[-1]
    cells = [cell for cell in report["cells"] if cell["snr_db"] == 20]
    shown = lines(axes)["deterministic bound"].get_ydata()
    for number in range(len(RANGE_EDGES) - 1):
        bins = [cell["bounds"]["range_bound_by_range"][number] for cell in cells]
        count = sum(b["count"] for b in bins)
        if count == 0:
            assert math.isnan(shown[number])
        else:
            mean = sum(b["count"] * (b["median"] or 0) for b in bins) / count
            assert shown[number] == pytest.approx(mean)


def test_a_slice_is_the_spectrum_and_holds_every_source_and_estimate() -> None:
    suite, cell = small_suite(4, (2,), (20.0,)), Cell(2, 20.0)
    scene = nearest_scene(suite, cell)
    scenes = suite.draw(cell, 0, 4).scenes
    assert scenes.r[scene, :2].max() == scenes.r[:, :2].amax(1).min()
    truth = to_cartesian(scenes.phi, scenes.theta, scenes.r)[scene, :2].double()
    figure = slices_figure(suite, {"exact": truth.tolist(), "none": []}, cell, scene)
    assert "whose sources are the nearest" in figure.get_suptitle()
    panels = [axes for axes in figure.axes if axes.get_xlabel() == "azimuth (degrees)"]
    assert len(panels) == 2
    r_samp = sample_covariance(scenes[scene], CovarianceConfig())[0].to(torch.complex128)
    mean = r_samp.diagonal().real.mean()
    inverse = torch.linalg.inv(r_samp + 1e-3 * mean * torch.eye(len(r_samp)))
    for number, axes in enumerate(panels):
        shown = lines(axes)
        at = (math.degrees(scenes.phi[scene, number]), float(scenes.r[scene, number]))
        for name in ("source", "exact"):
            point = np.concatenate([shown[name].get_xdata(), shown[name].get_ydata()])
            np.testing.assert_allclose(point, at, rtol=1e-5)
        assert len(shown["none"].get_xdata()) == 0
        # Differences of the image are those of the spectrum at the mesh's own points.
        mesh = axes.collections[0]
        level = np.asarray(mesh.get_array()).reshape(121, 161)
        phi = np.radians(
            np.linspace(-math.degrees(SYSTEM.phi_max), math.degrees(SYSTEM.phi_max), 161)
        )
        r = np.geomspace(SYSTEM.r_min, SYSTEM.r_max, 121)
        theta = float(scenes.theta[scene, number])
        chosen = [(0, 0), (60, 80), (120, 160), (17, 140)]
        points = torch.tensor([[phi[i], theta, r[j]] for j, i in chosen]).unbind(1)
        a = steering(SYSTEM, *points, dtype=torch.complex128)
        power = 1 / torch.einsum("pm,mn,pn->p", a.conj(), inverse, a).real
        expected = 10 * power.log10()
        got = np.array([level[j, i] for j, i in chosen])
        np.testing.assert_allclose(got - got[0], expected - expected[0], atol=1e-3)


def test_figures_of_one_mode_and_one_cell_are_drawn(report: dict, tmp_path) -> None:
    assert set(report_figures(report)) == {
        "position_error",
        "range_error",
        "gospa_known",
        "gospa_unknown",
    }
    one = {**report, "cells": copy.deepcopy(report["cells"][:1])}
    for cell in one["cells"]:
        cell["estimators"] = [e for e in cell["estimators"] if not e["sources_known"]]
    figures = report_figures(one)
    assert set(figures) == {"gospa_unknown"}
    figures["gospa_unknown"].savefig(tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000
