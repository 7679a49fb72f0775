# SPDX-License-Identifier: Apache-2.0
"""The `ostree` host backend. `worker` and what it imports run under the interpreter that has libostree's bindings."""
