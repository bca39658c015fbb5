"""The few-step flow-matching schedule."""

from .few_step_flow_match import FewStepFlowMatchScheduler

__all__ = ["FewStepFlowMatchScheduler"]
