"""What has been learned of a target: its record in `.ll/learning-tests`, as an exploration leaves it behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml

from ...core.effects import Learned
from ...core.learning import slug
from ...files.config.settings import LearningTests
from .. import files

FOLDER = Path(".ll", "learning-tests")
LONGEST = 1 << 20
_FOR_EVER = LearningTests()


async def read_learning(cwd: Path, target: str, settings: LearningTests = _FOR_EVER) -> Learned:
    """The status that the record of `target` gives in its front matter; none if there is none that still holds."""
    try:
        text = await files.read_text(cwd / FOLDER / f"{slug(target)}.md", limit=LONGEST)
    except OSError as error:
        return Learned(error=str(error.strerror))
    return Learned() if text is None else _learned(text, cwd, settings)


def _learned(text: str, cwd: Path, settings: LearningTests) -> Learned:
    front = _front_matter(text)
    if front is None:
        return Learned(error="it has no front matter between two lines of `---`")
    try:
        known: Any = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return Learned(error=" ".join(str(error).split()))
    status = known.get("status") if isinstance(known, dict) else None
    if status not in ("proven", "refuted", "stale"):
        return Learned(error=f"its status is {status!r}, and not proven, refuted or stale")
    if status == "proven" and settings.enabled and not _holds(known, cwd, settings):
        return Learned()
    return Learned(status)


def _holds(known: Mapping[str, Any], cwd: Path, settings: LearningTests) -> bool:
    """Whether a proof is young enough; one with another version than its package has now is not."""
    days = settings.stale_after_days
    package, version = known.get("proven_package"), known.get("proven_version")
    if settings.version_aware_staleness and package and version:
        now = installed_version(cwd, str(package))
        if now is not None and now != str(version):
            return False
        days *= settings.version_match_backstop_multiplier if now is not None else 1
    made = known.get("date")
    if isinstance(made, str):
        try:
            made = date.fromisoformat(made[:10])
        except ValueError:
            return False
    if isinstance(made, datetime):
        made = made.date()
    return isinstance(made, date) and (datetime.now(UTC).date() - made).days <= days


def installed_version(project: Path, package: str) -> str | None:
    """The version of a package in the project's `node_modules` or virtual environment, else beside ll-loop itself."""
    from importlib import metadata  # costs more than a one-step run may

    try:
        described: Any = json.loads((project / "node_modules" / package / "package.json").read_bytes())
        return str(described["version"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    places = [str(place) for name in (".venv", "venv") for place in project.glob(f"{name}/lib/python*/site-packages")]
    found = next(iter(metadata.distributions(name=package, path=places)), None) if places else None
    try:
        return found.version if found is not None else metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _front_matter(text: str) -> str | None:
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return None
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    return None if end is None else "\n".join(lines[1:end])
