"""The measured verdicts of the reference's example loops, where that folder stands beside the checkout."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ll_loop.files.library import Library

EXAMPLES = Path(__file__).parents[2] / "shared" / "spec" / "examples"

DIFFERENT = {
    "invalid/crash-route-bare-yes-no.yaml": "bare `yes` and `no` are accepted as the words",
}
"""Files with another verdict than the reference's, on purpose. A `null` verdict (its traceback) is an error here."""


OBEYED = ("host-guard", "prompt-size", "doc-unknown-key-host-guard")
"""Files with a key that the reference calls unknown, though it obeys it."""


def _results() -> list[dict[str, Any]]:
    if not EXAMPLES.is_dir():
        return []
    found: list[dict[str, Any]] = json.loads((EXAMPLES / "expected.json").read_text(encoding="utf-8"))["results"]
    return found


MEASURED = {v["rule"] for result in _results() for v in result["violations"] or ()}
"""The rules of the reference that fire on some example; what others say of these files is our own."""

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not beside this checkout")


@pytest.mark.parametrize("result", _results(), ids=lambda result: str(result["file"]))
def test_an_example_gets_the_measured_verdict(result: dict[str, Any], tmp_path: Path) -> None:
    file = EXAMPLES / result["file"]
    library = Library(EXAMPLES, loops_dir=file.parent.name, bundled=tmp_path)
    loop, problems = library.check(str(file))
    found = {(p.rule, p.path) for p in problems if p.severity == "error"}
    if result["file"] in DIFFERENT:
        assert loop is not None
    elif result["valid"] is None:
        assert loop is None
        assert found
    else:
        assert (loop is not None) == result["valid"]
        measured = Counter((v["rule"], v["severity"], v["path"]) for v in result["violations"])
        if file.stem.startswith(OBEYED):
            del measured["doc.unknown-key", "warning", "<root>"]
        assert Counter((p.rule, p.severity, p.path) for p in problems if p.rule in MEASURED) == measured
    assert all(p.line and p.column for p in problems)
