"""Numbers that no count and no clock can be: infinities, what is no number, and what is too large for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ll_loop.files.keys import EVALUATE, NESTED, STATE, TOP_LEVEL
from ll_loop.files.library import Library

ODD = [".inf", "-.inf", ".nan", "1e308", "9" * 400, "-1", "1.5"]
HEAD = "name: x\ndescription: d\nscope: [s/]\ninitial: a\n"
STATES = "states:\n  a: {{action: 'true', on_yes: b, on_no: b, on_error: b{state}}}\n  b: {{terminal: true}}\n"
BLOCKS = {
    "circuit": "circuit: {{repeated_failure: {{{}}}}}\n",
    "llm": "llm: {{{}}}\n",
    "host_guard": "host_guard: {{{}}}\n",
}


def texts(value: str) -> list[str]:
    """A loop for every place where a number may stand, with this value there."""
    loop = [
        HEAD + f"{key}: {value}\n" + STATES.format(state="") for key in sorted(TOP_LEVEL - {"states", "name", "flow"})
    ]
    inner = {"circuit": "circuit.repeated_failure", "llm": "llm", "host_guard": "host_guard"}
    for name, block in BLOCKS.items():
        keys = sorted(NESTED[inner[name]])
        loop += [HEAD + block.format(f"{key}: {value}") + STATES.format(state="") for key in keys]
    states = [f"{key}: {value}" for key in sorted(STATE)]
    states += [
        f"{name}: {{{key}: {value}}}" for name in ("throttle", "cost_ceiling") for key in NESTED[f"states.*.{name}"]
    ]
    states += [f"rate_limit_long_wait_ladder: [{value}]", f"retryable_exit_codes: [{value}]"]
    kinds = ("output_numeric", "convergence", "score_stall", "classify", "action_stall")
    states += [f"evaluate: {{type: {kind}, {key}: {value}}}" for kind in kinds for key in sorted(EVALUATE - {"type"})]
    return loop + [HEAD + STATES.format(state=f", {state}") for state in states]


@pytest.mark.parametrize("value", ODD, ids=lambda value: value[:8])
def test_an_odd_number_is_read_or_complained_about_wherever_it_stands(tmp_path: Path, value: str) -> None:
    for number, text in enumerate(texts(value)):
        (tmp_path / f"l{number}.yaml").write_text(text)
    library = Library(tmp_path, loops_dir=".", bundled=tmp_path)
    for number, text in enumerate(texts(value)):
        loop, problems = library.check(f"l{number}")
        assert (loop is None) == any(problem.severity == "error" for problem in problems), text
        assert all(problem.line and problem.message for problem in problems), text


@pytest.mark.parametrize("value", [".inf", ".nan"])
@pytest.mark.parametrize("key", ["timeout", "max_retries", "throttle", "rate_limit_backoff_base_seconds"])
def test_a_limit_has_to_be_a_finite_number(tmp_path: Path, key: str, value: str) -> None:
    block = f"{{hard_max: {value}}}" if key == "throttle" else value
    (tmp_path / "x.yaml").write_text(HEAD + STATES.format(state=f", {key}: {block}"))
    assert Library(tmp_path, loops_dir=".", bundled=tmp_path).check("x")[0] is None
