"""Rules over templates: what is certain to fail, what bash would see wrongly, what lets a value become program text."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..core.template import Reference, problems, references
from ..files.nodes import Map, Mark
from .subject import Finding, StateView, Subject

Findings = Iterator[Finding]

_DEFAULT = re.compile(r"(?<!\$)\$\{[^}]*:-[^}]*\}")
_DOUBLE = re.compile(r"\$\$(?:\(|[A-Za-z_])")
_COUNT_OR_ZERO = re.compile(r"\bgrep\b[^\n|;&()]*\s-[A-Za-z]*c[A-Za-z]*\b[^\n|;&()]*\|\|\s*(?:echo|printf)\s+['\"]?0")
_TRUSTED = frozenset({"run_dir", "promoted_artifact"})
_MARKER = re.compile(r"#[^\n]*?ll-lint:\s*mr11-ok(?P<rest>[^\n]*)")
_MARKER_REST = re.compile(r"\((?P<name>[^()\s]+\.[^()\s]+)\)\s+(?=.*\b[A-Z]+-\d+\b).*\S")
_HEREDOC = re.compile(r"<<-?[ \t]*(?P<quote>['\"])(?P<word>[^'\"\n]+)(?P=quote)[^\n]*\n")
_PYTHON_TEXT = re.compile(r"python3?\s+-c\s+(['\"])")


def _templates(subject: Subject) -> Iterator[tuple[StateView, tuple[str, ...], Map, str]]:
    """(state, path below it, mapping, key) of every text that is rendered and whose failure ends a state."""
    for state in subject:
        for key in ("action", "append_to_messages", "loop", "worktree"):
            if isinstance(state.data.get(key), str):
                yield state, (key,), state.data, key
        evaluate, bindings = state.block("evaluate") or Map(), state.block("with") or Map()
        for key in ("source", "prompt", "target", "previous", "reference", "tolerance", "history_file"):
            if isinstance(evaluate.get(key), str) and not _literal(state, key):
                yield state, ("evaluate", key), evaluate, key
        for key, value in bindings.items():
            if isinstance(value, str):
                yield state, ("with", key), bindings, key


def _literal(state: StateView, key: str) -> bool:
    return (key == "target" and state.evaluator == "output_json") or (
        key == "prompt" and state.evaluator != "llm_structured"
    )


def namespace(subject: Subject) -> Findings:
    for state, steps, data, key in _templates(subject):
        text = data[key]
        for offset, message, hint in problems(text):
            if not _DEFAULT.match(text, offset):
                yield Finding(state.steps(*steps), f"state `{state.name}`: {message}", hint, data.place(key, offset))


def bash_default(subject: Subject) -> Findings:
    for state in subject:
        for match in _DEFAULT.finditer(state.action):
            at = state.data.place("action", match.start())
            message = f"state `{state.name}`: `{match[0]}` is no reference"
            yield Finding(state.steps("action"), message, f"write `$${match[0][1:]}` to leave it to bash", at)


def double_dollar(subject: Subject) -> Findings:
    for state in _shell_states(subject):
        for match in _DOUBLE.finditer(state.action):
            at = state.data.place("action", match.start())
            message = f"state `{state.name}`: bash reads `$$` as its process id: `{match[0]}`"
            yield Finding(state.steps("action"), message, "write one `$`; only `${` is escaped", at)


def count_or_zero(subject: Subject) -> Findings:
    for state in _shell_states(subject):
        for match in _COUNT_OR_ZERO.finditer(state.action):
            at = state.data.place("action", match.start())
            message = f"state `{state.name}`: `grep -c` prints 0 and fails when nothing matches: this prints two lines"
            yield Finding(state.steps("action"), message, "write `|| true` in place of the second 0", at)


def unsafe_place(subject: Subject) -> Findings:
    if not subject.data.get("safe_interpolation"):
        return
    from ..core.quoting import unsafe_places  # here, because only loops that ask for it pay for reading scripts

    for state in _shell_states(subject):
        for offset, message, hint in unsafe_places(state.action):
            at = state.data.place("action", offset)
            yield Finding(state.steps("action"), f"state `{state.name}`: {message}", hint, at)


def _shell_states(subject: Subject) -> Iterator[StateView]:
    return (state for state in subject if state.kind == "shell")


# --- values that become program text ---------------------------------------------------------------------


def raw_interpolation(subject: Subject) -> Findings:
    if subject.data.get("safe_interpolation"):
        return
    for state in _shell_states(subject):
        text = state.action
        spans = _quoted_spans(text)
        allowed = _markers(text)
        for reference in references(text):
            name = ".".join((reference.namespace, *reference.path[:1]))
            if _untrusted(reference) and _bare(text, reference, spans) and not _excused(text, reference, name, allowed):
                message = f"state `{state.name}`: the value of `{reference.text}` becomes shell text"
                hint = f"write `{reference.text[:-1]}:shell}}`, outside quotes"
                at = state.data.place("action", reference.start)
                yield Finding(state.steps("action"), message, hint, at)


def _untrusted(reference: Reference) -> bool:
    first = reference.path[0] if reference.path else ""
    match reference.namespace:
        case "captured":
            return True
        case "prev":
            return first in ("output", "stderr")
        case "context":
            return first not in _TRUSTED and not first.startswith("_")
        case _:
            return False


def _bare(text: str, reference: Reference, spans: list[tuple[int, int]]) -> bool:
    start = reference.start
    line = text[text.rfind("\n", 0, start) + 1 : start]
    inside = any(low <= start < high for low, high in spans)
    return not (reference.shell or line.count("'") % 2 or line.lstrip().startswith("#") or inside)


def _quoted_spans(text: str) -> list[tuple[int, int]]:
    """The bodies of quoted here-documents and of `python3 -c` texts."""
    spans = []
    for match in _HEREDOC.finditer(text):
        end = re.compile(rf"^\t*{re.escape(match['word'])}$", re.MULTILINE).search(text, match.end())
        spans.append((match.end(), end.start() if end else len(text)))
    for match in _PYTHON_TEXT.finditer(text):
        close = text.find(match[1], match.end())
        spans.append((match.end(), close if close >= 0 else len(text)))
    return spans


def _markers(text: str) -> dict[int, set[str]]:
    """Well-formed exemptions: line number (from 0) to the names exempted there."""
    found: dict[int, set[str]] = {}
    for match in _MARKER.finditer(text):
        rest = _MARKER_REST.fullmatch(match["rest"].rstrip())
        if rest is not None and "${" not in match["rest"]:
            found.setdefault(text.count("\n", 0, match.start()), set()).add(_short(rest["name"]))
    return found


def _short(name: str) -> str:
    """An exemption may name the whole path; the first two parts say which value."""
    return ".".join(name.split(".")[:2])


def _excused(text: str, reference: Reference, name: str, allowed: dict[int, set[str]]) -> bool:
    """Whether a marker on the same line, or in the comment lines directly above, names this value."""
    line = text.count("\n", 0, reference.start)
    lines = text.split("\n")
    while True:
        if name in allowed.get(line, ()):
            return True
        line -= 1
        if line < 0 or not lines[line].lstrip().startswith("#"):
            return False


def marker_malformed(subject: Subject) -> Findings:
    for state in _shell_states(subject):
        for match in _MARKER.finditer(state.action):
            if not _MARKER_REST.fullmatch(match["rest"].rstrip()) or "${" in match["rest"]:
                at = state.data.place("action", match.start())
                message = f"state `{state.name}`: an exemption needs a name in parentheses, a reason and a ticket"
                hint = "write `# ll-lint: mr11-ok(context.key) REASON ABC-12`"
                yield Finding(state.steps("action"), message, hint, at)


# --- loops that edit their own harness -------------------------------------------------------------------

_HARNESS = re.compile(
    r"loops/[\w.*${}-]+\.yaml|skills/[^/\s]+/SKILL\.md|agents/[^/\s]+\.md|commands/[^/\s]+\.md"
    r"|\.claude/CLAUDE\.md|\.claude/settings|yaml_state_editor|replace_action"
)
_LLM_JUDGES = frozenset({"llm_structured", "comparator", "contract", "advisor_consult"})


def meta_no_objective_check(subject: Subject) -> Findings:
    edits = any(_HARNESS.search(state.action) for state in subject)
    imports = subject.data.get("import")
    if not edits and not (isinstance(imports, list) and "lib/benchmark.yaml" in imports):
        return
    objective = any(
        state.kind == "human_approval" or (state.evaluator and state.evaluator not in _LLM_JUDGES) for state in subject
    )
    if not objective:
        message = "the loop edits its own harness and no evaluator but a model judges the result"
        yield Finding(
            (), message, "add an `evaluate` that measures, or `meta_self_eval_ok: true`", _first_edit(subject)
        )


def _first_edit(subject: Subject) -> Mark | None:
    return next((state.at("action") for state in subject if _HARNESS.search(state.action)), None)


def skill_not_in_tools(subject: Subject) -> Findings:
    for state in subject:
        tools = state.data.get("tools")
        skill = re.match(r"/ll:([\w-]+)", state.action)
        if skill and isinstance(tools, list) and tools and not any(skill[1] in str(tool) for tool in tools):
            message = f"state `{state.name}`: `tools` lacks the skill `{skill[1]}` that the action calls"
            yield Finding(state.steps("tools"), message)
