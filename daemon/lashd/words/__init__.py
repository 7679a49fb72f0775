# SPDX-License-Identifier: Apache-2.0
"""Floor 0: types, errors, configuration, the subprocess runner and durable files."""
