"""`python -m penstock_proxy`: a proxy process, started by the supervisor only."""

import sys

from penstock_proxy.runtime.process import main

sys.exit(main())
