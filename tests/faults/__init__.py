# SPDX-License-Identifier: Apache-2.0
"""Faults on booted hosts, many times each: `make faults`."""
