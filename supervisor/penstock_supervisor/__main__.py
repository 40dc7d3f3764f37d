"""`python -m penstock_supervisor` is `penstock`, where no scripts directory is in PATH."""

import sys

from penstock_supervisor.cli import main

sys.exit(main())
