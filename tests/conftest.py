"""Settings for the whole suite: property tests draw the same examples on every machine."""

import importlib.util

import pytest
from hypothesis import HealthCheck, settings

# A regular package of that name anywhere on the path wins over our folder, which has no __init__.py.
_tests = importlib.util.find_spec("tests")
if _tests is not None and _tests.origin is not None:
    pytest.exit(f"found another distribution's tests at {_tests.origin}; do: make setup", returncode=4)

settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")
