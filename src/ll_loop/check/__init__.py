"""Rules over a loop: one function a rule, and one tuple that lists them."""

from .rules import LOADING, RULES, check, excuses
from .subject import Rule, Subject

__all__ = ["LOADING", "RULES", "Rule", "Subject", "check", "excuses"]
