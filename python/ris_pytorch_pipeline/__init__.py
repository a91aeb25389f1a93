# SPDX-License-Identifier: Apache-2.0
"""Simulate, train, tune and localize with a reconfigurable intelligent surface."""
