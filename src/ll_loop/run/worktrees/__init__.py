"""Git worktrees of runs: made, used, put away, with what was changed in them kept."""
