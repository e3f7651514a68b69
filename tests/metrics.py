"""The records of metrics.jsonl, as tests compare them."""

import json
import pathlib
from typing import Any

TIMES = ("seconds", "images_per_second")


def records(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The records of the run in `folder` without times, and without those that note lost time alone."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [{name: value for name, value in line.items() if not name.startswith(TIMES)} for line in lines]
    return [record for record in found if record.keys() > {"step"}]
