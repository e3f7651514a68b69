"""RESULTS.md shows what `jaxboost report` finds in the records that are kept in results/."""

import pathlib
import re

import pytest

from jaxboost.reporting import report
from jaxboost.reporting.sections import comparisons
from jaxboost.studies import compare, record

REPOSITORY = pathlib.Path(__file__).parents[1]
# Of studies without a ladder.
TABLES = {"finetuning_breastmnist": ("sweeps",)}
FOLDERS = sorted(path.parent for path in (REPOSITORY / "results").glob(f"*/{record.RECORD}"))


def test_there_are_results():
    assert FOLDERS
    assert sum(path.stat().st_size for path in (REPOSITORY / "results").rglob("*") if path.is_file()) < 5e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_page_shows_what_the_records_say(folder):
    found = record.read(folder)
    assert found.protocol == "validation"
    assert not found.quick
    analysis = compare.analyse(found)
    files = report.contents(analysis, found)
    text = (REPOSITORY / "RESULTS.md").read_text(encoding="utf-8")
    assert analysis["verdict"]["sentence"] in " ".join(text.split())
    for table in TABLES.get(folder.name, ("ladder", "controls")):
        assert files[f"tables/{table}.md"] in text
    assert comparisons.auc_table(analysis).to_markdown() in text
    for name in ("scores", "forest"):
        kept = (folder / "plots" / f"{name}.svg").read_text(encoding="utf-8")
        # All of a plot's numbers are in its text; its lines depend on matplotlib's version.
        label = re.compile(r'aria-label="([^"]*)"')
        assert label.findall(kept) == label.findall(files[f"plots/{name}.svg"])
        assert f"results/{folder.name}/plots/{name}.svg" in text
