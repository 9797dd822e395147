"""One loop to run under both engines: its documents, the words of its command line, and the project they live in."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Document = dict[str, Any]
TOP = "top"


@dataclass(frozen=True)
class Case:
    """`loops` are documents by file name (without `.yaml`); the run is that of `top`, with `words` behind its name."""

    loops: dict[str, Document]
    words: list[str] = field(default_factory=list)
    backend: str = "asyncio"

    def to_json(self, expected: Document | None = None) -> str:
        """The case as a file: one line a state and an event, so that a find can be read."""
        lines = [f'"words": {json.dumps(self.words)}, "backend": {json.dumps(self.backend)}, "loops": {{']
        for number, (name, document) in enumerate(self.loops.items()):
            lines.append(f"{',' if number else ''}{json.dumps(name)}: {{")
            lines += _lines(document)
            lines.append("}")
        lines.append("}")
        if expected is not None:
            events = ",\n".join(f"  {json.dumps(event)}" for event in expected["events"])
            rest = {key: value for key, value in expected.items() if key != "events"}
            lines.append(f',"expected": {json.dumps(rest)}, "events": [\n{events}]')
        return "{" + "\n".join([*lines, "}"]) + "\n"

    @classmethod
    def from_json(cls, document: Document) -> Case:
        return cls(document["loops"], document["words"], document.get("backend", "asyncio"))


def _lines(document: Document) -> list[str]:
    lines = []
    for number, (key, value) in enumerate(document.items()):
        comma = "," if number + 1 < len(document) else ""
        if key == "states" and isinstance(value, dict):
            states = [f"  {json.dumps(name)}: {json.dumps(state)}" for name, state in value.items()]
            lines.append('"states": {\n' + ",\n".join(states) + "}" + comma)
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}{comma}")
    return lines


class Projects:
    """Projects for cases: copies of one git repository with one commit. Counters of actions live beside a project."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._template = folder / "template"
        self._template.mkdir()
        (self._template / "seed.txt").write_text("seed\n")
        (self._template / ".gitignore").write_text(".ll/\n")  # what little-loops itself writes there is no progress
        for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "seed"]):
            who = ["-c", "user.name=n", "-c", "user.email=e@example.invalid"]
            subprocess.run(["git", *who, *words], cwd=self._template, check=True)

    def make(self, name: str, case: Case) -> Path:
        """A fresh project `name` with the loops of a case, in place of the last of that name."""
        home = self._folder / name
        shutil.rmtree(home, ignore_errors=True)
        project = home / "project"
        shutil.copytree(self._template, project)
        (project / ".loops").mkdir()
        for loop, document in case.loops.items():
            # JSON is YAML: no writer of YAML stands between the case and the two readers
            text = json.dumps(document, ensure_ascii=False, indent=1)
            (project / ".loops" / f"{loop}.yaml").write_text(text, encoding="utf-8")
        return project
