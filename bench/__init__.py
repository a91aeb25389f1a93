# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the operators: correctness first, then speed against peers and machine ceilings.

``python -m bench`` runs, on a GPU with ``--device cuda`` and over all sizes with ``--scaling``;
``--compare`` holds one run against another, as ratios to peers of the same run;
``python -m bench.table FILE.json`` prints the Markdown table of a run, ``python -m bench.plot``
draws its scaling curves, and ``python -m bench.overhead`` measures what a call costs the host.
Adding an operator is one file in :mod:`bench.operators`, a peer one file in :mod:`bench.peers`,
a shape one line in the operator's file, or ``--shapes`` on the command line.
"""

SCHEMA = 1
"""Version of the layout of the JSON files."""
