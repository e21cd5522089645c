"""tests/shared needs models and texts that are not part of a clone; LQUANT_SHARED names the folder that holds them."""

import os

collect_ignore = [] if os.environ.get("LQUANT_SHARED") else ["shared"]
