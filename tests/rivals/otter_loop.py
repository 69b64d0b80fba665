"""Run by the interpreter of the rivals: otter's programmatic grading of several notebooks, in one process.

`python otter_loop.py AUTOGRADER.zip OUT NOTEBOOK...` writes OUT/NAME.json with the points of each.
"""

import json
import sys
from pathlib import Path

from otter.api import grade_submission

autograder, out, *notebooks = sys.argv[1:]
for notebook in map(Path, notebooks):
    results = grade_submission(str(notebook), autograder, quiet=True)
    Path(out, f"{notebook.stem}.json").write_text(json.dumps(results.total))
