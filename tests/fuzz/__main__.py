"""`python -m tests.fuzz N --seed S --processes P`, from the root of the repository."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from fuzz.campaign import main  # noqa: E402

sys.exit(main())
