"""Rules of the tests themselves."""

import pathlib
import re

REPOSITORY = pathlib.Path(__file__).parents[1]
# In programs that a test starts too, which are strings.
TEST_MODULE = re.compile(
    r"^\s*(?:from\s+tests[\w.]*\.test_|from\s+tests[\w.]*\s+import\s.*\btest_|import\s+tests[\w.]*\.test_)"
)


def test_no_test_module_is_imported():
    """Helpers are in modules of their own: pytest rewrites and collects test modules, which nothing else may load."""
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for folder in ("tests", "benchmarks", "examples", "jaxboost")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if TEST_MODULE.match(line)
    ]
    assert found == []


def test_each_package_of_the_tests_is_one_of_the_package():
    """`tests/<package>` tests `jaxboost/<package>`; `reference` has other people's models in torch."""
    packages = {path.parent.name for path in (REPOSITORY / "jaxboost").glob("*/__init__.py")}
    assert {path.parent.name for path in (REPOSITORY / "tests").glob("*/__init__.py")} - packages == {"reference"}
