"""Config files: found by name or path, executed once, with overrides."""

import pytest

from jaxboost.config import get_config, load_config, loading, table
from jaxboost.config.overrides import with_overrides
from jaxboost.errors import UserError
from tests.scripts import REPOSITORY, assert_mistake, run_each, run_inside


def _write(folder, text):
    file = folder / "mine.py"
    file.write_text(text)
    return file


def test_name_path_and_argument():
    assert load_config("quickstart").to_dict() == load_config(str(REPOSITORY / "configs/quickstart.py")).to_dict()
    assert load_config("breastmnist_vits").eval.protocol == "validation"
    assert load_config("breastmnist_vits:reference").eval.protocol == "reference"
    assert load_config(f"{REPOSITORY}/configs/breastmnist_vits.py:reference").eval.protocol == "reference"


def test_packaged_are_those_of_the_checkout():
    assert loading.packaged_names() == sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("quickstart", ("quickstart", None)),
        ("quickstart:", ("quickstart", "")),
        ("pneumollm:m1+reference", ("pneumollm", "m1+reference")),
        ("configs/a.py", ("configs/a.py", None)),
        ("C:/configs/a.py", ("C:/configs/a.py", None)),
        ("configs/a.py:x:y", ("configs/a.py", "x:y")),
    ],
)
def test_argument_behind_the_colon(text, parts):
    assert loading.split_argument(text) == parts


def test_overrides():
    config = load_config("quickstart", **{"train.epochs": 2, "seed": 3, "boost.layers": (1, 2)})
    assert (config.train.epochs, config.seed, config.boost.layers) == (2, 3, (1, 2))
    with pytest.raises(UserError, match=r"unknown config field train\.epoch: did you mean 'epochs'"):
        load_config("quickstart", **{"train.epoch": 2})
    with pytest.raises(UserError, match=r"unknown config field train\.epochs\.more: config\.train\.epochs is a value"):
        load_config("quickstart", **{"train.epochs.more": 2})
    with pytest.raises(UserError, match=r"^config field train is a section: give its fields, such as train\.epochs$"):
        load_config("quickstart", train={"epochs": 2})
    with pytest.raises(UserError, match=r"config field train\.epochs: 'two' has the type str, the field needs int"):
        load_config("quickstart", **{"train.epochs": "two"})


def test_fields_that_refer_to_an_overridden_one_follow_it():
    config = get_config()
    config.boost.control_seed = config.get_ref("seed")
    changed = with_overrides(config, {"seed": 4})
    assert (changed.seed, changed.boost.control_seed) == (4, 4)
    # It is a copy, which is locked too.
    assert (config.seed, config.boost.control_seed) == (0, 0)
    assert changed.is_locked


def test_a_config_is_locked():
    for config in (get_config(), table.get_pneumollm_config(), load_config("quickstart")):
        with pytest.raises(AttributeError, match="optim"):
            config.optimm = 1
        with pytest.raises(AttributeError, match="lr"):
            config.optim.lrr = 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quikstart", "there is no packaged config 'quikstart', did you mean 'quickstart'"),
        ("./quikstart.py", "no such file"),
        ("breastmnist_vits:referense", "unknown argument 'referense': give one of reference, resnet18"),
        ("pneumollm:x", "unknown row 'x': give one of baseline, .*, blip2, reference, or several with"),
        ("pneumollm:m1+m2", "names two rows"),
        ("pneumollm_quickstart:x", "unknown row 'x': give one of baseline, .*, lidc, reference, or several with"),
        ("pneumollm_quickstart:lidc+lidc", "names lidc twice: give it once"),
        ("quickstart:x", r"TypeError: get_config\(\) takes 0 positional"),
    ],
)
def test_configs_that_are_not_there(name, words):
    with pytest.raises(UserError, match=words):
        load_config(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("from configs import gone", "from jaxboost.config import get_config"),
        ("def get_config(:", "SyntaxError: invalid syntax"),
        ("x = 1", "AttributeError: .* has no attribute 'get_config'"),
        ("def get_config():\n    return {}", "get_config returns dict, not a ConfigDict"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
        ("def get_config():\n    assert False", "AssertionError$"),
        ("def get_config():\n    raise RuntimeError('no such GPU')", "RuntimeError: no such GPU$"),
    ],
)
def test_files_that_are_no_config(text, words, tmp_path):
    file = _write(tmp_path, text + "\n")
    with pytest.raises(UserError, match=words) as error:
        load_config(str(file))
    assert str(error.value).startswith(f"config {file}: ")


def test_a_mistake_that_a_config_file_reports_stays_as_it_is(tmp_path):
    file = _write(tmp_path, "from jaxboost.errors import UserError\nraise UserError('set MY_DATA')\n")
    with pytest.raises(UserError, match=r"^set MY_DATA$"):
        load_config(str(file))


def test_rows_of_pneumollm():
    paper, small = load_config("pneumollm"), load_config("pneumollm_quickstart")
    assert load_config("pneumollm:clip_vit_l14").to_dict() == load_config("pneumollm:full").to_dict() == paper.to_dict()
    assert small.model.backbone == "dinov2_s14"
    named = load_config("pneumollm_quickstart:clip_vit_l14")
    for section, fields in (("model", ["backbone"]), ("pneumollm", ["vision", "vision_source", "every"])):
        for field in fields:
            assert named[section][field] == paper[section][field], field
    both = load_config("pneumollm_quickstart:m1+lidc+reference")
    assert (both.pneumollm.count, both.data.name, both.train.loss) == (1, "lidcsilhouettes", "columns")


VALUES = [
    ("train.epochs=abc", "config field train.epochs: 'abc' should be a whole number"),
    ("train.epochs=1.5", "config field train.epochs: '1.5' should be a whole number"),
    ("optim.lr=1e", "config field optim.lr: '1e' should be a number"),
    ("boost.convert=maybe", "config field boost.convert: 'maybe' should be True or False"),
    ("data.shares=(1, 2", "config field data.shares: '(1, 2' should be a tuple"),
    ("train=3", "config field --config.train is a section: give its fields, such as --config.train.epochs"),
]


def test_values_of_a_wrong_type_on_the_command_line():
    commands = [("-m", "jaxboost", "train", "--config=quickstart", f"--config.{text}") for text, _ in VALUES]
    for (_, line), process in zip(VALUES, run_each(commands), strict=True):
        assert (process.returncode, process.stderr, process.stdout) == (2, f"error: {line}\n", "")


def test_the_command_executes_a_config_file_once(tmp_path):
    file = _write(
        tmp_path,
        "import pathlib\nfrom jaxboost.config import table\n\n\ndef get_config():\n"
        f"    with pathlib.Path({str(tmp_path / 'calls')!r}).open('a') as calls:\n        calls.write('called ')\n"
        "    return table.get_config()\n",
    )
    process = run_inside("train.py", f"--config={file}", "--config.train.epochs=0", "--config.seed=-1")
    assert_mistake(process, "seed: -1 should be 0 or more; ", "train.epochs: 0 should be above 0")
    assert (tmp_path / "calls").read_text() == "called "
