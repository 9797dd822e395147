"""Takes a deliverable out of a run's folder: copied whole or not at all, never half."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

import yaml

from ...core.effects import Probed, PromoteArtifact
from ...files.config.settings import Artifacts
from ...files.library import Library

ARTIFACTS = "artifacts"
"""The folder, beside the loops, for deliverables without a place of their own."""
MANIFEST = "manifest.yaml"
_KEYS = frozenset({"name", "version", "renderer", "data_schema", "output"})


def promote(effect: PromoteArtifact, library: Library, settings: Artifacts, run: Path) -> Probed:
    """Copy what the run whose folder is `run` delivers to its place, replacing what is there.

    A file, or in the mode `template` a folder of a page template. Tells its path, relative to the project if it is
    below it.
    """
    project = library.project
    source = Path(effect.run_dir or run / "artifacts") / effect.source
    is_template = effect.mode == "template"
    try:
        wrong = _why_no_template(source) if is_template else _why_no_file(source)
        if wrong:
            return Probed(None, wrong)
        if effect.to:
            target = project / effect.to
        elif is_template:
            target = project / settings.templates_dir / f"{effect.loop}.llat"
        else:
            folder = project / settings.promotion_dir if settings.promotion_dir else library.loops / ARTIFACTS
            target = folder / f"{run.name}{source.suffix}"
        (_copy_folder if is_template else _copy)(source, target)
    except OSError as error:
        return Probed(None, f"{error.filename or source}: {error.strerror}")
    return Probed(str(target.relative_to(project)) if target.is_relative_to(project) else str(target))


def _why_no_file(source: Path) -> str:
    if source.is_dir():
        return f"{source} is a folder"
    return "" if source.exists() else f"there is no {source}"


def _why_no_template(source: Path) -> str:
    """A template is a folder with a manifest, a body to fill in, and data to show it with."""
    if not source.is_dir():
        return f"`artifact_mode: template` needs a folder, which {source} is not"
    try:
        manifest = yaml.safe_load((source / MANIFEST).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return f"{MANIFEST}: {' '.join(str(error).split())}"
    if not isinstance(manifest, dict) or not manifest.keys() >= _KEYS:
        return f"{MANIFEST} needs {', '.join(sorted(_KEYS))}"
    if manifest["renderer"] != "jinja2":
        return f"{MANIFEST}: the renderer must be jinja2"
    if not isinstance(manifest["data_schema"], dict):
        return f"{MANIFEST}: `data_schema` must be a mapping"
    missing = next((glob for glob in ("template.*.j2", "data.json") if not any(source.glob(glob))), None)
    return f"there is no {missing} in {source}" if missing else ""


def _copy_folder(source: Path, target: Path) -> None:
    """Replace a folder by a copy; a cut leaves the old one, the new one or, for a moment, the old one beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    fresh, old = (target.with_name(f".{target.name}.{mark}.{word}") for word in ("new", "old"))
    try:
        shutil.copytree(source, fresh, symlinks=True)
        if target.is_symlink() or target.is_file():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


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
