"""`python -m surefoot` is `surefoot`."""

import sys

from surefoot.commands.cli import main

sys.exit(main())
