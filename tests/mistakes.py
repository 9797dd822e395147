"""The project in which the mistakes of docs/errors.md are made, and what each of them needs besides."""

from __future__ import annotations

import re
from collections.abc import Mapping

HEAD = "name: {0}\ndescription: For a mistake.\nscope: [{0}/]\ninitial: a\n"
DONE = "  done: {terminal: true}\n"


def loop(name: str, *states: str, head: str = "") -> str:
    """A loop with nothing wrong but what its states or its head bring in."""
    return HEAD.format(name) + head + "states:\n" + "".join(f"  {state}\n" for state in states) + DONE


LOOPS: Mapping[str, str] = {
    "ok": loop("ok", 'a: {action: "true", on_yes: done, on_no: done}'),
    "ok-too": loop("ok-too", 'a: {action: "true", on_yes: done, on_no: done}'),
    "syn": HEAD.format("syn") + 'states:\n  a:\n    action: "unclosed\n    next: done\n' + DONE,
    "empty": "",
    "list": "- a\n- b\n",
    "missing": loop("missing", "a: {next: done}").replace("initial: a\n", ""),
    "ghost": loop("ghost", 'a: {action: "true", on_yes: nowhere, on_no: done}'),
    "zz": loop("zz", "a: {next: done}").replace("initial: a", "initial: zz"),
    "typo": loop("typo", 'a: {action: "true", on_sucess: done, on_no: done}', head="max_step: 3\n"),
    "at": loop("at", 'a: {action: "true", action_type: shel, on_yes: done, on_no: done}'),
    "ev": loop("ev", 'a: {action: "true", evaluate: {type: exitcode}, on_yes: done, on_no: done}'),
    "adv": loop("adv", 'a: {action: "true", route: {yes: done, no: done}}'),
    "needs": loop(
        "needs", 'a: {action: "echo ${context.must:shell} ${context.topic:shell}", on_yes: done, on_no: done}'
    ),
    "ns": loop("ns", 'a: {action: "echo ${foo.bar}", on_yes: done, on_no: done}'),
    "required": loop(
        "required",
        'a: {action: "echo ${context.topic:shell} ${context.size:shell}", on_yes: done, on_no: done}',
        head='input_key: topic\nrequired_inputs: [topic]\ncontext: {topic: "", size: 1, loud: false}\n',
    ),
    "sl": loop("sl", 'a: {action: "touch held; exec sleep 60", on_yes: done, on_no: done}').replace("sl/", "ok/sub"),
    "prompt": loop("prompt", "a: {action: Say hello, action_type: prompt, next: done}"),
    "frob": loop("frob", "a: {action: frobnicate, next: done}"),
    "late": loop("late", "a: {action: sleep 9, timeout: 0.1, next: done}"),
    "noroute": loop("noroute", 'a: {action: "false", on_yes: done}'),
    "cap": loop("cap", 'a: {action: "true", on_yes: a, on_no: done}', head="max_steps: 2\n"),
    "slow": loop("slow", 'a: {action: "sleep 0.3", on_yes: a, on_no: done}', head="timeout: 0.2\n"),
    "bad": loop(
        "bad",
        'a: {action: "echo working; echo no space left >&2; exit 1", on_yes: done, on_no: failed}',
        "failed: {terminal: true}",
    ),
    "nap": loop("nap", 'a: {action: "kill -INT $PPID; sleep 9", on_yes: done, on_no: done}'),
}

_VOLATILE = (
    (re.compile(r"^stopping: .*\n", re.MULTILINE), ""),  # only while the end takes its time
    (re.compile(r"\d{8}T\d{6}-([a-z-]+)-[0-9a-f]{8}"), r"20261122T143001-\1-7f3a9c01"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\dZ"), "2026-11-22T14:30:01Z"),
    (re.compile(r"dur=\d+\.\d\ds"), "dur=0.01s"),
    (re.compile(r"\b\d+\.\ds\b"), "0.1s"),
    (re.compile(r"\bpid \d+"), "pid 4711"),
    (re.compile(r"since \S+ \d\d:\d\d:\d\d"), "since 2026-11-22 14:30:01"),
)


def settled(text: str) -> str:
    """A text without what differs from run to run: ids, times, durations, pids."""
    for pattern, instead in _VOLATILE:
        text = pattern.sub(instead, text)
    return text
