"""Values of the command line that become tuples."""

import json

import pytest

from tests.scripts import run_script

# Prints the fields that are given on the command line, as the command reads them.
READ = """
import json, sys
from jaxboost.cli import app, config_flag
config = config_flag.define()
def main():
    fields = config_flag.read(config)
    print(json.dumps([fields.data.classes, fields.boost.layers, fields.data.name]))
app.run(main)
"""


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["--config.data.classes=normal,sick"], ["normal", "sick"]),
        (["--config.data.classes", "normal, sick"], ["normal", "sick"]),
        (["--config.data.classes=(normal,sick)"], ["normal", "sick"]),
        (["--config.data.classes='normal','sick'"], ["normal", "sick"]),
        (["--config.data.classes=('one, two', 'three')"], ["one, two", "three"]),
        (["--config.data.classes=it's,that"], ["it's", "that"]),
        (["--config.data.classes=()"], []),
    ],
)
def test_words_for_a_tuple(classes, expected):
    process = run_script("-c", READ, "--config=quickstart", *classes, "--config.boost.layers=1,2")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == [expected, [1, 2], "lidcshapes3d"]


def test_a_text_keeps_its_comma():
    process = run_script("-c", READ, "--config=quickstart", "--config.data.name=a,b")
    assert json.loads(process.stdout)[2] == "a,b"
