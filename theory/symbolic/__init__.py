"""Derivations by computer algebra, from the definitions: nothing here is a typed-in result.

* :mod:`theory.symbolic.expansion` power series of gradient flow and gradient descent, exact quadratic flows;
* :mod:`theory.symbolic.moments`   the utility loss as a series in time, by moments of the log-probabilities;
* :mod:`theory.symbolic.skills`    Gaussian and categorical skills, their Fisher matrix and onset quantities;
* :mod:`theory.symbolic.laws`      the exact quartic law on generic models, and skills that a loss hardly touches;
* :mod:`theory.symbolic.examples`  exactly solvable problems that decide claims of the paper;
* :mod:`theory.symbolic.lora`      low-rank adaptation, order by order in time.

Importing it imports sympy, which takes a while: nothing else in :mod:`theory` does so at its top level.
"""

from theory.symbolic.expansion import (
    STEPS,
    TIME,
    GenericPath,
    descent_series,
    flow_remainder,
    flow_series,
    generic_descent,
    generic_flow,
    quadratic_flow,
)
from theory.symbolic.laws import (
    DescentLaw,
    ImmuneSkill,
    SoftmaxLaw,
    descent_law,
    descent_onset,
    immune_skill,
    softmax_law,
)
from theory.symbolic.lora import LoraExpansion, lora_descent, lora_flow
from theory.symbolic.moments import (
    BinaryPolicy,
    binary_policy,
    derivative_symbols,
    normalisation_identities,
    onset_law,
    utility_loss_coefficients,
)
from theory.symbolic.skills import (
    CategoricalSkill,
    GaussianSkill,
    Onset,
    Problem,
    fisher,
    fisher_derivative,
    onset,
    utility_loss,
)

__all__ = [
    "STEPS",
    "TIME",
    "BinaryPolicy",
    "CategoricalSkill",
    "DescentLaw",
    "GaussianSkill",
    "GenericPath",
    "ImmuneSkill",
    "LoraExpansion",
    "Onset",
    "Problem",
    "SoftmaxLaw",
    "binary_policy",
    "derivative_symbols",
    "descent_law",
    "descent_onset",
    "descent_series",
    "fisher",
    "fisher_derivative",
    "flow_remainder",
    "flow_series",
    "generic_descent",
    "generic_flow",
    "immune_skill",
    "lora_descent",
    "lora_flow",
    "normalisation_identities",
    "onset",
    "onset_law",
    "quadratic_flow",
    "softmax_law",
    "utility_loss",
    "utility_loss_coefficients",
]
