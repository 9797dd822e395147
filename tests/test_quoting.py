"""Safe interpolation: whatever the value, bash prints it and never runs it; where that can't be had, it is refused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ll_loop.core.context import Namespaces
from ll_loop.core.shell.quoting import render_quoted, unsafe_places
from ll_loop.core.template import MissingValue, TemplateError
from ll_loop.core.variables import leaves, name_of

PRINTED = {
    "bare": "show ${context.v}",
    "bare beside text": "show a${context.v}b",
    "twice in a word": "show ${context.v}${context.v}",
    "asked for as one shell word": "show ${context.v:shell}",
    "double quotes": 'show "${context.v}"',
    "within a double-quoted text": "show \"it's ${context.v}, \\\"so\\\"\"",
    "single quotes": "show '${context.v}'",
    "within a single-quoted text": "show 'say \"$HOME\" ${context.v}'",
    "escapes in $'...'": r"show $'a\'b${context.v}'",
    "here-document": "show <<EOF\nsay \"${context.v}\" it's\nEOF",
    "here-document with a quoted mark": "show <<'EOF'\n$HOME \\ `id` ${context.v}\nEOF",
    "here-document with an escaped mark": "show <<\\EOF\n\\$HOME ${context.v}\nEOF",
    "here-document with tabs": "show <<-EOF\n\t${context.v}\n\tEOF",
    "two here-documents": "show <<A 3<<'B'\n${context.v}\nA\n${context.v}\nB",
    "here-string": "show <<< ${context.v}",
    "substitution": "x=$(printf %s ${context.v}; echo .); show \"$x\"",
    "substitution in double quotes": 'show "$(printf %s "${context.v}"; echo .)"',
    "here-document in a substitution": "show \"$(cat <<'EOF'\nit's ) ${context.v} .\nEOF\n)\"",
    "substitution in a here-document": "show <<EOF\n$(printf %s '${context.v}'; echo .)\nEOF",
    "backticks": "x=`printf %s ${context.v}; echo .`; show \"$x\"",
    "backticks in double quotes": "show \"`printf %s '${context.v}'; echo .`\"",
    "assignment": "x=${context.v}; show \"$x\"",
    "array": "x=(1 ${context.v} 3); show \"$" + "${x[1]}\"",
    "case": "case a in (a) show ${context.v} ;; b) show no;; esac",
    "case in a substitution": "show \"$(case a in a) printf %s '${context.v}'; echo . ;; esac)\"",
    "loop": "for x in ${context.v}; do show \"$x\"; done",
    "function": "f() { show \"$1\"; }; f ${context.v}",
    "condition": "if [[ ${context.v} == ${context.v} ]]; then show ${context.v}; fi",
    "after a comment": "show x # it's \" $( ${context.v}\nshow ${context.v}",
    "default that is not needed": "show ${context.v:default=$(touch PWNED)}",
    "nested value": "show ${context.deep.v}",
    "capture": "show ${captured.c.output}",
    "previous output": 'show "${prev.output}"',
    "brace expansion": "show {${context.v},x}",
    "process substitution": "show < <(printf %s ${context.v})",
    "line continuation": "show \\\n  ${context.v}",
}  # fmt: skip
"""Scripts by what they show: `show` prints its arguments and its input between marks."""

SHOW = """
show() {
  printf '[%s]' "$@"
  cat
  [ ! -e /dev/fd/3 ] || cat <&3
  printf '\\1'
}
"""


def namespaces(value: Any) -> Namespaces:
    return Namespaces(
        context={"v": value, "deep": {"v": value}},
        captured={"c": {"output": value, "exit_code": 0}},
        prev={"output": value, "exit_code": 0},
    )


def bash(text: str, values: Mapping[str, str], folder: Path) -> bytes:
    """What a script prints with these variables; it must have nothing to complain about."""
    script = folder.with_suffix(".sh")
    script.write_bytes(text.encode())
    encoded = {os.fsencode(key): value.encode() for key, value in values.items()}
    env = {b"PATH": os.fsencode(os.environ["PATH"]), b"LC_ALL": b"C.UTF-8", b"HOME": b"/home/me", **encoded}
    ended = subprocess.run(
        ["bash", str(script)], stdin=subprocess.DEVNULL, env=env, cwd=folder, capture_output=True, check=False
    )
    assert ended.stderr == b""
    return ended.stdout


def run(template: str, value: Any, folder: Path) -> bytes:
    rendered = render_quoted(template, namespaces(value))
    return bash(SHOW + rendered.text, rendered.values, folder)


NASTY = st.lists(
    st.one_of(
        st.sampled_from(
            ["$(touch PWNED)", "`touch PWNED`", "'", '"', "\\", "\n", "EOF", "\nEOF\n", "$HOME", "${HOME}", ";", "|",
             "touch PWNED", ")", "(", "}", "{", "#", "*", "~", "!", " ", "\t", "-n", "${context.v}", "A\n", "<<EOF",
             "a[$(touch PWNED)]", "&", "%s", "\r", "é", "$((1))", "''", "x", "\\\n", "[", "]", ">PWNED", "=", ","]
        ),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
    ),
    max_size=8,
).map("".join)  # fmt: skip

PLAIN = "\2plain\2"
_ALL = "\n".join(PRINTED.values())


@cache
def _printed_for_plain(folder: Path) -> bytes:
    return run(_ALL, PLAIN, folder)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=NASTY)
def test_any_value_is_printed_and_never_run_in_any_kind_of_quoting(tmp_path: Path, value: str) -> None:
    """The same program, whatever the value; it prints what it prints for a harmless one, with the value in place."""
    assert render_quoted(_ALL, namespaces(value)).text == render_quoted(_ALL, namespaces(PLAIN)).text
    printed = _printed_for_plain(tmp_path)
    assert printed.count(PLAIN.encode()) >= len(PRINTED)
    assert run(_ALL, value, tmp_path) == printed.replace(PLAIN.encode(), value.encode())
    assert list(tmp_path.iterdir()) == []


# --- what is refused -----------------------------------------------------------------------------------------

REFUSED = {
    "it would name the program to run": [
        "${context.v} --help",
        "a=1 ${context.v}",
        "sudo -u me ${context.v}",
        "timeout -k 3 5 ${context.v}",
        "if ! ${context.v}; then :; fi",
        "2>/dev/null ${context.v}",
        "$(echo ${context.v})",
        "find . -exec ${context.v} {} +",
        "ls | xargs -n 1 ${context.v}",
    ],
    "another program would read it as program text": [
        'bash -c "echo ${context.v}"',
        "sh -ec 'echo ${context.v}'",
        "exec timeout 3 /bin/bash -lc 'echo ${context.v}'",
        "python3 -c \"print('${context.v}')\"",
        "python3.12 -Ic 'print(${context.v})'",
        "perl -ne 'print ${context.v}'",
        "node --eval=${context.v}",
        "awk '{ print ${context.v} }' file",
        "sed -i 's/x/${context.v}/' file",
        "sed -n -e 's/x/${context.v}/' -e p file",
        "awk -v n=1 ${context.v} file",
    ],
    "would read it as program text": [
        "python3 - <<'PY'\nprint('${context.v}')\nPY",
        "bash <<< ${context.v}",
        "echo ${context.v} | bash",
        "echo ${context.v} | sort |\n sh -s x",
        "bash <(echo ${context.v})",
    ],
    "evaluates its arguments": ["eval echo ${context.v}", ". ${context.v}", "trap ${context.v} EXIT"],
    "evaluates it": ["declare ${context.v}", "local -i n=${context.v}", "export ${context.v}=1"],
    "twice": ["echo x >& ${context.v}", "echo x >&1${context.v}", "cat <&$(echo ${context.v})"],
    "take it for an option": ["printf ${context.v} x", "wait ${context.v}", "[ ${context.v} ${context.v} ]"],
    "bash evaluates that variable": ["PS4=${context.v}", "export BASH_ENV=${context.v}"],
    "in one another": ["$(" * 60 + "${context.v}" + ")" * 60],
    "it would name a variable": ["printf -v ${context.v} x", "[ -v ${context.v} ]", "command test -v ${context.v}"],
    "arithmetic": [
        "echo $((1 + ${context.v}))",
        "(( ${context.v} > 1 ))",
        "[[ ${context.v} -eq 1 ]]",
        "echo $[${context.v}]",
        "for ((i = 0; i < ${context.v}; i++)); do :; done",
    ],
    "it is the index of an array": ["a[${context.v}]=1", "a=([${context.v}]=1)"],
    "it stands within": ['echo "$${a:-${context.v}}"', "echo $${a[${context.v}]}"],
    "declared as a number": ["declare -i n; n=${context.v}"],
    "follows a backslash": ["echo \\${context.v}", 'echo "\\${context.v}"'],
    "is missing": ["echo 'a ${context.v}", 'echo "a ${context.v}', "echo $(a ${context.v}", "echo `a ${context.v}"],
    "is not complete": ["( echo ${context.v}", "case x in a) echo ${context.v};;"],
    "has no end": ["cat <<EOF\n${context.v}\n"],
    "has no `(`": ["echo ${context.v} )"],
}


@pytest.mark.parametrize(("reason", "script"), [(why, one) for why, scripts in REFUSED.items() for one in scripts])
def test_a_place_that_cannot_be_made_safe_is_refused_with_its_reason(reason: str, script: str) -> None:
    offset, message, _ = unsafe_places(script)[0]
    assert script.startswith("${context.v", offset)
    assert reason in message
    with pytest.raises(TemplateError, match="cannot be made safe here"):
        render_quoted(script, namespaces("x"))


BASH = (
    "echo |printf |%s |x=|'|\"|`|$(|)|(|((|))|$((|{ |}|$${x|[[ | ]]|<<EOF\n|<<'EOF'\n|\nEOF\n|\n|;|&&|#|\\|$'|$[|]|"
    "case a in |esac|a)| -eq |<(|>f|>&|2>&1|<&|&>|<<<|if |then |fi|for i in |do |done|a[|=(|eval |bash -c |declare -i |"
    "n=|let |test |-v |[ |unset |wait |command |export |read |mapfile |trap |source |awk |sed | |-e |1|*"
)
SOUP = st.lists(st.sampled_from([*BASH.split("|"), "|", *["${context.v}"] * 6]), max_size=9).map(
    lambda parts: "".join([*parts, " ${context.v}"])
)
HOSTILE = (
    "$(touch PWNED)",
    "a[$(touch PWNED)]",
    "-va[$(touch PWNED)]",
    "'; touch PWNED; '",
    "\nEOF\ntouch PWNED\n",
    "-v",
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(SOUP, st.sampled_from(HOSTILE))
def test_whatever_the_script_it_is_refused_or_does_not_run_its_values(script: str, value: str) -> None:
    if unsafe_places(script):
        return
    rendered = render_quoted(script, namespaces(value))
    with TemporaryDirectory() as folder:
        env = {"PATH": os.environ["PATH"], **rendered.values}
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["bash", "-c", rendered.text],
                stdin=subprocess.DEVNULL, env=env, cwd=folder, capture_output=True, timeout=2, check=False,
            )  # fmt: skip
        assert not Path(folder, "PWNED").exists()


@pytest.mark.parametrize(
    "script",
    [
        "python3 tool.py ${context.v} <<< ${context.v}",
        "bash -c 'echo \"$1\"' _ ${context.v}",
        "echo ${context.v} | python3 -c 'import sys; print(sys.stdin.read())'",
        "grep -e ${context.v} file | sort",
        'local x=${context.v}; export y="${context.v}"',
        "git commit -m ${context.v} > ${context.v}.log 2>&1",
        "[ ${context.v} = x ] && echo yes",
        "timeout 5 make ${context.v}",
        "sed -n 1p ${context.v}",
        "awk -v n=${context.v} -F: 'BEGIN { print n }' ${context.v}",
        "awk -f program ${context.v}",
        "command -v ${context.v}",
        "echo ${context.v} &> ${context.v}",
    ],
)
def test_an_argument_that_is_only_data_is_not_refused(script: str) -> None:
    assert unsafe_places(script) == ()


def test_a_script_without_references_is_left_as_it_is_whatever_is_in_it() -> None:
    script = "eval 'unclear"
    assert unsafe_places(script) == ()
    assert render_quoted(script, namespaces("x")).text == script


def test_a_missing_value_is_missed_in_safe_rendering_too() -> None:
    with pytest.raises(MissingValue, match="'nope' not found in context"):
        render_quoted("echo ${context.nope}", namespaces("x"))
    guarded = render_quoted("echo ${context.nope?} ${context.no:default=$(id)}", namespaces("x"))
    assert guarded.values == {"LL_REF_1": "", "LL_REF_2": "$(id)"}


def test_one_shell_word_within_quotes_is_passed_quoted(tmp_path: Path) -> None:
    """As when a script writes a script: there the quotes belong to the value."""
    rendered = render_quoted("cat <<EOF\necho ${context.v:shell}\nEOF", namespaces("it's; id"))
    written = bash(rendered.text, rendered.values, tmp_path)
    assert bash(written.decode(), {}, tmp_path) == b"it's; id\n"


# --- names of variables --------------------------------------------------------------------------------------

SEGMENT = st.text(st.sampled_from("ab_A9-.é FILE2d5f"), min_size=0, max_size=6)
PATHS = st.lists(SEGMENT, min_size=1, max_size=3)


@settings(max_examples=300, deadline=None)
@given(PATHS, PATHS)
def test_two_values_never_share_a_variable(one: list[str], other: list[str]) -> None:
    first, second = name_of("context", tuple(one)), name_of("context", tuple(other))
    assert (first == second) == (one == other)
    assert first.isidentifier()
    assert first.isascii()
    assert f"{first}_FILE" != second


@pytest.mark.parametrize(
    ("namespace", "path", "name"),
    [
        ("context", ("run_dir",), "LL_CTX_run_dir"),
        ("context", ("limits", "cpu"), "LL_CTX_limits__cpu"),
        ("context", ("my-key",), "LL_CTX_my___2d_key"),
        ("context", ("_x",), "LL_CTX____5f_x"),
        ("context", ("in_FILE",), "LL_CTX_in___5f_FILE"),
        ("captured", ("a", "exit_code"), "LL_CAP_a__exit_code"),
        ("captured", ("a", "output"), "LL_CAP_a"),
        ("captured", ("output", "output"), "LL_CAP_output"),
    ],
)
def test_names_of_variables_can_be_told_from_their_paths(namespace: str, path: tuple[str, ...], name: str) -> None:
    assert name_of(namespace, path) == name


def test_every_value_below_a_mapping_has_a_variable() -> None:
    values = {"a": 1, "b": {"c": None, "d": [1, "x"]}, "e": True}
    assert dict(leaves("context", values)) == {
        "LL_CTX_a": "1",
        "LL_CTX_b__c": "",
        "LL_CTX_b__d": "[1, 'x']",
        "LL_CTX_e": "True",
    }
