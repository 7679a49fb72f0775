# SPDX-License-Identifier: Apache-2.0
"""Floor 4: lashctl, the door for people."""
