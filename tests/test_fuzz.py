"""Odd loop files and templates end in complaints: `scripts/fuzz` in small."""

from __future__ import annotations

from pathlib import Path

from fuzzing.inputs import SMALL, Inputs
from fuzzing.reader import Reader, look_at_template, smallest


def test_odd_loop_files_are_valid_or_complained_about(tmp_path: Path) -> None:
    reader, inputs = Reader(tmp_path), Inputs(2026)
    for _ in range(2000):
        reader.look(inputs.next())
    assert min(reader.codes.values()) > 100


def test_odd_templates_are_rendered_or_complained_about() -> None:
    inputs = Inputs(2026)
    for _ in range(3000):
        look_at_template(inputs.template())


def test_a_failing_input_is_made_small() -> None:
    assert smallest(SMALL, lambda data: b"terminal" in data) == b"terminal"
