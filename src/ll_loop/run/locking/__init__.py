"""Scope locks: in memory, mirrored to disk, and shared with other processes."""
