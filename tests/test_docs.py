"""README and the documentation name files, configs, fields, extras and flags that exist, and commands that parse."""

import ast
import importlib
import importlib.util
import itertools
import pathlib
import re
import shlex
import tomllib

import pytest
import yaml
from ml_collections import ConfigDict

import jaxboost
from jaxboost.cli import main
from jaxboost.config import table

REPOSITORY = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")],
    key=lambda path: path.name,
)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
# What a clone has at its top level, and what it stands for.
SCRIPTS = {"train.py": "train", "convert_weights.py": "convert"}
# What looks like a field in the section `model`.
NOT_FIELDS = {"model.safetensors"}
PLACEHOLDERS = {"...", "configs/X.py"}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)


def braces(text: str) -> list[str]:
    """`{a,b}c` -> `ac`, `bc`, as a shell expands it."""
    parts = [part.split(",") for part in re.split(r"[{}]", text)]
    # Only every second part was between braces.
    return [
        "".join(words) for words in itertools.product(*(p if i % 2 else [",".join(p)] for i, p in enumerate(parts)))
    ]


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in some languages; "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language in languages]


def commands(text: str) -> list[list[str]]:
    """The commands of a page, each from `jaxboost`, `train.py` or `convert_weights.py` on, as a shell splits them."""
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", outside)]
    lines = [re.sub(r"\\\n\s*", "", shown) for shown in (*blocks(text, "", "bash"), *inline)]
    found = re.findall(r"(?:\bjaxboost|\bpython (?:train|convert_weights)\.py) [a-z-].*", "\n".join(lines))
    return [shlex.split(command.replace("'", ""), comments=True) for command in found]


def load(config: str) -> set[str]:
    """The fields of the config that `--config NAME[:ARGUMENT]` or `--config configs/NAME.py[:ARGUMENT]` names."""
    name, _, argument = config.partition(":")
    module = importlib.import_module(f"configs.{pathlib.PurePath(name).stem}")
    loaded = module.get_config(argument) if argument else module.get_config()
    return {field for field in table.ALL_FIELDS if _has(loaded, field)}


def _has(config: ConfigDict, field: str) -> bool:
    section, _, name = field.rpartition(".")
    return name in (config.get(section, {}) if section else config)


def flags_of(command: str) -> set[str]:
    """The flags of a subcommand of `jaxboost`."""
    modules = (command, "together") if command == "train" else (command,)
    text = "".join((REPOSITORY / "jaxboost" / "cli" / f"{module}.py").read_text("utf-8") for module in modules)
    defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text)
    return {"config", "help", *defined, *(f"no{name}" for name in defined)}


def test_readme_is_short():
    lines = (REPOSITORY / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


@each_page
def test_links_lead_to_files(page):
    text = page.read_text("utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@each_page
def test_named_files_exist(page):
    text = page.read_text("utf-8")
    named = re.findall(r"(?<![\w/.~])(?:configs|docs|jaxboost|benchmarks|tests|examples)/[\w./{},-]*\w", text)
    named += [f"configs/{name}.py" for name in re.findall(r"`([\w{},]*mnist[\w{},]*_[\w{},]+)`", text)]
    paths = {path.rstrip("/.,") for name in named for path in braces(name)}
    assert sorted(path for path in paths if not (REPOSITORY / path).exists()) == []


@each_page
def test_named_fields_exist(page):
    text = page.read_text("utf-8")
    sections = {name.partition(".")[0] for name in table.ALL_FIELDS if "." in name}
    named = set(re.findall(r"--config\.([a-z_.0-9]*[a-z_0-9])", text))
    named |= set(re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_0-9]+)(?=[=`])", text))
    assert named - {*table.ALL_FIELDS} - NOT_FIELDS == set()


def check_command(words: list[str]) -> None:
    """Asserts that a command, as `commands` gives it, has flags, a config and fields that exist."""
    command = words[1] if words[0] == "jaxboost" else SCRIPTS[words[1]]
    assert command in main.COMMANDS, words
    given = [word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")]
    assert {flag for flag in given if not flag.startswith("config.")} <= flags_of(command), words
    name = words[words.index("--config") + 1] if "--config" in words else "..."
    for one in [] if name in PLACEHOLDERS else braces(name):
        fields = load(one)
        assert [flag for flag in given if flag.startswith("config.") and flag[7:] not in fields] == [], words


@each_page
def test_commands_parse(page):
    for words in commands(page.read_text("utf-8")):
        check_command(words)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "examples" / "clusters").iterdir()), ids=lambda path: path.name)
def test_commands_of_the_files_for_clusters_parse(file):
    found = commands(f"```bash\n{file.read_text('utf-8')}\n```")
    assert {words[1] for words in found} & {"train", "study"}
    for words in found:
        check_command(words)


@each_page
def test_extras_groups_and_modules_exist(page):
    text = page.read_text("utf-8")
    assert set(re.findall(r"--extra (\w+)", text)) <= set(PROJECT["project"]["optional-dependencies"])
    assert set(re.findall(r"--group (\w+)", text)) <= set(PROJECT["dependency-groups"])
    for module in re.findall(r"-m ((?:jaxboost|benchmarks)\.[\w.]*\w)", text):
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


@each_page
def test_python_compiles_and_uses_public_names(page):
    for block in blocks(page.read_text("utf-8"), "python"):
        ast.parse(block)
        used = set(re.findall(r"\bjb\.(\w+)", block))
        assert used <= set(getattr(jaxboost, "__all__", used))


def test_page_of_the_config_has_every_field():
    path = REPOSITORY / "docs" / "hooks" / "config_fields.py"
    spec = importlib.util.spec_from_file_location("config_fields", path)
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    assert hook.MARKER in (REPOSITORY / "docs" / hook.PAGE).read_text("utf-8")
    rows = [line for line in hook.tables().splitlines() if line.startswith("| `")]
    assert sorted(re.match(r"\| `([\w.]+)`", row)[1] for row in rows) == sorted(table.ALL_FIELDS)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_citation_has_the_projects_version_and_both_papers():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    papers = [identifier["value"] for paper in citation["references"] for identifier in paper["identifiers"]]
    assert papers == ["arXiv:2403.17343", "arXiv:2312.03490"]


def test_figure_is_svg_with_a_title_and_both_colour_schemes():
    text = (REPOSITORY / "docs" / "figures" / "rllm.svg").read_text("utf-8")
    assert text.startswith("<svg")
    assert "<title" in text
    assert "prefers-color-scheme: dark" in text
