# SPDX-License-Identifier: Apache-2.0
"""Floor 4: the D-Bus door."""
