"""`python -m gas_nb`: the command `gas-nb`."""

import sys

from gas_nb.command import main

if __name__ == "__main__":
    sys.exit(main())
