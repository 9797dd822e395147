"""Takes a deliverable out of a run's folder: copied whole or not at all, never half."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from ..core.effects import Probed, PromoteArtifact
from ..files.library import Library

ARTIFACTS = "artifacts"
"""The folder, beside the loops, for deliverables without a place of their own."""


def promote(effect: PromoteArtifact, library: Library, run: Path) -> Probed:
    """Copy the file of the run whose folder is `run` to its place, replacing what is there.

    Tells its path, relative to the project if it is below it.
    """
    project = library.project
    source = Path(effect.run_dir or run / "artifacts") / effect.source
    if effect.mode != "file":
        return Probed(None, f"artifact_mode `{effect.mode}` is not available in this version")
    if source.is_dir():
        return Probed(None, f"{source} is a folder")
    target = project / effect.to if effect.to else library.loops / ARTIFACTS / f"{run.name}{source.suffix}"
    try:
        _copy(source, target)
    except FileNotFoundError:
        return Probed(None, f"there is no {source}")
    except OSError as error:
        return Probed(None, f"cannot write {target}: {error.strerror}")
    return Probed(str(target.relative_to(project)) if target.is_relative_to(project) else str(target))


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as data:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as copy:
                shutil.copyfileobj(data, copy)
                copy.flush()
                os.fsync(copy.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
