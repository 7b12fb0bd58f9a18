"""``python -m thinktwice``: the same command line, for when the script is not on the path."""

import sys

from thinktwice.cli import main

sys.exit(main())
