"""`python -m vaekern` is `vaekern`."""

import sys

from vaekern.cli import main

sys.exit(main())
