# SPDX-License-Identifier: Apache-2.0
"""Plain PyTorch implementations: the oracle of the tests and the fallback of every device.

Each module defines functions named like the operators they implement, with the same arguments.
"""
