"""``python -m thinktwice``: the same command line where no script is on the path."""

import sys

from thinktwice.cli import main

sys.exit(main())
