"""Run agent loops: finite state machines in YAML whose states are shell commands or prompts."""

__version__ = "0.1.0"
