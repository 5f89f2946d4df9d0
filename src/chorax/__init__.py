"""Collective calls over the modules of an Equinox model, in many lanes at once."""

from typing import TYPE_CHECKING

from . import filters as filters, lanes as lanes
from ._annotations._check import AnnotationError as AnnotationError
from ._calls._assign import assign_state_values as assign_state_values
from ._calls._call import (
    call_all_fns as call_all_fns,
    vmap_call_all_fns as vmap_call_all_fns,
)
from ._calls._explain import explain as explain
from ._calls._explanation import Explanation as Explanation
from ._calls._states import (
    init_all_states as init_all_states,
    reset_all_states as reset_all_states,
    vmap_init_all_states as vmap_init_all_states,
    vmap_reset_all_states as vmap_reset_all_states,
)
from ._deltas._apply import apply_delta as apply_delta, diff as diff
from ._deltas._delta import StateDelta as StateDelta
from ._layers._rules import reset_parameters as reset_parameters
from ._plan._check_annotations import check_annotations as check_annotations
from ._plan._order import call_order as call_order
from ._tree._replace import replace as replace


if TYPE_CHECKING:
    __version__: str
else:
    # A type checker that sees it takes every name for one of chorax.
    from ._attributes import __dir__ as __dir__, __getattr__ as __getattr__

__all__ = [
    "AnnotationError",
    "Explanation",
    "StateDelta",
    "__version__",
    "apply_delta",
    "assign_state_values",
    "call_all_fns",
    "call_order",
    "check_annotations",
    "diff",
    "explain",
    "filters",
    "init_all_states",
    "lanes",
    "replace",
    "reset_all_states",
    "reset_parameters",
    "vmap_call_all_fns",
    "vmap_init_all_states",
    "vmap_reset_all_states",
]
