# SPDX-License-Identifier: Apache-2.0
"""What people see: pure functions from values to text or rich renderables. Nothing here speaks to the bus."""
