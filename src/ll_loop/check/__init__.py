"""Rules over a loop: one function a rule, and one tuple that lists them."""

from .rules import RULES, check, excuses
from .subject import Rule, Subject

__all__ = ["RULES", "Rule", "Subject", "check", "excuses"]
