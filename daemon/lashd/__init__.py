# SPDX-License-Identifier: Apache-2.0
"""lashd: the host image and every container image bound to it change together, or not at all."""

__version__ = "0.1.0"
