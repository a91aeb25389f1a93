# SPDX-License-Identifier: Apache-2.0
"""One file for each rival implementation of the operators.

A module here exports ``PEERS``, a tuple of :class:`bench.registry.Peer`, and imports what the
peer needs only when the peer is prepared; names with a leading underscore are helpers.
"""
