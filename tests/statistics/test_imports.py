"""A mistake in a config is reported before libraries that take seconds to import are needed."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
from jaxboost import statistics
for module in pkgutil.iter_modules(statistics.__path__, "jaxboost.statistics."):
    importlib.import_module(module.name)
slow = ("jax", "pandas", "scipy.optimize", "scipy.stats", "sklearn", "statsmodels")
print([name for name in slow if name in sys.modules])
"""


def test_importing_the_package_imports_no_slow_library():
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
