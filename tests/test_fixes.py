"""`validate --fix`: what can be meant in one way only is mended where it stands, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ll_loop.api import Library, mending
from ll_loop.errors import CannotCreateError, RefusedError
from ll_loop.files.authoring.fixes import Fixed
from ll_loop.files.authoring.repairs import one_slip

HEAD = "name: x\ndescription: d\nscope: [s/]\ninitial: a\n"
END = "  done: {terminal: true}\n"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / ".loops").mkdir()
    return Library(tmp_path, bundled=tmp_path / "bundled")


def put(library: Library, text: str, name: str = "x") -> Path:
    path = library.loops / f"{name}.yaml"
    path.write_bytes(text.encode())
    return path


def mended(library: Library, text: str) -> str:
    """What becomes of a loop file."""
    return mending.fix(library, put(library, text)).after.decode()


def state(keys: str, head: str = "") -> str:
    return f"{HEAD}{head}states:\n  a: {{{keys}}}\n{END}"


# --- what is mended ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("next: done, actoin: 'true'", "next: done, action: 'true'"),
        ("next: done, 'Action-Type': shell, action: x", "next: done, 'action_type': shell, action: x"),
        ("action: x, on_sucess: done, on_no: done", "action: x, on_yes: done, on_no: done"),
        ("action: x, on_success: done, on_failure: done", "action: x, on_yes: done, on_no: done"),
        ("action: x, route: {yes: done, No: done}", 'action: x, route: {"yes": done, "no": done}'),
        ("action: x, next: done, action_type: shel", "action: x, next: done, action_type: shell"),
        ("action: x, evaluate: {type: exitcode}, next: done", "action: x, evaluate: {type: exit_code}, next: done"),
        (
            "action: x, evaluate: {type: output_numeric, operator: '>=', traget: 3}, on_yes: done, on_no: done",
            "action: x, evaluate: {type: output_numeric, operator: 'ge', target: 3}, on_yes: done, on_no: done",
        ),
        ('action: x, timeout: "5", next: done', "action: x, timeout: 5, next: done"),
        ("action: 5, next: done", 'action: "5", next: done'),
        ("action: x, next: done}\n  b: {terminal: 'true'", "action: x, next: done}\n  b: {terminal: true"),
    ],
    ids=str,
)
def test_a_word_of_a_state_is_mended(library: Library, wrong: str, right: str) -> None:
    assert mended(library, state(wrong)) == state(right)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("max_step: 3\n", "max_steps: 3\n"),
        ("max_iterations: 3\n", "max_steps: 3\n"),
        ("visibility: pubic\n", "visibility: public\n"),
        ("parameters: {n: {type: int}}\n", "parameters: {n: {type: integer}}\n"),
        ("max_steps: '20' # few\n", "max_steps: 20 # few\n"),
    ],
    ids=str,
)
def test_a_word_of_the_head_is_mended(library: Library, wrong: str, right: str) -> None:
    assert mended(library, state("next: done", wrong)) == state("next: done", right)


def test_every_other_byte_stays(library: Library) -> None:
    text = (
        "\ufeff# über alles\r\n" + HEAD.replace("\n", "\r\n") + "max_step:   3   # drei 𝄞\r\n\r\nstates:\r\n"
        "  a:   # first\r\n    action: |\r\n      echo 'é'   # not a comment\r\n    'on_failure' : done\r\n"
        "    on_success: &t done\r\n  done: {terminal: true,}  # end"
    )
    expected = text.replace("max_step:", "max_steps:").replace("on_failure", "on_no").replace("on_success", "on_yes")
    assert mended(library, text) == expected


def test_old_spellings_leave_the_loop_as_it_is(library: Library) -> None:
    text = state("action: x, on_success: done, on_failure: done", "max_iterations: 7\n")
    before = library.load(str(put(library, text))).loop
    after = library.load(str(put(library, mended(library, text)))).loop
    assert (after.states, after.max_steps) == (before.states, before.max_steps)
    assert after.file_sha256 != before.file_sha256


def test_changes_say_where_and_by_which_rule(library: Library) -> None:
    fixed = mending.fix(library, put(library, state("action: x, on_success: done, on_no: done", "max_step: 3\n")))
    assert [(c.line, c.column, c.rule, c.old, c.new, c.complained) for c in fixed.changes] == [
        (5, 1, "doc.unknown-key", "max_step", "max_steps", True),
        (7, 18, "old-spelling", "on_success", "on_yes", False),
    ]


# --- what is not ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(state("next: done", "owner: me\n"), id="a key that is like no other"),
        pytest.param(state("next: done", "max_step: 3\nmax_steps: 4\n"), id="the right key is there already"),
        pytest.param(state("next: done", "max_step: many\n"), id="the right key would make it wrong"),
        pytest.param(state("action: x, on_success: done, on_yes: a, on_no: done"), id="both spellings"),
        pytest.param(
            state("action: x, evaluate: {type: classify}, on_eror: done, on_error: a"), id="a verdict may be any word"
        ),
        pytest.param(state("next: done, scope: [github]"), id="a key of another place"),
        pytest.param(state("next: done}\n  b: {terminal: 'false'"), id="a quoted false counts as true"),
        pytest.param(state("action: x, on_yes: dnoe, on_no: done"), id="a misspelt target"),
        pytest.param("name: [x\n", id="not YAML"),
        pytest.param("- a\n", id="not a mapping"),
        pytest.param("", id="empty"),
    ],
)
def test_what_is_not_certain_stays(library: Library, text: str) -> None:
    fixed = mending.fix(library, put(library, text))
    assert (fixed.changes, fixed.diff()) == ((), "")
    assert fixed.after == fixed.before == text.encode()


def test_a_file_that_is_not_utf_8_stays(library: Library) -> None:
    path = library.loops / "x.yaml"
    path.write_bytes(state("next: done", "max_step: 3\n").encode("utf-16"))
    assert mending.fix(library, path).changes == ()


def test_one_bad_repair_does_not_hold_back_the_others(library: Library) -> None:
    text = state("next: done, actoin: 'true'", "max_step: many\n")
    assert mended(library, text) == text.replace("actoin", "action")


def test_only_the_file_itself_is_mended(library: Library) -> None:
    base = put(library, state("next: done", "max_step: 3\n"), "base")
    child = put(library, "name: y\nfrom: base\n", "child")
    assert [p.file for p in library.check("child")[1]] == [".loops/base.yaml"]
    assert mending.fix(library, child).changes == ()
    assert mending.fix(library, base).changes != ()


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("max_step", "max_steps"),
        ("max_stpes", "max_steps"),
        ("max_steqs", "max_steps"),
        ("max_stteps", "max_steps"),
        ("mxa_stpes", None),
        ("steps", None),
        ("tyqe", None),  # `type` and `tyre` are both near
        ("bca", None),  # too short for a guess
    ],
)
def test_a_slip_is_one_letter_and_leads_to_one_word(word: str, meant: str | None) -> None:
    assert one_slip(word, ("max_steps", "type", "tyre", "abc", "bac")) == meant


# --- more than a word ----------------------------------------------------------------------------------------

LISTED = f"""\
{HEAD}states:
  # the first
  - name: a
    action: "true"   # do it
    next: done
  - terminal: true
    name: done
"""


def test_a_list_of_named_states_becomes_a_mapping(library: Library) -> None:
    pytest.importorskip("ruamel.yaml")
    after = mended(library, LISTED)
    assert list(library.load(str(put(library, after))).loop.states) == ["a", "done"]
    assert all(comment in after for comment in ("# the first", "# do it"))
    assert after.startswith(HEAD)


def test_a_program_is_said_to_be_for_the_shell(library: Library) -> None:
    pytest.importorskip("ruamel.yaml")
    text = f"{HEAD}states:\n  a:\n    action: {sys.executable} -V   # which one?\n\n    next: done\n{END}"
    assert mended(library, text) == text.replace("    action:", "    action_type: shell\n    action:")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(LISTED.replace("- name: a", "- name: a   # lost with the key"), id="a comment would be lost"),
        pytest.param(LISTED.replace("name: done", "name: a"), id="two states of one name"),
        pytest.param(LISTED.replace("    next: done", "    next:    done"), id="a layout that would be lost"),
    ],
)
def test_a_restructured_file_loses_nothing_or_stays(library: Library, text: str) -> None:
    pytest.importorskip("ruamel.yaml")
    assert mended(library, text) == text


def in_a_process(*lines: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = "\n".join(["import sys", "from ll_loop.cli.border import main", *lines])
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_without_ruamel_the_command_says_how_to_get_it(library: Library) -> None:
    put(library, LISTED)
    hidden = "sys.modules['ruamel.yaml'] = None"
    said = in_a_process(hidden, "sys.exit(main(['validate', '--fix']))", folder=library.project)
    assert said.returncode == 65
    assert said.stderr.splitlines()[-1] == "1 more can be mended with ruamel.yaml: pip install 'll-loop[fix]'"


def test_a_check_does_not_load_ruamel(library: Library) -> None:
    put(library, state("next: done", "max_step: 3\n"))
    said = in_a_process("main(['validate', 'x'])", "print('ruamel.yaml' in sys.modules)", folder=library.project)
    assert said.stdout.splitlines()[-1] == "False"


# --- writing -------------------------------------------------------------------------------------------------


def _fixed(library: Library) -> tuple[Path, Fixed]:
    path = put(library, state("next: done", "max_step: 3\n"))
    return path, mending.fix(library, path)


def test_nothing_is_written_before_it_is_asked_for(library: Library) -> None:
    path, fixed = _fixed(library)
    assert path.read_bytes() == fixed.before
    fixed.write()
    assert path.read_bytes() == fixed.after
    assert os.listdir(library.loops) == ["x.yaml"]


def test_a_link_and_the_mode_of_its_file_stay(library: Library, tmp_path: Path) -> None:
    path, _ = _fixed(library)
    target = path.rename(tmp_path / "elsewhere.yaml")
    target.chmod(0o640)
    path.symlink_to(target)
    mending.fix(library, path).write()
    assert path.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert "max_steps: 3" in target.read_text()


def test_what_was_changed_meanwhile_is_left_alone(library: Library) -> None:
    path, fixed = _fixed(library)
    path.write_text("mine")
    with pytest.raises(RefusedError, match="was changed meanwhile"):
        fixed.write()
    assert path.read_text() == "mine"
    assert os.listdir(library.loops) == ["x.yaml"]


def test_a_disk_that_refuses_is_said(library: Library) -> None:
    path, fixed = _fixed(library)
    path.unlink()
    with pytest.raises(CannotCreateError, match=r"cannot write \.loops/x\.yaml: No such file"):
        fixed.write()


# --- the command ---------------------------------------------------------------------------------------------


def validate(library: Library, capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, Sequence[str], str]:
    from ll_loop.cli.border import main

    code = main(["validate", *words, "--project", str(library.project)])
    out, err = capfd.readouterr()
    return code, err.splitlines(), out


def test_fix_writes_says_what_and_checks_again(library: Library, capfd: pytest.CaptureFixture[str]) -> None:
    path = put(library, state("next: done, evaluate: {type: exitcode}"))
    code, told, out = validate(library, capfd, "x", "--fix")
    assert code == 0
    assert told[0] == ".loops/x.yaml:6:36: fixed: `exitcode` is now `exit_code` [eval.type-unknown]"
    assert out.startswith("x is valid")
    assert "type: exit_code" in path.read_text()


def test_diff_shows_and_writes_nothing(library: Library, capfd: pytest.CaptureFixture[str]) -> None:
    path = put(library, state("next: done", "max_step: 3\n"))
    before = path.read_bytes()
    code, told, out = validate(library, capfd, "x", "--diff", "--fix")
    assert (code, path.read_bytes()) == (0, before)
    assert out.splitlines()[:2] == ["--- a/.loops/x.yaml", "+++ b/.loops/x.yaml"]
    assert [line for line in out.splitlines() if line.startswith(("-m", "+m"))] == ["-max_step: 3", "+max_steps: 3"]
    assert ".loops/x.yaml:5:1: warning: unknown key `max_step` [doc.unknown-key]" in told
    assert told[-1] == "1 change; --fix writes them"


def test_a_check_tells_what_fix_could_do(library: Library, capfd: pytest.CaptureFixture[str]) -> None:
    put(library, state("action: x, on_success: done, on_no: done", "max_step: 3\nowner: me\n"))
    assert validate(library, capfd, "x")[1][-1] == "--fix can mend 1 of them, --diff shows how"
    put(library, state("action: x, on_success: done, on_no: done"))
    assert validate(library, capfd, "x")[1] == []


def test_json_tells_what_was_fixed(library: Library, capfd: pytest.CaptureFixture[str]) -> None:
    put(library, state("next: done", "max_step: 3\n"))
    assert '"old": "max_step"' in validate(library, capfd, "x", "--fix", "-j")[2]


def test_a_loop_that_comes_with_us_is_never_written(library: Library, capfd: pytest.CaptureFixture[str]) -> None:
    code, told, _ = validate(library, capfd, "bisect", "--diff")
    assert (code, told) == (0, ["nothing to fix"])
