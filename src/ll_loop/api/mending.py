"""Repairs of loop files.

The parts that write YAML again take long to load: whoever mends imports this module.
"""

from __future__ import annotations

from ..errors import Problem
from ..files.authoring import repairs, restructure
from ..files.authoring.fixes import Fixed, fix

__all__ = ["Fixed", "can_be_mended", "fix"]


def can_be_mended(problem: Problem) -> bool:
    """Whether there may be a repair for a complaint; whether it helps, only `fix` can tell."""
    return problem.rule in repairs.REPAIRS or problem.rule in restructure.STRUCTURAL
