"""`AlignmentMonitor`: a callback of transformers' Trainer that watches a skill while a model is trained."""

from bridge.monitor.callback import AlignmentMonitor

__all__ = ["AlignmentMonitor"]
