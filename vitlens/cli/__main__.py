"""Lets ``python -m vitlens.cli`` do what ``vitlens`` does."""

import sys

from vitlens.cli import main

sys.exit(main())
