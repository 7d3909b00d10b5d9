"""Run the console command from the source: `python -m llava VERB ...`."""

import sys

from llava.commands import main

sys.exit(main())
