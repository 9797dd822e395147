"""Loops made at random: everything that a shell loop can say, with actions that print and exit by a script.

What ll-loop does differently on purpose (docs/compatibility.md) is not generated, or told apart in `reasons`:

* no failure texts (`429`, `forbidden`, ...) and at most 11 steps, since texts and throttles are opt-in here
* markers (`LOOP_STOP:`) in the run's own loop only, `$current` in verdict routes only
* no references to the run folder, whose name is another
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

from .case import TOP, Case, Document

T = TypeVar("T")
Draw = Any
"""What hypothesis hands to a composite strategy."""

OUTPUTS = (
    "", "ok", "3", "7", "2.5", "-1e1", "  pad  ", "yes", "no", "a=1 b=2", "score=4 score = 9", "cannot_judge",
    '{"a": {"b": [1, 2]}, "n": 3}', '{"n": "3", "t": true}', '{"isError": true}', "[1, 2]", "nan",
    "one\ntwo\n\n  three", "tail\n\n", "\u00e9t\u00e9", "it's", '"q"', "back\\slash", "$HOME", "a\tb", "done", "b",
    "${context.x}", "*", "partial", "blocked", "error", "timeout", "_", "yes_uncertain", "cannot_judge_uncertain",
    "dos\r\nends\r\n", "10%\r20%", "\r", "  3\r\n\r\n", "x\x0cy\x1cz\u2028w",
)  # fmt: skip
CODES = (0, 0, 0, 0, 0, 1, 1, 2, 3, 7, 124, 127)
MARKED = ("LOOP_STOP: enough", "say FATAL_ERROR: boom", "CONTEXT_HANDOFF: later on")
REFERENCES = (
    "${context.x}", "${context.n}", "${context.deep.er}", "${context.gone:default=d}", "${context.gone?}",
    "${captured.k.output}", "${captured.k.exit_code}", "${captured.k.output:default=none}", "${captured.j.stderr?}",
    "${captured.k.verdict}", "${captured.k.failure_type:default=f}", "${captured.k.timeout_kind?}", "${prev.output}",
    "${prev.exit_code}", "${prev.state:default=first}", "${state.name}", "${state.iteration}", "${loop.name}",
    "${messages}", "${messages.last(2)}", "${messages.output}", "${env.TZ}", "${env.NO_SUCH_NAME?}", "${param.p}",
    "${param.q:default=7}", "${captured.s2.terminated_by:default=never}", "${captured.s1.k.output:default=none}",
    "${context.x:shell}", "${context.list}", "${context.flag}", "${context.nothing}", "$${NAME:-x}",
    "${context.input?}", "${captured.k.output:shell:default=a b}", "${prev.output:shell}", "${result.verdict?}",
    "${nowhere.x?}",
)  # fmt: skip
SAFE = tuple(one for one in REFERENCES if "?" in one or ":default=" in one or one.startswith(("${state", "${loop")))
WORDS = ("yes", "no", "error", "partial", "blocked", "ok", "3", "done", "b", "cannot_judge", "timeout", "target")
ENDS: Document = {"done": {"terminal": True}, "failed": {"terminal": True}}


def often(draw: Draw) -> bool:
    return bool(draw(st.integers(0, 9)) < 8)


def rarely(draw: Draw, percent: int = 15) -> bool:
    # written so that a shrunk example has none of what is rare
    return bool(draw(st.integers(0, 99)) >= 100 - percent)


def one(draw: Draw, values: Sequence[T]) -> T:
    value: T = draw(st.sampled_from(values))
    return value


# --- actions -----------------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    """Text as one shell word, in a template: a literal `${` is escaped."""
    return "'" + text.replace("'", "'\\''").replace("${", "$${") + "'"


def _visit(draw: Draw, *, markers: bool) -> str:
    """What an action does in one visit."""
    parts = []
    if often(draw):
        output = one(draw, MARKED) if markers and rarely(draw, 3) else one(draw, OUTPUTS)
        parts.append(f"printf '%s' {_quoted(output)}" if rarely(draw, 30) else f"echo {_quoted(output)}")
    if rarely(draw, 25):
        reference = one(draw, SAFE if often(draw) else REFERENCES)
        parts.append(f"echo {reference}" if reference.endswith(":shell}") else f'echo "<{reference}>"')
    if rarely(draw, 10):
        parts.append("echo oops >&2")
    if rarely(draw, 10):
        parts.append('echo "$n" >> tree.txt')
    if rarely(draw, 5):
        parts.append(f"echo {one(draw, OUTPUTS[2:6])} >> history.txt")
    code = one(draw, CODES)
    parts.append(one(draw, ("kill -9 $$", "kill -TERM $$")) if rarely(draw, 3) else f"exit {code}")
    return "; ".join(parts)


def action(draw: Draw, key: str, *, markers: bool) -> str:
    """A script that counts its visits beside the project and does in each what was drawn for it."""
    visits = [_visit(draw, markers=markers) for _ in range(draw(st.integers(1, 3)))]
    count = f"n=0; [ -f ../n-{key} ] && read n < ../n-{key}; echo $((n+1)) > ../n-{key}\n"
    if len(visits) == 1:
        return (count if "$n" in visits[0] else "") + visits[0]
    cases = "".join(f"{number}) {visit};;\n" for number, visit in enumerate(visits[:-1]))
    return f"{count}case $n in\n{cases}*) {visits[-1]};;\nesac"


# --- evaluators --------------------------------------------------------------------------------------------


def evaluator(draw: Draw) -> Document:
    block: Document = one(draw, EVALUATORS)(draw)
    if rarely(draw):
        block["source"] = one(draw, REFERENCES)
    return block


def _exit_code(draw: Draw) -> Document:
    return {"type": "exit_code", **({"abstain_on_exit_3": True} if often(draw) else {})}


def _numeric(draw: Draw) -> Document:
    block: Document = {"type": "output_numeric", "operator": one(draw, ("eq", "ne", "lt", "le", "gt", "ge"))}
    block["target"] = one(draw, (3, 2.5, 0, -10, "${context.n}", "${captured.k.output:default=3}", "${context.x}", "4"))
    return {**block, "key": one(draw, ("score", "a", "b"))} if rarely(draw, 30) else block


def _json(draw: Draw) -> Document:
    path = one(draw, (".n", "n", "a.b.1", "a.b", "t", ".", "0", "a.b.5", "a.b.-1"))
    target = one(draw, (3, 2, "3", True, [1, 2], None, "${context.n}"))
    return {"type": "output_json", "path": path, "operator": one(draw, ("eq", "ne", "lt", "ge")), "target": target}


def _contains(draw: Draw) -> Document:
    block: Document = {"type": "output_contains", "pattern": one(draw, ("ok", "^o", "s$", "[", "", "t.*e", "(?i)OK"))}
    if rarely(draw, 30):
        block["negate"] = True
    return {**block, "error_patterns": ["no", "q"]} if rarely(draw, 30) else block


def _classify(draw: Draw) -> Document:
    line = one(draw, (None, "first", "last", 0, 1, -1, -2, 5, "middle"))
    return {"type": "classify", **({} if line is None else {"line": line})}


def _convergence(draw: Draw) -> Document:
    block: Document = {"type": "convergence", "target": one(draw, (3, 0, 100, "${context.n}", "${context.x}"))}
    for key, values in (
        ("direction", ("minimize", "maximize")),
        ("tolerance", (0, 0.5, 1, "${context.n}", "${captured.k.output}")),
        ("previous", ("${captured.j.output}", "${captured.k.output}", "${prev.output}")),
        ("reference", (5, "${context.n}", "${captured.j.output}")),
    ):
        if rarely(draw, 40):
            block[key] = draw(st.sampled_from(values))
    return block


def _diff_stall(draw: Draw) -> Document:
    block: Document = {"type": "diff_stall", "max_stall": one(draw, (1, 2))}
    return (
        {**block, "scope": one(draw, (["tree.txt"], ["nowhere"], ["seed.txt", "tree.txt"]))} if rarely(draw) else block
    )


def _score_stall(draw: Draw) -> Document:
    block: Document = {"type": one(draw, ("score_stall", "open_question_stall")), "history_file": "history.txt"}
    return {**block, "max_stall": one(draw, (1, 2)), "epsilon": one(draw, (0, 0.5, 2))} if rarely(draw, 50) else block


def _action_stall(draw: Draw) -> Document:
    # a whole capture tells how long the action took, which no two engines agree on
    track = one(
        draw,
        (["prev"], ["context.x"], ["captured.k.output"], ["captured.k.exit_code"], ["action"], ["prev.output", "x"]),
    )
    return {"type": "action_stall", "track": track, "max_repeat": one(draw, (1, 2))}


def _bare(name: str) -> Any:
    return lambda draw: {"type": name}


EVALUATORS = (
    _exit_code, _exit_code, _numeric, _numeric, _json, _contains, _contains, _classify, _classify, _convergence,
    _diff_stall, _score_stall, _action_stall, _bare("mcp_result"), _bare("harbor_scorer"),
)  # fmt: skip


# --- states ------------------------------------------------------------------------------------------------


def routes(draw: Draw, names: Sequence[str]) -> Document:
    """The way out of a state that judges or goes on."""
    shape = one(draw, ("on", "on", "on", "next", "route"))
    if shape == "next":
        straight = {"next": one(draw, names)}
        return {**straight, "on_error": one(draw, names)} if rarely(draw, 50) else straight
    current = (*names, *names, "$current")
    if shape == "route":
        verdicts = draw(st.lists(st.sampled_from(("yes", "no", "_", "_error", *WORDS)), min_size=1, max_size=5))
        table = {verdict: one(draw, current) for verdict in verdicts}
        return {"route": table, **({"on_error": one(draw, names)} if rarely(draw) else {})}
    keys = [key for key in ("on_yes", "on_no", "on_error") if often(draw)]
    if set(keys) <= {"on_error"}:
        keys.append("on_yes")
    keys += [f"on_{word}" for word in draw(st.lists(st.sampled_from(WORDS), max_size=2))]
    found: Document = {key: one(draw, current) for key in keys}
    if rarely(draw, 8):
        found = {{"on_yes": "on_success", "on_no": "on_failure"}.get(key, key): found[key] for key in found}
    return found


def state(draw: Draw, loop: str, name: str, names: Sequence[str], kids: Sequence[str], fragments: bool) -> Document:
    if kids and rarely(draw, 30):
        return _sub_loop(draw, names, kids)
    made: Document = {}
    if often(draw):
        made["action"] = action(draw, f"{loop}-{name}", markers=loop == TOP)
        if often(draw):
            made["action_type"] = "shell"
    if fragments and rarely(draw, 35):
        made["fragment"] = one(draw, ("judged", "with_p", "acting"))
        if made["fragment"] == "with_p":
            made["with"] = {"p": one(draw, ("v", "${context.x}", "${captured.k.output}", "it's"))}
            if rarely(draw, 40):
                made["with"]["q"] = one(draw, ("w", "${state.name}"))
    if rarely(draw, 40):
        made["evaluate"] = evaluator(draw)
    made |= routes(draw, names)
    if "on_error" in made and rarely(draw, 12):
        made["retryable_exit_codes"] = one(draw, ([1], [2, 3], [124]))
    return made | _options(draw, names)


def _options(draw: Draw, names: Sequence[str]) -> Document:
    made: Document = {}
    if rarely(draw, 30):
        made["capture"] = one(draw, ("k", "k", "j"))
    if rarely(draw, 10):
        made["append_to_messages"] = one(
            draw, ("said ${captured.k.output:default=nothing}", "${prev.output}", "at ${state.name}")
        )
    if rarely(draw):
        made |= {"max_retries": draw(st.integers(1, 2)), "on_retry_exhausted": one(draw, names)}
    if rarely(draw, 8):
        made["throttle"] = {"normal_max": 1, "warn_max": 2, "hard_max": draw(st.integers(3, 4))}
        if often(draw):
            made["on_throttle_hard"] = one(draw, names)
    return made


def _sub_loop(draw: Draw, names: Sequence[str], kids: Sequence[str]) -> Document:
    made: Document = {"loop": one(draw, (*kids, *kids, "${context.kid}" if "kid" in kids else kids[0]))}
    match draw(st.integers(0, 3)):
        case 1:
            made["context_passthrough"] = True
        case 2:
            made["with"] = {"x": one(draw, ("bound", "${context.n}", "${captured.k.output}", 5)), "w": "more"}
    made |= {key: one(draw, names) for key in ("on_yes", "on_no", "on_error", "on_timeout") if often(draw)}
    if "on_yes" not in made and "on_no" not in made:
        made["on_yes"] = one(draw, names)
    return {**made, "capture": "sub"} if rarely(draw) else made


# --- loops -------------------------------------------------------------------------------------------------


def loop(draw: Draw, name: str, kids: Sequence[str], most: int) -> Document:
    own = [f"s{number}" for number in range(1, draw(st.integers(1, most)) + 1)]
    fragments = name == TOP and rarely(draw, 25)
    # the next state is the likeliest target, so that loops come to their end
    states: Document = {}
    for number, key in enumerate(own):
        following = own[number + 1] if number + 1 < len(own) else "done"
        targets = (following, following, "done", *own, "failed")
        states[key] = state(draw, name, key, targets, kids, fragments)
    document: Document = {
        "name": name,
        "description": "Made at random.",
        "scope": [name],
        "initial": own[0],
        "context": {
            "x": "v w",
            "n": 4,
            "kid": "kid",
            "flag": True,
            "list": [1, "a"],
            "deep": {"er": 1.5},
            "nothing": None,
        },
        "max_steps": draw(st.integers(2, 11)),
    }
    document |= _limits(draw, own)
    if name == TOP:
        document |= _inputs(draw)
    if fragments:
        document["import"] = ["lib.yaml"]
    document["states"] = {**states, **_ends(draw, own)}
    return document


def _inputs(draw: Draw) -> Document:
    made: Document = {}
    if rarely(draw, 20):
        parameters: Document = {"x": {"type": "string", "default": "of a parameter"}}
        parameters |= {"extra": {"type": "integer", "default": 5}, "must": {"type": "string", "required": True}}
        made["parameters"] = {key: parameters[key] for key in parameters if rarely(draw, 60)}
    if rarely(draw, 10):
        made["input_key"] = one(draw, ("x", "gone"))
    if rarely(draw, 5):
        made["required_inputs"] = [one(draw, ("x", "input"))]
    return made


def _limits(draw: Draw, own: Sequence[str]) -> Document:
    made: Document = {}
    if rarely(draw, 12):
        made["on_max_steps"] = one(draw, (*own, "done"))
    if rarely(draw, 15):
        made["maintain"] = True
        made["max_iterations"] = draw(st.integers(1, 3))
        if rarely(draw, 30):
            made["on_max_iterations"] = one(draw, (*own, "failed"))
    if rarely(draw, 12):
        made["max_edge_revisits"] = draw(st.integers(1, 3))
    if rarely(draw, 15):
        made["circuit"] = {"repeated_failure": _circuit(draw, own)}
    return made


def _circuit(draw: Draw, own: Sequence[str]) -> Document:
    block: Document = {"window": draw(st.integers(2, 3))}
    if rarely(draw, 30):
        block["recurrent_window"] = draw(st.integers(2, 4))
    if rarely(draw, 50):
        block["on_repeated_failure"] = one(draw, (*own, "failed", "abort"))
    if rarely(draw, 40):
        block["progress_paths"] = ["tree.txt", "${context.gone}"]
    return block


def _ends(draw: Draw, own: Sequence[str]) -> Document:
    done: Document = {"terminal": True}
    if rarely(draw, 10):
        done["action"] = "echo the end"
    if rarely(draw, 20):
        done["on_maintain"] = one(draw, own)
    failed: Document = {"terminal": True, **({"failure": False} if rarely(draw, 10) else {})}
    return {"done": done, "failed": failed}


LIBRARY: Document = {
    "fragments": {
        "judged": {"description": "judges", "evaluate": {"type": "output_contains", "pattern": "ok"}},
        "with_p": {
            "parameters": {"p": {"type": "string", "required": True}, "q": {"type": "string", "default": "of q"}},
            "action": 'echo "${param.p} ${param.q}"',
            "action_type": "shell",
        },
        "acting": {"action": "echo from a fragment; exit 1", "action_type": "shell", "capture": "k"},
    }
}


@st.composite
def cases(draw: Draw) -> Case:
    kids = ("kid",) if rarely(draw, 35) else ()
    grandkids = ("grandkid",) if kids and rarely(draw, 25) else ()
    documents = {TOP: loop(draw, TOP, kids, 4)}
    if kids:
        documents["kid"] = loop(draw, "kid", grandkids, 3)
    if grandkids:
        documents["grandkid"] = loop(draw, "grandkid", (), 2)
    if "import" in documents[TOP]:
        documents["lib"] = LIBRARY
    if rarely(draw, 12):
        _inherit(draw, documents)
    elif rarely(draw, 8):
        _flow(draw, documents[TOP])
    return Case(documents, _words(draw), one(draw, ("asyncio", "trio")))


def _inherit(draw: Draw, documents: dict[str, Document]) -> None:
    """Move a part of the loop into a parent."""
    top = documents[TOP]
    parent = {key: top[key] for key in top if key in ("context", "max_steps", "description") or rarely(draw, 30)}
    states = top["states"]
    moved = [name for name in states if rarely(draw, 50)]
    parent |= {"name": "base", "states": {name: states[name] for name in moved}}
    documents["base"] = parent
    kept = {key: top[key] for key in top if key == "name" or key not in parent}
    documents[TOP] = {**kept, "from": "base", "states": {name: states[name] for name in states if name not in moved}}


def _flow(draw: Draw, top: Document) -> None:
    """Write the states as a flow, which gives them their ways out."""
    states = top.pop("states")
    names = list(states)
    conditional = [f"{name}?{one(draw, names)}:{one(draw, names)}" if rarely(draw, 30) else name for name in names]
    top["flow"] = conditional
    top["state_defs"] = states


def _words(draw: Draw) -> list[str]:
    words: list[str] = []
    if rarely(draw, 20):
        words.append(one(draw, ("plain text", '{"x": "from json"}', '{"unknown": 1}', "[1]", "")))
    if rarely(draw, 20):
        words += ["--context", one(draw, ("x=given", "n=7", "n=many", "flag=false", "new=1", "x=a=b"))]
    if rarely(draw, 10):
        words += ["--max-steps", str(draw(st.integers(1, 9)))]
    return words
