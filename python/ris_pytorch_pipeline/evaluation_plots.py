# SPDX-License-Identifier: Apache-2.0
"""Figures of an evaluation: errors against the bound, the parts of GOSPA, slices of a spectrum.

All are made from the report alone but :func:`slices_figure`, which draws a scene again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .configs import CovarianceConfig, SystemConfig
from .covariance import sample_covariance
from .evaluation_metrics import RANGE_EDGES
from .evaluation_report import Report, answers_all, entry_of, estimators_of
from .geometry import to_spherical
from .plots import new_figure
from .set_metrics import CUTOFF
from .spectrum import mvdr
from .suite import BLOCK, Cell, Suite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#4e79a7", "#e15759", "#59a14f", "#f28e2b", "#b07aa1", "#76b7b2", "#9c755f", "#ff9da7")
MARKERS = "osD^vPX*"
PARTS = {"gospa_localisation": "#4e79a7", "gospa_missed": "#e15759", "gospa_false": "#f28e2b"}
BOUND: dict[str, Any] = {"color": "black", "ls": "--", "lw": 1.4, "zorder": 1}

HOLLOW = "\nhollow: fewer estimates than sources, the error is that of those that were answered"


def _style(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "ms": 5,
        "lw": 1.4,
    }


def _panels(
    count: int, rows: int, columns: int, width: float, height: float, *, share: bool = False
) -> tuple[Figure, Any]:
    """A figure of ``rows`` by ``columns`` panels with the surplus ones hidden, and its panels."""
    figure = new_figure(1)
    figure.set_size_inches(width, height)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=share)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    return figure, panels


def _cells(report: Report, **wanted: Any) -> list[Report]:
    return [
        cell
        for cell in report["cells"]
        if all(cell[name] == value for name, value in wanted.items())
    ]


def _values(report: Report, name: str) -> list[Any]:
    return sorted({cell[name] for cell in report["cells"]})


def _nan(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def error_figure(report: Report) -> Figure:
    """Median position error against SNR with K known, a panel for each K, the bound dashed."""
    counts = _values(report, "num_sources")
    columns = min(2, len(counts))
    rows = -(-len(counts) // columns)
    figure, panels = _panels(
        len(counts), rows, columns, 5.0 * columns + 2.2, 3.5 * rows + 0.5, share=True
    )
    partial = False
    for axes, count in zip(panels.flat, counts, strict=False):
        cells = _cells(report, num_sources=count)
        snrs = [cell["snr_db"] for cell in cells]
        for number, name in enumerate(estimators_of(report, True)):
            entries = [entry_of(cell, name, True) for cell in cells]
            errors = _nan([entry["median_error"] if entry else None for entry in entries])
            axes.plot(snrs, errors, **_style(number), label=name)
            few = [entry is not None and not answers_all(entry) for entry in entries]
            if any(few):
                hollow = {**_style(number), "ls": "none", "mfc": "white", "label": f"_{name}"}
                axes.plot(*np.array([snrs, errors])[:, few], **hollow)
                partial = True
        for bound, style in (("deterministic", "--"), ("stochastic", ":")):
            values = _nan([cell["bounds"][f"peb_{bound}"] for cell in cells])
            axes.plot(snrs, values, **{**BOUND, "ls": style}, label=f"{bound} bound")
        _metres(axes)
        axes.set_title(f"K = {count}", fontsize=10, loc="left")
        axes.set_xticks(snrs)
        axes.grid(alpha=0.3, which="both")
        axes.set_xlabel("SNR (dB)")
    for axes in panels[:, 0]:
        axes.set_ylabel("median position error (m)")
    _legend(figure, panels.flat[0])
    figure.suptitle(
        "Median position error, K known; bound: median over the sources of the RMS error bound"
        + (HOLLOW if partial else ""),
        fontsize=10,
    )
    return figure


def _metres(axes: Axes) -> None:
    """A logarithmic axis with numbers as one says them."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")


def _legend(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, at the right."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)


def gospa_figure(report: Report, sources_known: bool) -> Figure:
    """Mean squared GOSPA per scene as stacked bars of its parts, a panel per K and SNR."""
    counts, snrs = _values(report, "num_sources"), _values(report, "snr_db")
    if len(snrs) > 3:
        snrs = [snrs[0], snrs[len(snrs) // 2], snrs[-1]]
    names = estimators_of(report, sources_known)
    height = (0.28 * len(names) + 0.75) * len(counts) + 1.0
    figure, panels = _panels(len(counts) * len(snrs), len(counts), len(snrs), 11.0, height)
    for row, count in zip(panels, counts, strict=True):
        for axes, snr in zip(row, snrs, strict=True):
            cells = _cells(report, num_sources=count, snr_db=snr)
            start = np.zeros(len(names))
            for part, colour in PARTS.items():
                found = [entry_of(cells[0], n, sources_known) if cells else None for n in names]
                width = np.array([entry[part] if entry else 0.0 for entry in found])
                label = part.removeprefix("gospa_")
                axes.barh(names, width, left=start, color=colour, label=label, height=0.75)
                start += width
            axes.set_title(f"K = {count}, {snr:g} dB", fontsize=9, loc="left")
            axes.invert_yaxis()
            axes.grid(axis="x", alpha=0.3)
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8)
            if axes is not row[0]:
                axes.tick_params(labelleft=False)
        # The same scale along a row, and room for an answer as bad as none: K c^2 / 2.
        limit = max([count * CUTOFF**2 / 2, *(axes.get_xlim()[1] for axes in row)])
        for axes in row:
            axes.set_xlim(0, 1.02 * limit)
            axes.axvline(count * CUTOFF**2 / 2, color="black", lw=1, ls=":", label="no answer")
    for axes in panels[-1]:
        axes.set_xlabel("mean squared GOSPA of a scene (m$^2$)", fontsize=9)
    _legend(figure, panels[0][0])
    known = "known" if sources_known else "unknown"
    figure.suptitle(f"What GOSPA (c = 2 m) is made of, K {known}", fontsize=10)
    return figure


def range_figure(report: Report) -> Figure:
    """Median range error against range with K known, pooled over K.

    Of more than two SNRs the highest and the second below it are drawn.
    """
    snrs = _values(report, "snr_db")[-3::2] if len(_values(report, "snr_db")) > 2 else None
    snrs = snrs or _values(report, "snr_db")
    figure, panels = _panels(len(snrs), 1, len(snrs), 5.0 * len(snrs) + 2.2, 4.2, share=True)
    partial = False
    middle = [(low + high) / 2 for low, high in itertools.pairwise(RANGE_EDGES)]
    for axes, snr in zip(panels.flat, snrs, strict=True):
        cells = _cells(report, snr_db=snr)
        for number, name in enumerate(estimators_of(report, True)):
            entries = [e for cell in cells if (e := entry_of(cell, name, True)) is not None]
            few = not all(map(answers_all, entries))
            partial |= few
            style = {**_style(number), **({"mfc": "white"} if few else {})}
            bins = [entry["range_error_by_range"] for entry in entries]
            axes.plot(middle, _pooled(bins), **style, label=name)
        bins = [cell["bounds"]["range_bound_by_range"] for cell in cells]
        axes.plot(middle, _pooled(bins), **BOUND, label="deterministic bound")
        _metres(axes)
        axes.set_title(f"{snr:g} dB", fontsize=10, loc="left")
        axes.grid(alpha=0.3, which="both")
        axes.set_xlabel("range of the source (m)")
    panels[0, 0].set_ylabel("median range error (m)")
    _legend(figure, panels.flat[0])
    figure.suptitle(
        "Range error against range, K known: mean over K of the medians; bound: of its medians"
        + (HOLLOW if partial else ""),
        fontsize=10,
    )
    return figure


def _pooled(cells: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
    """Mean over cells of the medians in every bin, weighted by their counts."""
    pooled = []
    for bins in zip(*cells, strict=True):
        known = [(b["median"], b["count"]) for b in bins if b["median"] is not None]
        count = sum(n for _, n in known)
        pooled.append(sum(m * n for m, n in known) / count if count else math.nan)
    return pooled


def _plane(theta: float, system: SystemConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Points [R * A, 3] at one elevation, over log range and azimuth, and both axes [A], [R]."""
    phi = torch.linspace(-system.phi_max, system.phi_max, 161, dtype=torch.float64)
    r = torch.logspace(math.log10(system.r_min), math.log10(system.r_max), 121, dtype=phi.dtype)
    range_of, phi_of = torch.meshgrid(r, phi, indexing="ij")
    flat = torch.stack([phi_of, torch.full_like(phi_of, theta), 1 / range_of], dim=-1)
    return flat.reshape(-1, 3), phi, r


def nearest_scene(suite: Suite, cell: Cell) -> int:
    """Of the first scenes of a cell the one whose farthest source is nearest.

    Beyond a few metres a spectrum is a ridge along the range, and shows the azimuth alone.
    """
    scenes = suite.draw(cell, 0, min(suite.scenes, BLOCK)).scenes
    return int(scenes.r[:, : cell.num_sources].amax(1).argmin())


def slices_figure(
    suite: Suite, estimates: Mapping[str, Sequence[Sequence[float]]], cell: Cell, scene: int
) -> Figure:
    """The MVDR spectrum of R_samp in planes of constant elevation through every source of a scene.

    Args:
        suite: what the scene is of.
        estimates: positions [J][3] in metres of the scene's sources, by name of their estimator.
            Each is drawn in the plane of the source nearest to it in direction and 1/range.
        cell, scene: the scene; ``scene`` is below :data:`~.suite.BLOCK`.
    """
    scenes = suite.draw(cell, 0, scene + 1).scenes[scene]
    spectrum = mvdr(sample_covariance(scenes, CovarianceConfig()))
    count = cell.num_sources
    figure, panels = _panels(count, 1, count, 3.6 * count + 1.6, 4.6, share=True)
    truth = torch.stack([v[0, :count].double() for v in (scenes.phi, scenes.theta, scenes.r)], -1)
    planes = []
    for theta in truth[:, 1].tolist():
        points, phi, r = _plane(theta, suite.system)
        level = spectrum.log_level(points, suite.system)[0].reshape(len(r), len(phi))
        planes.append((10 / math.log(10)) * level)
    everything = torch.stack(planes)
    top = float(everything.max())
    low = float(everything.quantile(0.05)) - top
    image: Any = None
    for number, (axes, level) in enumerate(zip(panels[0], planes, strict=True)):
        image = axes.pcolormesh(
            np.degrees(phi.numpy()),
            r.numpy(),
            (level - top).numpy(),
            cmap="Greys",
            vmin=low,
            vmax=0,
            shading="nearest",
        )
        at = (math.degrees(truth[number, 0]), float(truth[number, 2]))
        cross = {"marker": "+", "color": "black", "ls": "none", "ms": 16, "zorder": 4}
        axes.plot(*at, mew=2.4, label="source", **cross)
        for name_number, (name, places) in enumerate(estimates.items()):
            style = {**_style(name_number), "ls": "none", "mfc": "none", "ms": 9, "mew": 1.8}
            found = [(a, d) for panel, a, d in _placed(places, truth) if panel == number]
            axes.plot([a for a, _ in found], [d for _, d in found], **style, label=name)
        axes.set_yscale("log")
        axes.set_ylim(float(r[0]), float(r[-1]))
        ticks = [d for d in (0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10) if r[0] <= d <= r[-1]]
        axes.set_yticks(ticks, [f"{d:g}" for d in ticks])
        axes.yaxis.set_minor_formatter("")
        axes.set_title(f"elevation {math.degrees(truth[number, 1]):.1f}°", fontsize=10, loc="left")
        axes.set_xlabel("azimuth (degrees)")
    panels[0, 0].set_ylabel("range (m)")
    figure.colorbar(image, ax=panels[0, -1], label="MVDR spectrum of R_samp (dB)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    columns = min(len(labels), 2 * count + 1)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False
    )
    which = ", whose sources are the nearest" if scene == nearest_scene(suite, cell) else ""
    figure.suptitle(f"Scene {scene} of {cell}{which}: the planes of its sources", fontsize=10)
    return figure


def _placed(places: Sequence[Sequence[float]], truth: Tensor) -> Iterator[tuple[int, float, float]]:
    """Panel, azimuth in degrees and range of every estimate."""
    if not places:
        return
    xyz = torch.tensor(places, dtype=torch.float64)
    spherical = torch.stack(to_spherical(xyz), dim=-1)
    for row in spherical:
        # Angles and 1/range, as the planes show them.
        gap = (truth[:, :2] - row[:2]).square().sum(-1) + (1 / truth[:, 2] - 1 / row[2]).square()
        yield int(gap.argmin()), math.degrees(row[0]), float(row[2])


def report_figures(report: Report) -> dict[str, Figure]:
    """Every figure that the report alone is enough for, by the stem of its file."""
    figures = {}
    if estimators_of(report, True):
        figures["position_error"] = error_figure(report)
        figures["range_error"] = range_figure(report)
    for known in (True, False):
        if estimators_of(report, known):
            figures[f"gospa_{'known' if known else 'unknown'}"] = gospa_figure(report, known)
    return figures
