"""The results of all commands by the command that writes them, with the reports that show them."""

from __future__ import annotations

from bridge.experiments.activations import report as _activations
from bridge.experiments.activations.result import ActivationsResult
from bridge.experiments.align import report as _align
from bridge.experiments.align.result import AlignResult
from bridge.experiments.estimate_aic import report as _estimate_aic
from bridge.experiments.estimate_aic.result import AicResult
from bridge.experiments.finetune import report as _finetune
from bridge.experiments.finetune.result import FinetuneResult
from bridge.experiments.fisher_overlap import report as _fisher_overlap
from bridge.experiments.fisher_overlap.result import FisherOverlapResult
from bridge.experiments.harmfulness import report as _harmfulness
from bridge.experiments.harmfulness.result import HarmfulnessResult
from bridge.experiments.onset import report as _onset
from bridge.experiments.onset.result import OnsetResult
from bridge.experiments.overlap import report as _overlap
from bridge.experiments.overlap.result import OverlapResult
from bridge.experiments.risk import report as _risk
from bridge.experiments.risk.result import RiskResult
from bridge.experiments.spectrum import report as _spectrum
from bridge.experiments.spectrum.result import SpectrumResult
from bridge.experiments.subspaces import report as _subspaces
from bridge.experiments.subspaces.result import EnergyResult, MsoResult, ProjectResult
from bridge.experiments.utility import report as _utility
from bridge.experiments.utility.result import UtilityResult
from bridge.reports.results import Result
from bridge.suites.safety_subspaces import report as _safety_subspaces
from bridge.suites.safety_subspaces.result import SafetySubspacesResult
from bridge.suites.study import report as _study
from bridge.suites.study.result import StudyResult
from bridge.suites.table1 import report as _table1
from bridge.suites.table1.result import TableResult
from bridge.training.pilot import PilotResult

REPORTS = (
    _activations, _align, _estimate_aic, _finetune, _fisher_overlap, _harmfulness, _onset, _overlap, _risk, _spectrum,
    _subspaces, _utility, _safety_subspaces, _study, _table1,
)  # fmt: skip
"""Importing them registers how results are shown (`bridge.reports.results.tables_of`, `pictures_of`)."""

KINDS: dict[str, type[Result]] = {
    "bridge.activations": ActivationsResult,
    "bridge.align": AlignResult,
    "bridge.estimate_aic": AicResult,
    "bridge.finetune": FinetuneResult,
    "bridge.fisher_overlap": FisherOverlapResult,
    "bridge.harmfulness": HarmfulnessResult,
    "bridge.onset": OnsetResult,
    "bridge.overlap": OverlapResult,
    "bridge.risk": RiskResult,
    "bridge.safety_subspaces": SafetySubspacesResult,
    "bridge.spectrum": SpectrumResult,
    "bridge.study": StudyResult,
    "bridge.study, pilot": PilotResult,
    "bridge.subspaces energy": EnergyResult,
    "bridge.subspaces mso": MsoResult,
    "bridge.subspaces project": ProjectResult,
    "bridge.table1": TableResult,
    "bridge.utility": UtilityResult,
}
"""The class of a run's result, by the command in its manifest."""
