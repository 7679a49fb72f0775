# SPDX-License-Identifier: Apache-2.0
"""`python -m lashd.cli` is lashctl."""

import sys

from lashd.cli.main import main

sys.exit(main())
