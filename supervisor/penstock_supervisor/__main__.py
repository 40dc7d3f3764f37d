"""`python -m penstock_supervisor` is the command `penstock`, for when it is not in PATH."""

import sys

from penstock_supervisor.cli import main

sys.exit(main())
