"""Reading a project's configuration: where it is found, what wins, what is complained about."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

import ll_loop
from ll_loop.api import Config, configuration, load_config, read_config
from ll_loop.errors import DefinitionError
from ll_loop.files.config.keycheck import KEYS
from ll_loop.files.config.later import FOREIGN

NOTHING: dict[str, str] = {}


def write(folder: Path, text: str, name: str = ".ll/ll-config.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


def complaints(config: Config) -> list[str]:
    return [line for problem in config.problems for line in problem.lines()]


# --- where it is found -------------------------------------------------------------------------------------


def test_without_files_every_value_is_a_default(tmp_path: Path) -> None:
    config = load_config(tmp_path, NOTHING)
    assert config == Config()
    assert config.loops.loops_dir == ".loops"
    assert {one.origin for one in configuration.settings(config)} == {"default"}


def test_a_value_knows_its_file_and_line(tmp_path: Path) -> None:
    write(tmp_path, '{\n  "loops": {\n    "queue_wait_timeout_seconds": 7\n  }\n}')
    config = load_config(tmp_path, NOTHING)
    assert config.loops.queue_wait_timeout_seconds == 7
    assert config.origin("loops.queue_wait_timeout_seconds") == ".ll/ll-config.json:3"
    assert config.origin("loops.loops_dir") == "default"


def test_the_nearest_file_above_the_project_counts(tmp_path: Path) -> None:
    write(tmp_path, '{"loops": {"loops_dir": "far"}}')
    write(tmp_path / "a", '{"loops": {"loops_dir": "near"}}')
    project = tmp_path / "a" / "b" / "c"
    project.mkdir(parents=True)
    config = load_config(project, NOTHING)
    assert config.loops.loops_dir == "near"
    assert config.files == (str(tmp_path / "a" / ".ll" / "ll-config.json"),)


def test_the_search_ends_at_the_top_of_the_repository(tmp_path: Path) -> None:
    write(tmp_path, '{"loops": {"loops_dir": "far"}}')
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    assert load_config(tmp_path / "repo", NOTHING).loops.loops_dir == ".loops"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "plain"),
        ({"LL_HOOK_HOST": "codex"}, "codex"),
        ({"LL_STATE_DIR": ".gemini"}, "gemini"),
        ({"LL_STATE_DIR": "/etc", "LL_HOOK_HOST": "claude-code"}, "plain"),
    ],
)
def test_a_host_may_have_a_configuration_of_its_own(tmp_path: Path, env: dict[str, str], expected: str) -> None:
    for name, value in ((".ll", "plain"), (".codex", "codex"), (".gemini", "gemini"), (".", "bare")):
        write(tmp_path, json.dumps({"loops": {"loops_dir": value}}), f"{name}/ll-config.json")
    assert load_config(tmp_path, env).loops.loops_dir == expected


def test_a_file_beside_the_project_counts_where_there_is_none_in_its_folder(tmp_path: Path) -> None:
    write(tmp_path, '{"loops": {"loops_dir": "bare"}}', "ll-config.json")
    assert load_config(tmp_path, NOTHING).loops.loops_dir == "bare"


def test_variables_of_the_env_file_count_below_those_of_the_process(tmp_path: Path) -> None:
    text = "# a comment\nLL_HOST_CLI=codex\n export QUOTED='two words' \nLL_HOOK_HOST=gemini\nno line\n1X=2\n"
    (tmp_path / ".env").write_text(text)
    config = load_config(tmp_path, NOTHING)
    assert config.environment == {"LL_HOST_CLI": "codex", "QUOTED": "two words", "LL_HOOK_HOST": "gemini"}
    assert (config.given["orchestration.host_cli"].value, config.origin("orchestration.host_cli")) == (
        "codex",
        "LL_HOST_CLI",
    )
    assert load_config(tmp_path, {"LL_HOST_CLI": "pi"}).given["orchestration.host_cli"].value == "pi"


# --- what wins ---------------------------------------------------------------------------------------------


def test_local_front_matter_wins_key_by_key_and_null_takes_a_value_away(tmp_path: Path) -> None:
    gate = {"readiness_threshold": 91, "outcome_threshold": 61}
    write(
        tmp_path, json.dumps({"commands": {"confidence_gate": gate}, "parallel": {"worktree_copy_files": ["a", "b"]}})
    )
    text = (
        "---\ncommands:\n  confidence_gate:\n    readiness_threshold: null\n    outcome_threshold: 12\n"
        "parallel: {worktree_copy_files: [c]}\n---\n# My notes\nloops: 1\n"
    )
    write(tmp_path, text, ".ll/ll.local.md")
    config = load_config(tmp_path, NOTHING)
    assert config.commands.confidence_gate == type(config.commands.confidence_gate)(85, 12)
    assert config.parallel.worktree_copy_files == ("c",)
    assert config.origin("commands.confidence_gate.outcome_threshold") == ".ll/ll.local.md:5"
    assert config.origin("commands.confidence_gate.readiness_threshold") == "default"


def test_local_notes_without_front_matter_change_nothing(tmp_path: Path) -> None:
    write(tmp_path, "# Notes\nloops_dir: x\n", ".ll/ll.local.md")
    assert load_config(tmp_path, NOTHING).problems == ()


def test_an_old_name_counts_where_the_new_one_is_not_given(tmp_path: Path) -> None:
    write(tmp_path, '{"commands": {"confidence_gate": {"threshold": 33}}}')
    assert load_config(tmp_path, NOTHING).commands.confidence_gate.readiness_threshold == 33
    write(tmp_path, '{"commands": {"confidence_gate": {"threshold": 33, "readiness_threshold": 44}}}')
    assert load_config(tmp_path, NOTHING).commands.confidence_gate.readiness_threshold == 44


def test_a_host_variable_is_stronger_than_the_file(tmp_path: Path) -> None:
    write(tmp_path, '{"orchestration": {"host_cli": "pi"}}')
    config = load_config(tmp_path, {"LL_HOOK_HOST": "codex"})
    assert config.given["orchestration.host_cli"].value == "codex"
    assert config.origin("orchestration.host_cli") == "LL_HOOK_HOST"


# --- what is wrong -----------------------------------------------------------------------------------------


def test_unknown_keys_are_warnings_with_the_nearest_known_one(tmp_path: Path) -> None:
    write(tmp_path, '{"loop": {},\n "loops": {"loop_dir": "x",\n  "run_defaults": {"dely": 1, "zzz": 1}}}')
    assert complaints(load_config(tmp_path, NOTHING)) == [
        ".ll/ll-config.json:1:2: warning: unknown key `loop`",
        "hint: did you mean `loops`?",
        ".ll/ll-config.json:2:12: warning: unknown key `loops.loop_dir`",
        "hint: did you mean `loops_dir`?",
        ".ll/ll-config.json:3:20: warning: unknown key `loops.run_defaults.dely`",
        "hint: did you mean `delay`?",
        ".ll/ll-config.json:3:31: warning: unknown key `loops.run_defaults.zzz`",
    ]


def test_nothing_is_said_about_keys_of_other_tools(tmp_path: Path) -> None:
    document: dict[str, Any] = {}
    for name in FOREIGN:
        section = document
        *sections, last = name.split(".")
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = {"anything": [1]}
    write(tmp_path, json.dumps(document))
    assert load_config(tmp_path, NOTHING).problems == ()


def test_every_wrong_value_is_told_with_its_place(tmp_path: Path) -> None:
    write(
        tmp_path,
        """{
  "loops": {"queue_wait_timeout_seconds": "long", "run_defaults": {"delay": -1}},
  "orchestration": {"request_path": "mail"},
  "commands": [1],
  "parallel": {"worktree_copy_files": ["a", 2]},
  "cli": {"color": 1}
}""",
    )
    with pytest.raises(DefinitionError) as wrong:
        load_config(tmp_path, NOTHING)
    assert wrong.value.exit_code == 65
    assert str(wrong.value).splitlines() == [
        ".ll/ll-config.json:2:43: `loops.queue_wait_timeout_seconds` must be a number from 1 to 1000000000",
        ".ll/ll-config.json:2:77: `loops.run_defaults.delay` must be a number from 0 to 1000000000 or null",
        ".ll/ll-config.json:3:37: `orchestration.request_path` must be one of `batch`, `cli`, `sdk`",
        ".ll/ll-config.json:4:15: `commands` must be a mapping",
        ".ll/ll-config.json:5:39: `parallel.worktree_copy_files` must be a list, each text",
        ".ll/ll-config.json:6:20: `cli.color` must be true or false",
    ]


def test_a_wrong_value_is_told_and_the_others_still_count_for_those_who_look(tmp_path: Path) -> None:
    write(tmp_path, '{"loops": {"loops_dir": 1, "queue_wait_timeout_seconds": 5}}')
    config = read_config(tmp_path, NOTHING)
    assert (config.loops.loops_dir, config.loops.queue_wait_timeout_seconds) == (".loops", 5)
    assert [problem.severity for problem in config.problems] == ["error"]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        (".ll/ll-config.json", "{\n  loops: {}}", "2:3: not JSON: expecting property name enclosed in double quotes"),
        (".ll/ll-config.json", '{"a": NaN}', "1:1: not JSON: NaN is no number there"),
        (".ll/ll-config.json", "[]", "1:1: must be a mapping of keys to values"),
        (".ll/ll-config.json", "", "1:1: not JSON: expecting value"),
        (".ll/ll-config.json", "[" * 100_000, "1:1: nested too deeply"),
        (".ll/ll.local.md", "---\nloops: {\n", "1:1: the front matter has no end"),
        (".ll/ll.local.md", "---\nloops:\n  a: b: c\n---\n", "3:7: not YAML: a `: ` too many"),
        (".ll/ll.local.md", "---\n- a\n---\n", "2:1: must be a mapping of keys to values"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_the_place(
    tmp_path: Path, name: str, text: str, complaint: str
) -> None:
    write(tmp_path, text, name)
    with pytest.raises(DefinitionError, match=re.escape(f"{name}:{complaint}")):
        load_config(tmp_path, NOTHING)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    write(tmp_path, "").joinpath(".ll", "ll-config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DefinitionError, match="not UTF-8"):
        load_config(tmp_path, NOTHING)


def test_a_key_given_twice_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path, '{"loops": {"loops_dir": "a", "loops_dir": "b"}}')
    config = load_config(tmp_path, NOTHING)
    assert config.loops.loops_dir == "b"
    assert complaints(config) == [".ll/ll-config.json:1:30: warning: `loops_dir` is given twice; the last one counts"]


# --- the keys ----------------------------------------------------------------------------------------------


def test_the_page_about_the_configuration_lists_every_key_with_its_default() -> None:
    page = Path(ll_loop.__file__).parents[2] / "docs" / "config.md"
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", page.read_text(), re.MULTILINE))
    keys = configuration.settings(Config())
    assert rows.keys() == {one.key for one in keys}
    for one in keys:
        default = json.dumps(one.value)
        assert rows[one.key] == f"`{default}`", one.key


def test_every_default_is_of_its_keys_own_type() -> None:
    for info in KEYS:
        assert msgspec.convert(msgspec.to_builtins(info.default), info.type) == info.default
