# SPDX-License-Identifier: Apache-2.0
"""Floor 3: jobs, the walk and the state of the running daemon."""
