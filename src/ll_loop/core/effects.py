"""What the machine asks the world for, and what the world answers. All are plain values that survive JSON.

An effect is performed by the engine (`ll_loop.run.performing.perform`), by the simulator or by a test's script; the
answer comes back in an `Outcome`. Journals store outcomes, so a run is replayed by feeding them to the machine again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import asdict

from .agents import Agent
from .hosts.turn import Reply, reply_from_json, reply_to_json
from .model import EMPTY, Loop, RateLimit

# --- effects -----------------------------------------------------------------------------------------------


class Values(Struct, frozen=True):
    """What a shell action gets as variables: the context, the captures, and by `named` what its text refers to."""

    context: Mapping[str, Any] = EMPTY
    captured: Mapping[str, Any] = EMPTY
    named: Mapping[str, str] = EMPTY


class RunAction(Struct, frozen=True):
    """Run `text` as a bash script, or as a prompt of `agent` when `prompt` is set. Times are seconds, 0 means no limit.

    With `arguments`, `text` is `SERVER/TOOL`: a tool of an MCP server to call with them. `loop` and `depth` tell which
    (sub-)loop the state belongs to. With `scopes`, only these credentials of the environment are passed on. A prompt
    that would have to wait for a rate limit longer than its `patience` is turned away. `visit` is which entry
    of which state it is, the same for all attempts at it, and another for everything else in the run. What it prints is
    a `secret` if it is kept under this variable.
    """

    text: str
    state: str
    iteration: int
    prompt: bool = False
    timeout: float = 3600
    idle_timeout: float = 0
    attempt: int = 1
    loop: str = ""
    depth: int = 0
    arguments: Mapping[str, Any] | None = None
    agent: Agent | None = None
    values: Values = Values()
    scopes: tuple[str, ...] | None = None
    patience: float = RateLimit().max_wait
    visit: str = ""
    secret: str = ""


class AskModel(Struct, frozen=True):
    """Ask a model one question, outside any session. `schema` is what its answer must fit; `timeout` is seconds.

    `purpose` is `judge`, `contract`, `compare` or `advise`. Rate limits are waited out for `patience` seconds at most.
    The rest says whom to ask, and for which state.
    """

    prompt: str
    schema: Mapping[str, Any] | None
    model: str
    timeout: float
    purpose: str
    hint: str = ""
    host: str | Mapping[str, Any] = ""
    state: str = ""
    loop: str = ""
    depth: int = 0
    patience: float = RateLimit().max_wait


class WriteFile(Struct, frozen=True):
    """Put `text` in the place of a file, making its folder."""

    path: str
    text: str


class FindHuman(Struct, frozen=True):
    """Find out whether anybody is there to answer a question."""


class AskHuman(Struct, frozen=True):
    """Put `question` to a person and wait for the answer, at most `timeout` seconds.

    `id` is the same whenever this very question is asked again; no two questions of a run have the same.
    """

    id: str
    question: str
    state: str
    timeout: float
    loop: str = ""
    depth: int = 0


class ReadLearning(Struct, frozen=True):
    """Look up what has been learned of `target`."""

    target: str


class ProbeTree(Struct, frozen=True):
    """Fingerprint the git working tree below the path-specs `scope` (all of it when empty)."""

    scope: tuple[str, ...] = ()


class ProbeFile(Struct, frozen=True):
    """Read a small text file; None when it is not there."""

    path: str


class ProbePaths(Struct, frozen=True):
    """Fingerprint modification time and size of `paths`, leaving out `exclude`."""

    paths: tuple[str, ...]
    exclude: tuple[str, ...] = ()


class SnapshotTests(Struct, frozen=True):
    """Hash the project's test files: a JSON object of paths and digests. With `keep`, they can be restored."""

    keep: bool = False


class RestoreTests(Struct, frozen=True):
    """Put test files back as a snapshot kept them: `files` maps paths to digests. A JSON list of those restored."""

    files: Mapping[str, str]


class CheckPatch(Struct, frozen=True):
    """Run the tests that the patch brings without the rest of it: a JSON list of those that pass all the same."""


class PromoteArtifact(Struct, frozen=True):
    """Copy `source`, below `run_dir`, to `to` (by default into the project's artifacts); the path it has then."""

    source: str
    to: str | None = None
    run_dir: str = ""
    mode: str = "file"
    loop: str = ""


class ReadMemory(Struct, frozen=True):
    """The share of this machine's memory that is used, in percent; None where it cannot be told."""


RATE_LIMIT = "rate limit"


class Sleep(Struct, frozen=True):
    """Wait `seconds`; `why` is shown to people (`backoff`, `rate limit`, `server error`).

    Of what a provider makes a run wait, `left` is the whole that is left, of which this may be a part.
    """

    seconds: float
    why: str
    left: float = 0


class LoadLoop(Struct, frozen=True):
    """Find and load a sub-loop by name, as seen from the file at `beside`."""

    name: str
    beside: str


class EnterTree(Struct, frozen=True):
    """Check out an existing branch in a worktree of its own; its record as a JSON object."""

    branch: str


class LeaveTree(Struct, frozen=True):
    """Put away what `EnterTree` made. An error tells where work was left that could not be put on the branch."""

    tree: Mapping[str, Any]


class Breathe(Struct, frozen=True):
    """Nothing: lets other runs have a turn in a long stretch of states that do nothing."""


Probe = ProbeTree | ProbeFile | ProbePaths
Look = SnapshotTests | RestoreTests | CheckPatch | PromoteArtifact | ReadMemory
Deed = (
    RunAction | AskModel | AskHuman | FindHuman | ReadLearning | Probe | Look | WriteFile | Sleep | LoadLoop | Breathe
)
"""What is done in a directory."""
Effect = Deed | EnterTree | LeaveTree

# --- answers -----------------------------------------------------------------------------------------------


class ActionDone(Struct, frozen=True):
    """How an action ended. `exit_code` is negative after a signal, 124 after a time limit.

    `marked` holds the output lines with a run marker (`FATAL_ERROR:` and so on), found while reading, so that none
    is lost when `output` was shortened. `workdir` is set when the action could not start because its directory
    is gone. `note` tells of background children that were ended. `reply` is what the host of a prompt told.
    `peak_mb` is the most memory that one of its processes had, 0 where that is unknown or little.
    """

    exit_code: int
    output: str = ""
    stderr: str = ""
    duration_ms: int = 0
    timeout_kind: Literal["wall", "idle"] | None = None
    marked: tuple[str, ...] = ()
    workdir: str | None = None
    note: str = ""
    reply: Reply | None = None
    peak_mb: int = 0


class ModelSaid(Struct, frozen=True):
    """What came of a question to a model."""

    reply: Reply
    duration_ms: int = 0


class Written(Struct, frozen=True):
    """A file was written, or why not."""

    error: str | None = None


class Probed(Struct, frozen=True):
    """What a probe saw (text, or None for a missing file), or why it failed."""

    value: str | None
    error: str | None = None


class Rested(Struct, frozen=True):
    """A sleep is over."""


class Loaded(Struct, frozen=True):
    """A sub-loop's definition, with the environment values that its templates name.

    In the journal only its name, path and fingerprint are kept; a replay loads it again and compares.
    """

    loop: Loop
    env: Mapping[str, str] = EMPTY


class LoadFailed(Struct, frozen=True):
    """Why there is no such sub-loop."""

    error: str


class HumanFound(Struct, frozen=True):
    """Whether anybody can answer a question."""

    anyone: bool


class HumanReply(Struct, frozen=True):
    """What a person said, or `timeout` when nobody did. `edit` is the text that replaces what was asked about."""

    verdict: Literal["approve", "reject", "edit", "timeout"]
    edit: str | None = None
    reason: str | None = None


class Learned(Struct, frozen=True):
    """What is known of a target (None: there is no record), or why its record cannot be read."""

    status: Literal["proven", "refuted", "stale"] | None = None
    error: str | None = None


Stored = ActionDone | ModelSaid | Written | HumanFound | HumanReply | Learned | Probed | Rested | LoadFailed
Answer = Stored | Loaded

_STORED: Mapping[str, type[Written | HumanFound | HumanReply | Learned | Probed | Rested | LoadFailed]] = {
    kind.__name__: kind for kind in (Written, HumanFound, HumanReply, Learned, Probed, Rested, LoadFailed)
}


class Outcome(Struct, frozen=True):
    """An answer and the world's state when it came.

    `at` is the run's own clock in seconds (only time in which the run was alive counts), `ts` the wall time in
    ISO 8601, `chance` a number in [0, 1) for jitter.
    """

    answer: Answer
    at: float = 0.0
    ts: str = ""
    chance: float = field(default=0.5)


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """The answer as journaled: its class name under `kind`, then its fields."""
    if isinstance(answer, Loaded):
        loop = answer.loop
        return {"kind": "Loaded", "name": loop.name, "path": loop.path, "fingerprint": loop.fingerprint,
                "env": dict(answer.env)}  # fmt: skip
    if isinstance(answer, ActionDone):
        return _action_to_json(answer)
    if isinstance(answer, ModelSaid):
        return {"kind": "ModelSaid", "reply": reply_to_json(answer.reply), "duration_ms": answer.duration_ms}
    return {"kind": type(answer).__name__, **asdict(answer)}


def _action_to_json(done: ActionDone) -> dict[str, Any]:
    """Written field by field: `asdict` is a tenth of a step's cost."""
    document: dict[str, Any] = {"kind": "ActionDone", "exit_code": done.exit_code, "output": done.output,
                                "stderr": done.stderr, "duration_ms": done.duration_ms}  # fmt: skip
    if done.timeout_kind:
        document["timeout_kind"] = done.timeout_kind
    if done.marked:
        document["marked"] = list(done.marked)
    if done.workdir:
        document["workdir"] = done.workdir
    if done.note:
        document["note"] = done.note
    if done.reply is not None:
        document["reply"] = reply_to_json(done.reply)
    if done.peak_mb:
        document["peak_mb"] = done.peak_mb
    return document


def answer_from_json(document: Mapping[str, Any]) -> Stored:
    """The reverse for every answer but `Loaded`, which needs a library (`ll_loop.run.journals.journal`)."""
    fields = {key: value for key, value in document.items() if key != "kind"}
    kind = document["kind"]
    if "reply" in fields:
        fields["reply"] = reply_from_json(fields["reply"])
    if kind == "ActionDone":
        return ActionDone(**{**fields, "marked": tuple(fields.get("marked", ()))})
    if kind == "ModelSaid":
        return ModelSaid(**fields)
    if kind not in _STORED:
        raise ValueError(f"unknown answer in the journal: {kind!r}")
    return _STORED[kind](**fields)
