"""Keys of `.ll/ll-config.json` that are known and have no effect: those of features to come, and those of other tools.

The first are read and checked like all others, and `ll-loop config` says that nothing uses them; about the second
nothing is said at all. Only imported where there is a configuration to read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from .settings import KeyInfo, Number, Positive, Seconds, Words

Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Diagram = Literal[
    "layered", "neighborhood", "inline", "detailed", "summary", "clean", "local", "slim", "oneline", "default"
]

_ROWS: Final[tuple[tuple[str, Any, Any, str], ...]] = (
    ("loops.run_defaults.clear", bool, False, "clear the screen at each state"),
    ("loops.run_defaults.show_diagrams", Diagram | None, None, "draw the diagram at each state"),
    ("loops.run_defaults.mode", str | None, None, "nothing, in little-loops either"),
    ("loops.run_defaults.show_input", bool, True, "show the input above diagrams"),
    ("loops.glyphs", Mapping[str, str], {}, "signs in diagrams"),
    ("commands.rate_limits.max_wait_seconds", Seconds, 21600, "how long a rate limit is waited out"),
    ("commands.rate_limits.long_wait_ladder", tuple[Seconds, ...], (300, 900, 1800, 3600), "its long waits"),
    ("orchestration.request_path", Literal["cli", "sdk", "batch"], "cli", "how prompts are sent"),
    ("orchestration.disable_background_tasks", bool, False, "hosts start no background tasks"),
    ("advisor.timeout_seconds", Seconds, 300, "how long it may take"),
    ("events.transports", Words, (), "where events go: jsonl, socket, otel, webhook, sqlite"),
    ("events.socket.path", str, ".ll/events.sock", "socket for events"),
    ("events.socket.max_clients", Positive, 32, "its readers"),
    ("events.webhook.url", str | None, None, "where events are posted"),
    ("events.webhook.batch_ms", Count, 1000, "pause between posts"),
    ("events.webhook.headers", Mapping[str, str], {}, "headers of posts"),
    ("events.otel.endpoint", str, "http://localhost:4317", "OpenTelemetry endpoint"),
    ("events.otel.service_name", str, "little-loops", "name given to it"),
    ("events.sqlite.path", str, ".ll/history.db", "database of events"),
    ("events.bridge.port", Port, 8766, "port of the event server"),
    ("events.bridge.max_clients", Positive, 8, "its readers"),
    ("events.bridge.keepalive_s", Number, 15, "pause between its signs of life"),
    ("events.bridge.rescan_s", Number, 2, "pause between its looks for runs"),
    ("events.bridge.history", bool, False, "whether it shows past runs"),
    ("extensions", Words, (), "modules that add actions and evaluators"),
    ("observability.otel_attributes.enabled", bool, True, "`gen_ai.*` keys in usage records"),
    ("analytics.enabled", bool, False, "records in a database"),
    ("analytics.capture.cli_commands", bool | Words, True, "record of commands"),
    ("analytics.capture.usage_events", bool, True, "record of tokens used"),
    ("history.db_path", str | None, None, "database of past runs"),
    ("history.backend.provider", Literal["sqlite", "libsql"], "sqlite", "kind of database"),
    ("compression.heuristic_underperforms", bool, False, "compression of prompts"),
    ("compression.trigger_pct", Share, 0.4, "from which part of the context on"),
    ("compression.trigger_tokens", Count | None, None, "from how many tokens on"),
    ("compression.max_tool_result_age_turns", Count, 5, "turns for which tool results are kept"),
    ("compression.max_assistant_tail_turns", Count, 8, "turns that are kept whole"),
    ("cache.require_repeat", bool, True, "only what is repeated is cached"),
    ("deferred_tools.threshold", Count | None, None, "from how many tokens on tools are searched for"),
    ("deferred_tools.search_tool_variant", Literal["bm25", "regex"], "bm25", "how they are searched for"),
    ("design_tokens.enabled", bool, True, "context value `design_tokens_context`"),
    ("artifacts.export.mode", Literal["shareable", "local"], "shareable", "what pages leave out"),
    ("tamper_guard.policy", Literal["revert", "fail", "allow"], "fail", "nothing, in little-loops either"),
    ("next.loop_history.weights.frequency", Number, 0.5, "weight of how often a loop ran"),
    ("next.loop_history.weights.recency", Number, 0.3, "weight of how lately"),
    ("next.loop_history.weights.success", Number, 0.2, "weight of how well"),
    ("cli.colors", Mapping[str, Any], {}, "colours of single things"),
)
LATER: Final = tuple(KeyInfo(*row, works=False) for row in _ROWS)
"""Keys of features to come."""

RENAMED: Final = {"commands.confidence_gate.threshold": "commands.confidence_gate.readiness_threshold"}
"""Old names, which count where the new one is not given."""

_FOREIGN_TEXT = """
    $schema issues mcp decisions scan prompt_optimization continuation context_monitor scratch_pad documents product
    sprints refine_status dependency_mapping sync code_query hooks session_capture install_source queue skill_budget
    commands.pre_implement commands.post_implement commands.custom_verification commands.tdd_mode
    commands.max_refine_count commands.recursive_refine commands.review_epic commands.confidence_gate.enabled
    automation.timeout_seconds automation.state_file automation.max_workers automation.stream_output
    automation.idle_timeout_seconds automation.post_stream_close_grace_seconds automation.timeout_kill_grace_seconds
    automation.ready_issue_unknown_retries
    parallel.max_workers parallel.p0_sequential parallel.worktree_base parallel.state_file parallel.timeout_per_issue
    parallel.max_merge_retries parallel.stream_subprocess_output parallel.command_prefix parallel.ready_command
    parallel.manage_command parallel.decide_command parallel.require_code_changes parallel.use_feature_branches
    parallel.push_feature_branches parallel.open_pr_for_feature_branches parallel.remote_name parallel.epic_branches
    project.name project.src_dir project.test_dir
    project.lint_cmd project.type_cmd project.format_cmd project.format_check_cmd
    project.format_check_extensions project.build_cmd project.run_cmd project.health_url
    orchestration.composer orchestration.cluster observability.streaming_parity
    advisor.min_tier advisor.triggers advisor.max_consults_per_task advisor.store_verdict_body
    design_tokens.path design_tokens.primitives_file design_tokens.semantic_file design_tokens.themes_dir
    design_tokens.active_theme design_tokens.active design_tokens.profiles_dir design_tokens.source
    artifacts.default_output_dir artifacts.templatize_max_input_bytes artifacts.export.max_artifact_bytes
    learning_tests.auto_prove learning_tests.discoverability learning_tests.release_gate learning_tests.scan_dirs
    analytics.retention analytics.capture.skills analytics.capture.corrections analytics.capture.file_events
    analytics.capture.hooks analytics.capture.correction_patterns
    history.velocity_window history.effort_fields history.max_age_days history.planning_skills
    history.workspace_manifest_path history.session_digest history.evolution history.go_no_go history.capture_issue
    history.compaction history.backend.url history.backend.url_env history.backend.auth_token_env
    history.backend.project_id history.backend.telemetry_timeout_ms
"""
FOREIGN: Final = frozenset(_FOREIGN_TEXT.split())
"""Keys and whole sections of the other tools of little-loops."""
