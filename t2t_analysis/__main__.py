"""``python -m t2t_analysis``."""

import sys

from .cli import main

sys.exit(main())
