# SPDX-License-Identifier: Apache-2.0
"""Floor 2: the steps of the walk; each takes a value and returns a value."""
