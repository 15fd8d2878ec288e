"""Where the public test data is that stands beside the project; the project commits none of it.

A test that reads it says so: `@pytest.mark.shared_data("data/security/blns.json")`. It is skipped where that is absent,
and `pytest -m shared_data` runs just these. ESL_SHARED_DATA names another place, e.g. for a clone that stands alone.
"""

import os
from pathlib import Path

SHARED = Path(os.environ.get("ESL_SHARED_DATA", Path(__file__).parents[2] / "shared"))
DATA = SHARED / "data"
