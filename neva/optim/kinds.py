"""The kinds of Adam's state, as a checkpoint names them: `optimizer.state.<kind>.<tensor>`."""

from __future__ import annotations

MOMENTS = ("exp_avg", "exp_avg_sq")
MAIN = "fp32_param"
AVERAGE = "average"
"""Also a flag of the groups of an optimizer that has it: a rank may hold shards of none of their parameters."""
STATE = (*MOMENTS, AVERAGE)
"""What `torch.optim` keeps of a parameter, beside the steps taken."""


def stored_as(kind: str) -> str:
    """Returns what stands in front of a tensor's name and its point in a checkpoint."""
    return f"optimizer.state.{kind}"
