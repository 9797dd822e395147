"""What a loop is: frozen values, made by `ll_loop.files`, read by everything else.

Variants are types: what a state does is its `work`, how its result is judged is its `evaluate`. A new kind of
work or evaluator is a class here, a reader in `files.load` and a case in `machine` or `verdicts`.
The YAML keys keep their names (docs/format.md); values here are already checked and typed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from msgspec import Struct


class _Empty(Mapping[str, Any]):
    """A mapping without keys. Hashable, which a mappingproxy of Python 3.11 is not, so it may be a field's default."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "{}"


EMPTY: Mapping[Any, Any] = _Empty()

Direction = Literal["minimize", "maximize"]
Operator = Literal["eq", "ne", "lt", "le", "gt", "ge"]
Handoff = Literal["pause", "spawn", "terminate"]
OnResume = Literal["rerun", "skip", "fail", "ask"]
TamperPolicy = Literal["revert", "fail", "allow"]
PatchPolicy = Literal["fail", "warn"]

OPERATORS: tuple[Operator, ...] = ("eq", "ne", "lt", "le", "gt", "ge")
FAILURE_NAMES = frozenset({"failed", "error", "aborted", "finalize_aborted"})
CURRENT = "$current"


class Variant(Struct, frozen=True, tag=True, tag_field="is"):
    """One of several kinds of a thing; as JSON it tells which."""


# --- what a state does -----------------------------------------------------------------------------------


class Nothing(Variant, frozen=True):
    """A pure decision: nothing runs; without an evaluator the verdict is `yes`."""


class Shell(Variant, frozen=True):
    """A bash script, as a template."""

    action: str


class Prompt(Variant, frozen=True):
    """A prompt (or slash command) for an agent host, as a template."""

    action: str
    slash: bool = False


class SubLoop(Variant, frozen=True):
    """Another loop, run as this state's work. `name` is a template; `bindings` is `with:`."""

    name: str
    bindings: Mapping[str, Any] | None = None
    passthrough: bool = False
    worktree: str = ""


class McpTool(Variant, frozen=True):
    """A call of a tool of an MCP server: `action` is `SERVER/TOOL`, `params` its arguments; both hold templates."""

    action: str
    params: Mapping[str, Any] = EMPTY


class HumanApproval(Variant, frozen=True):
    """A question to a person, as a template."""

    action: str


class Learning(Variant, frozen=True):
    """Targets that must have been proven by experiment; what is unknown is explored by an agent.

    `targets_csv` and `max_retries_expr` are templates and win over `targets` and `max_retries`.
    """

    targets: tuple[str, ...] = ()
    targets_csv: str | None = None
    max_retries: int = 2
    max_retries_expr: str | None = None


Work = Nothing | Shell | Prompt | SubLoop | McpTool | HumanApproval | Learning


# --- how a result is judged ------------------------------------------------------------------------------


class ExitCode(Variant, frozen=True):
    type: ClassVar[str] = "exit_code"
    abstain_on_exit_3: bool = False


class OutputNumeric(Variant, frozen=True):
    """`target` is a number or a template that must render to one."""

    type: ClassVar[str] = "output_numeric"
    operator: Operator
    target: float | str
    key: str | None = None


class OutputJson(Variant, frozen=True):
    type: ClassVar[str] = "output_json"
    path: str
    operator: Operator
    target: Any


class OutputContains(Variant, frozen=True):
    type: ClassVar[str] = "output_contains"
    pattern: str
    negate: bool = False
    error_patterns: tuple[str, ...] = ()


class Convergence(Variant, frozen=True):
    """`target`, `tolerance` and `reference` are numbers or templates; `previous` is a template."""

    type: ClassVar[str] = "convergence"
    target: float | str
    direction: Direction = "minimize"
    tolerance: float | str = 0
    previous: str | None = None
    reference: float | str | None = None


class Classify(Variant, frozen=True):
    """`line` is `first` or an index among the lines that are not blank (negative: from the end), else the last."""

    type: ClassVar[str] = "classify"
    line: int | str | None = None


class DiffStall(Variant, frozen=True):
    """Whether the git working tree changed since the last look; `scope` holds path-specs."""

    type: ClassVar[str] = "diff_stall"
    scope: tuple[str, ...] = ()
    max_stall: int = 1


class ScoreStall(Variant, frozen=True):
    """Whether the numbers in `history_file` (a template) still rise (or, with `falling`, still fall)."""

    type: ClassVar[str] = "score_stall"
    history_file: str
    max_stall: int = 1
    epsilon: float = 0.5
    falling: bool = False


class ActionStall(Variant, frozen=True):
    type: ClassVar[str] = "action_stall"
    track: tuple[str, ...] = ("action",)
    max_repeat: int = 2


class McpResult(Variant, frozen=True):
    type: ClassVar[str] = "mcp_result"


class HarborScorer(Variant, frozen=True):
    type: ClassVar[str] = "harbor_scorer"


class Judge(Variant, frozen=True):
    """An evaluator that asks a model (`llm_structured`, `comparator`, `contract`, `advisor_consult`).

    `keys` holds the block's other keys as written.
    """

    kind: str
    keys: Mapping[str, Any] = EMPTY


Evaluator = (
    ExitCode
    | OutputNumeric
    | OutputJson
    | OutputContains
    | Convergence
    | Classify
    | DiffStall
    | ScoreStall
    | ActionStall
    | McpResult
    | HarborScorer
    | Judge
)


class Evaluate(Struct, frozen=True):
    """An `evaluate:` block: the evaluator, and the template to judge instead of the action's output."""

    by: Evaluator
    source: str | None = None

    @property
    def type(self) -> str:
        match self.by:
            case Judge(kind):
                return kind
            case ScoreStall(falling=True):
                return "open_question_stall"
            case by:
                return by.type


# --- where a verdict leads -------------------------------------------------------------------------------


class Routes(Struct, frozen=True):
    """A state's way out. `next` suppresses judging; `table` (a `route:` block) hides the shorthand keys.

    `on` maps verdicts to targets (`on_yes: x` is `{"yes": "x"}`; `on_success` and `on_failure` are read as
    `yes` and `no`). A target is a state's name or `$current`.
    """

    next: str | None = None
    on: Mapping[str, str] = EMPTY
    table: Mapping[str, str] | None = None

    @property
    def on_error(self) -> str | None:
        return self.on.get("error")


class Retry(Struct, frozen=True):
    """At most `limit` re-entries in a row after the first visit, then `then`."""

    limit: int
    then: str


class RateLimit(Struct, frozen=True):
    """Waiting out a provider's rate limit. A shell state has one only if it declares one of its keys."""

    retries: int = 3
    base: float = 30
    max_wait: float = 21600
    ladder: tuple[float, ...] = (300, 900, 1800, 3600)
    then: str | None = None


class Throttle(Struct, frozen=True):
    """Limits on consecutive runs of one state's action; only states that ask for it have one."""

    normal_max: int = 3
    warn_max: int = 8
    hard_max: int = 12
    then: str | None = None


class Parameter(Struct, frozen=True):
    """One entry of `parameters:`, of a loop or of a fragment."""

    name: str
    type: str
    required: bool = False
    default: Any = None
    description: str = ""
    values: tuple[Any, ...] = ()


class State(Struct, frozen=True):
    """One state. `timeout` and `idle_timeout` are seconds; None means the loop's default, 0 means none."""

    name: str
    work: Work = Nothing()
    evaluate: Evaluate | None = None
    routes: Routes = Routes()
    terminal: bool = False
    failure: bool = False
    capture: str | None = None
    append_to_messages: str | None = None
    timeout: float | None = None
    idle_timeout: float | None = None
    on_maintain: str | None = None
    retry: Retry | None = None
    retryable_exit_codes: tuple[int, ...] | None = None
    on_retry_exhausted: str | None = None
    rate_limit: RateLimit | None = None
    throttle: Throttle | None = None
    bindings: Mapping[str, Any] | None = None
    """`with:` of a state made from a fragment: templates, exposed as `${param.*}`."""
    fragment_parameters: tuple[Parameter, ...] = ()
    learning_type: bool = False
    """`type: learning` without its block: an ordinary state that is exempt from the throttle's hard limit."""
    on_resume: OnResume = "rerun"
    scopes: tuple[str, ...] | None = None
    """The credentials that a shell action may see; None leaves the environment as it is."""
    tamper_guard: TamperPolicy | None = None
    prepatch_check: PatchPolicy | None = None

    @property
    def template(self) -> str:
        """The action text as written, empty for states without one."""
        return "" if isinstance(self.work, Nothing | SubLoop | Learning) else self.work.action

    @property
    def patience(self) -> float:
        """Seconds for which it waits for rate limits in all."""
        return (self.rate_limit or RateLimit()).max_wait

    @property
    def is_prompt(self) -> bool:
        return isinstance(self.work, Prompt | Learning)


class RepeatedFailure(Struct, frozen=True):
    """`circuit.repeated_failure`: `then` is None to abort, else a state."""

    window: int = 3
    recurrent_window: int | None = None
    then: str | None = None
    progress_paths: tuple[str, ...] = ()
    exclude_paths: tuple[str, ...] = ()


class Wishes(Struct, frozen=True):
    """What a start asks for about agents, for the loop and its sub-loops; empty words ask for nothing."""

    host: str = ""
    model: str = ""
    judge_model: str = ""
    no_judge: bool = False
    effort: str = ""
    advisor: str | None = None
    """The host that gives advice, empty for the usual one; None if nobody does."""
    advisor_model: str = ""
    no_host_guard: bool = False
    max_successors: int = 3
    host_guard_budget_mb: float | None = None
    """Megabytes for the actions of the outermost loop in place of its own `host_guard`, 0 for no limit."""


class HostGuard(Struct, frozen=True):
    """`host_guard`: percentages are of this machine's memory, the budget is megabytes, 0 is none."""

    enabled: bool = True
    cooldown_ms: float = 500
    warn_pct: float = 75
    critical_pct: float = 85
    on_pressure: str = "cool_down"
    pressure_state: str | None = None
    on_abort_route: str | None = None
    budget_mb: float = 0
    on_budget_exceeded: str = "route"
    budget_state: str | None = None


class Artifact(Struct, frozen=True):
    """`artifact_output`: `source` lies below the run's folder, `to` below the project. `on` None is any success."""

    source: str
    to: str | None = None
    on: frozenset[str] | None = None
    mode: str = "file"


class Budget(Struct, frozen=True):
    """What prompts may cost before no further one is started: dollars, tokens, seconds. None is no limit."""

    usd: float | None = None
    tokens: int | None = None
    seconds: float | None = None


class Loop(Struct, frozen=True):
    """A whole loop, resolved: inheritance, `flow` and fragments are expanded, defaults filled in.

    `fingerprint` identifies the resolved definition (not the file's comments or layout); a run resumes only
    under the fingerprint it began with. `meta` holds catalogue keys and blocks that do not steer a run.
    """

    name: str
    initial: str
    states: Mapping[str, State]
    path: str = ""
    file_sha256: str = ""
    fingerprint: str = ""
    description: str = ""
    context: Mapping[str, Any] = EMPTY
    parameters: Mapping[str, Parameter] = EMPTY
    scope: tuple[str, ...] = ()
    singleton: bool = False
    input_key: str = "input"
    required_inputs: tuple[str, ...] = ()
    max_steps: int = 50
    on_max_steps: str | None = None
    max_iterations: int | None = None
    on_max_iterations: str | None = None
    max_edge_revisits: int = 100
    timeout: float | None = None
    timeout_reserve: float = 0
    on_timeout: str | None = None
    """A state to run once when no more than `timeout_reserve` seconds of the `timeout` are left."""
    default_timeout: float | None = None
    default_idle_timeout: float | None = None
    backoff: float = 0
    maintain: bool = False
    on_handoff: Handoff = "pause"
    max_successors: int | None = None
    """How often a run goes on by itself after a handoff (`spawn`), in place of what its start says."""
    circuit: RepeatedFailure | None = None
    prompt_size_warn: int = 50000
    approval_timeout: float = 1800
    """Seconds that questions to a person wait whose states have no `timeout`; of a run, its outermost loop says it."""
    safe_interpolation: bool = False
    """References in shell actions become quoted variables instead of pasted text."""
    host_guard: HostGuard = HostGuard()
    artifact: Artifact | None = None
    thresholds: Mapping[str, Any] = EMPTY
    """Context values that `config:` gives in place of the project's."""
    handoff_threshold: int | None = None
    meta: Mapping[str, Any] = EMPTY
    wishes: Wishes = Wishes()
    budget: Budget = Budget()
    shared: Budget = Budget()
    """What a start allows this run, and all runs of its batch together; of a run, its outermost loop says it."""


# --- how a run ends --------------------------------------------------------------------------------------

TerminatedBy = Literal[
    "terminal",
    "max_steps",
    "max_iterations_reached",
    "timeout",
    "interrupted",
    "user_stopped",
    "system_signal",
    "handoff",
    "cycle_detected",
    "stall_detected",
    "error",
    "no_route",
    "workdir_vanished",
    "host_pressure_abort",
    "host_budget_exceeded",
    "queue_timeout",
    "cost_ceiling_exceeded",
    "budget_exceeded",
    "internal_error",
]
Status = Literal[
    "queued",
    "running",
    "completed",
    "failed",
    "interrupted",
    "awaiting_continuation",
    "timed_out",
    "user_stopped",
]


class Ending(Struct, frozen=True):
    """How a run (or a sub-loop) ended. Status word and exit code follow from it (`ll_loop.core.endings`).

    `asked` tells an interruption that the loop itself asked for (`LOOP_STOP:`); `signal` is the number of the
    signal that ended the whole session, 0 if none did.
    """

    by: TerminatedBy
    state: str
    failure_terminal: bool = False
    error: str | None = None
    asked: bool = False
    signal: int = 0
    continuation: str | None = None
