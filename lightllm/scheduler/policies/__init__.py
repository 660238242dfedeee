"""The order in which waiting requests are admitted, one policy per module behind one seam."""

from __future__ import annotations

from lightllm.config.settings import SchedulerSettings
from lightllm.scheduler.policies.deadline import EarliestDeadlineFirst
from lightllm.scheduler.policies.keyed import LongestPrefixFirst, Priority, ShortestFirst
from lightllm.scheduler.policies.seam import FirstComeFirstServed, Outlook, Policy
from lightllm.scheduler.policies.vtc import VirtualTokenCounter

__all__ = [
    "EarliestDeadlineFirst",
    "FirstComeFirstServed",
    "LongestPrefixFirst",
    "Outlook",
    "Policy",
    "Priority",
    "ShortestFirst",
    "VirtualTokenCounter",
    "make_policy",
]


def make_policy(settings: SchedulerSettings) -> Policy:
    """The policy that `settings.policy` names."""
    match settings.policy:
        case "fcfs":
            return FirstComeFirstServed()
        case "priority":
            return Priority(settings.ageing)
        case "shortest":
            return ShortestFirst(settings.ageing)
        case "longest_prefix":
            return LongestPrefixFirst(settings.ageing)
        case "deadline":
            return EarliestDeadlineFirst(settings.ttft_target)
        case "vtc":
            return VirtualTokenCounter(settings.vtc_input_weight, settings.vtc_output_weight, settings.tenant_weights)
