"""Flax is making tree mode its default (FLIP 5310): every model is the same program in both modes."""

import json

from tests.models import programs
from tests.scripts import run_script

TREE_MODE = {"NNX_GRAPH_MODE": "false", "NNX_GRAPH_UPDATES": "false"}


def test_the_same_programs_in_tree_mode():
    """So the parity tests, which run in the default mode, hold in the other. Flax reads the mode at import."""
    process = run_script("-m", "tests.models.programs", env=TREE_MODE)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    expected = programs.digests()
    assert len(set(expected.values())) > 15
    assert found == expected
