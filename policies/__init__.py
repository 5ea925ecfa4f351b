"""Pure decisions: forecasts, orderings, admissions, evictions and the memory projection."""

from policies.admission import ADMISSIONS, Admission
from policies.batch import Floats, Ints, RequestBatch, UnknownLengthError
from policies.bundle import DEFAULT_POLICY, Policy, policy, policy_names
from policies.eviction import EVICTIONS, Eviction, choose_victims, learned_lower
from policies.forecast import DEGREES_OF_FREEDOM, Forecast
from policies.ordering import ORDERINGS, Ageing, Ordering, QueueState, ScoreOrdering, TailOrdering
from policies.projection import MemoryProfile, peak_blocks
from policies.registry import InvalidOptionError, PluginError, Registry, UnknownNameError
from policies.request import Request, RequestClass

__all__ = [
    "ADMISSIONS",
    "DEFAULT_POLICY",
    "DEGREES_OF_FREEDOM",
    "EVICTIONS",
    "ORDERINGS",
    "Admission",
    "Ageing",
    "Eviction",
    "Floats",
    "Forecast",
    "Ints",
    "InvalidOptionError",
    "MemoryProfile",
    "Ordering",
    "PluginError",
    "Policy",
    "QueueState",
    "Registry",
    "Request",
    "RequestBatch",
    "RequestClass",
    "ScoreOrdering",
    "TailOrdering",
    "UnknownLengthError",
    "UnknownNameError",
    "choose_victims",
    "learned_lower",
    "peak_blocks",
    "policy",
    "policy_names",
]
