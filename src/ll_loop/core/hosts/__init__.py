"""Agent hosts: the command lines of coding agents, as pure adapters."""
