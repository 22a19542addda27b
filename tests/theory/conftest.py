from __future__ import annotations

import os

from hypothesis import Phase, settings

# a deadline would assert wall time, which depends on what else the machine does
settings.register_profile("theory", deadline=None)
# for mutation testing: few examples, the same for every mutant, and none made simpler once one has failed
settings.register_profile(
    "mutants", deadline=None, max_examples=10, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "theory"))


def pytest_collection_modifyitems(items):
    """Test a mutant with its own module's tests first: they are quick, and the first failure ends the run."""
    mutant = os.environ.get("MUTANT_UNDER_TEST")  # theory.onset.x_phi__mutmut_1
    if mutant:
        module = mutant.split(".")[:-1]
        items.sort(key=lambda item: (item.path.stem.removeprefix("test_") not in module, item.nodeid))
