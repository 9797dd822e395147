"""What belongs to a project: its loops, the folder of its runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..files.config.load import Config, load_config
from ..files.library import Library
from ..run.agents.asking import known_hints


def library_of(project: Path, env: Mapping[str, str] | None = None) -> Library:
    """The loops of a project, checked with an eye on the agent host that runs would ask; `env` says which that is."""
    library, config = Library(project), load_config(project, env)
    library.model_hints = known_hints(os.environ if env is None else env, config.orchestration)
    return library


def runs_of(project: Path | str | None, config: Config | None = None) -> Path:
    """The folder with the runs of a project; `config`, if it is at hand, saves reading it again."""
    folder = Path(project or ".").resolve()
    return folder / (config or load_config(folder)).loops.loops_dir / "runs"
