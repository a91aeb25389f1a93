# SPDX-License-Identifier: Apache-2.0
"""One file for each operator: its cases, inputs, complex128 oracle and cost.

A module here exports ``OPERATOR``, a :class:`bench.registry.Operator`; names with a leading
underscore are helpers.
"""
