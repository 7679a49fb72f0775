# SPDX-License-Identifier: Apache-2.0
"""The throwaway host: a real ostree host, booted without a virtual machine, for `make demo` and for tests/host."""
