import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny():
    """The module tools/make_tiny_data.py."""
    path = Path(__file__).parents[3] / "tools" / "make_tiny_data.py"
    spec = importlib.util.spec_from_file_location("make_tiny_data", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
