# SPDX-License-Identifier: Apache-2.0
"""Floor 1: each module hides one outside system."""
