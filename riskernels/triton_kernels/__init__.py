# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, one module per operator, for CUDA devices without the CUDA library.

A module ``<op>.py`` defines functions named like the operators it serves, with the arguments of
their schemas; :mod:`riskernels.library` finds and registers them.
"""
