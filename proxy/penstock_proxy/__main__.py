"""`python -m penstock_proxy`: a proxy process, started by the supervisor only."""

import sys

from penstock_worker import inherited_state


def main() -> int:
    """Run one proxy process. Returns its exit status."""
    inherited_state.prepare_child()
    from penstock_proxy.runtime import process

    return process.main()


if __name__ == "__main__":
    sys.exit(main())
