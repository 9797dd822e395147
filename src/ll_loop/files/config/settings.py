"""The keys of `.ll/ll-config.json` that have an effect, as types: a section is a class, a key one line in it.

A line says the key's type, its default and what it does. Reading, complaints and `ll-loop config` follow from it, and
docs/config.md is checked against it. Keys that are known but do nothing (yet) are in `later`: one that gets its feature
moves here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

Section = TypeVar("Section", bound=Struct)

Words = tuple[str, ...]
Text = Annotated[str, Meta(min_length=1)]
Number = Annotated[float, Meta(ge=0, le=10**9)]
Seconds = Number
SomeSeconds = Annotated[float, Meta(ge=1, le=10**9)]
Positive = Annotated[int, Meta(ge=1)]


def does(effect: str) -> Meta:
    """What a key does, in a few words."""
    return Meta(description=effect)


class RunDefaults(Struct, frozen=True):
    include: Annotated[str, does("context value `include`, unless empty")] = ""
    delay: Annotated[Seconds | None, does("pause between steps in seconds, in place of the loop's `backoff`")] = None


class Loops(Struct, frozen=True):
    loops_dir: Annotated[Text, does("folder of loops and of all that runs leave, in the project")] = ".loops"
    queue_wait_timeout_seconds: Annotated[
        SomeSeconds, does("how long a run that queues waits for runs of other processes")
    ] = 86400
    run_defaults: RunDefaults = RunDefaults()


class ConfidenceGate(Struct, frozen=True):
    readiness_threshold: Annotated[int, does("context value `readiness_threshold`")] = 85
    outcome_threshold: Annotated[int, does("context value `outcome_threshold`")] = 65


class RateLimits(Struct, frozen=True):
    circuit_breaker_enabled: Annotated[bool, does("processes tell each other of rate limits")] = True
    circuit_breaker_path: Annotated[Text, does("the file in which they do")] = ".loops/tmp/rate-limit-circuit.json"


class Commands(Struct, frozen=True):
    confidence_gate: ConfidenceGate = ConfidenceGate()
    rate_limits: RateLimits = RateLimits()


class Automation(Struct, frozen=True):
    worktree_base: Annotated[Text | None, does("folder of worktrees, in the project; else beside the repository")] = (
        None
    )
    max_continuations: Annotated[
        Annotated[int, Meta(ge=0)], does("how often a run goes on by itself after a handoff (`on_handoff: spawn`)")
    ] = 3


class Parallel(Struct, frozen=True):
    base_branch: Annotated[
        str | None, does("branch that patch checks compare with; else `main` or `master`, else the last commit")
    ] = None
    worktree_copy_files: Annotated[Words, does("what is copied into a worktree, by paths in the project")] = (
        ".env",
        ".claude/settings.local.json",
        ".ll/ll.local.md",
    )


class Hitl(Struct, frozen=True):
    channel: Annotated[
        Literal["terminal", "eventbus"], does("`eventbus`: questions to a person wait also where there is no terminal")
    ] = "terminal"
    default_timeout: Annotated[Seconds, does("how long a question to a person waits whose state has no `timeout`")] = (
        1800
    )


class Cli(Struct, frozen=True):
    color: Annotated[bool, does("colour on terminals")] = True


class Orchestration(Struct, frozen=True):
    host_cli: Annotated[str | None, does("agent CLI for prompts; else the first found on PATH")] = None
    model_hints: Annotated[
        Mapping[str, Mapping[str, str | bool]], does("models by host and hint, as `{codex: {coding: gpt-5}}`")
    ] = msgspec.field(default_factory=dict)
    host_env: Annotated[Words, does("variables that hosts get beyond the usual ones, as names or patterns")] = ()
    stagger_ms: Annotated[Number, does("milliseconds between the starts of two hosts")] = 250
    memory_limit_pct: Annotated[Number, does("no host is started while so much memory is used; 100 for no limit")] = 95
    linger_seconds: Annotated[
        Number, does("seconds that a host has to exit after its result, as agents of it may work on")
    ] = 300


class Advisor(Struct, frozen=True):
    enabled: Annotated[bool, does("`advisor_consult` asks a model")] = False
    host: Annotated[str | None, does("which host it asks")] = None
    model: Annotated[str, does("which model it asks")] = "opus"


class Artifacts(Struct, frozen=True):
    promotion_dir: Annotated[
        Text | None, does("folder of deliverables, in the project; else `artifacts` among the loops")
    ] = None
    templates_dir: Annotated[Text, does("folder of deliverables that are templates, in the project")] = (
        "artifacts/templates"
    )


class LearningTests(Struct, frozen=True):
    enabled: Annotated[bool, does("what was learned holds for a time only")] = False
    stale_after_days: Annotated[Positive, does("for how many days it holds")] = 30
    version_aware_staleness: Annotated[
        bool, does("it holds longer while its package has the version that it was learned with, and not for another")
    ] = True
    version_match_backstop_multiplier: Annotated[Positive, does("how many times as long it then holds")] = 12


class PrepatchCheck(Struct, frozen=True):
    enabled: Annotated[bool, does("`false`: no patch is checked, whatever loops say")] = True
    timeout_s: Annotated[SomeSeconds, does("how long one test file may take")] = 300
    modified_hard: Annotated[bool, does("changed test files must fail without the patch, too, not only new ones")] = (
        False
    )


class ProjectTests(Struct, frozen=True):
    test_cmd: Annotated[Text | None, does("command that runs the test file named after it; else pytest")] = None
    test_patterns: Annotated[Words, does("globs of test files, for guards, in place of their own notion")] = ()


class Settings(Struct, frozen=True):
    """The values of all keys that have an effect."""

    loops: Loops = Loops()
    commands: Commands = Commands()
    automation: Automation = Automation()
    parallel: Parallel = Parallel()
    orchestration: Orchestration = Orchestration()
    advisor: Advisor = Advisor()
    hitl: Hitl = Hitl()
    artifacts: Artifacts = Artifacts()
    learning_tests: LearningTests = LearningTests()
    prepatch_check: PrepatchCheck = PrepatchCheck()
    project: ProjectTests = ProjectTests()
    cli: Cli = Cli()


class KeyInfo(Struct, frozen=True):
    """One key: its dotted name, its type for `msgspec.convert`, its default, its effect, and whether it works yet."""

    name: str
    type: Any
    default: Any
    effect: str
    works: bool = True


def keys_of(section: type[Struct] = Settings, prefix: str = "") -> Iterator[KeyInfo]:
    """Every key of a section and of those below it, in their order."""
    for field in msgspec.structs.fields(section):
        name = f"{prefix}{field.name}"
        if isinstance(field.default, Struct):
            yield from keys_of(type(field.default), f"{name}.")
        else:
            described = (part.description for part in get_args(field.type) if isinstance(part, Meta))
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            yield KeyInfo(name, field.type, default, next(filter(None, described), ""))


def filled(section: Section, values: Mapping[str, Any], prefix: str = "") -> Section:
    """The section with the values given by dotted names."""
    found: dict[str, Any] = {}
    for name in section.__struct_fields__:
        default = getattr(section, name)
        if isinstance(default, Struct):
            found[name] = filled(default, values, f"{prefix}{name}.")
        elif prefix + name in values:
            found[name] = values[prefix + name]
    return msgspec.structs.replace(section, **found)
