"""The grammar of `${...}`: one reading for the check and the run, one pass, exact quoting, guarded here-documents."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ll_loop.core.template import (
    HeredocCollision,
    MissingValue,
    Reference,
    TemplateError,
    missing,
    problems,
    references,
    render,
    render_value,
)

ANY_TEXT = st.text()
GRAMMAR_SOUP = st.lists(
    st.sampled_from(
        [
            "${",
            "$${",
            "}",
            "$",
            "{",
            "?",
            ":shell",
            ":default=",
            "context",
            ".",
            "a",
            "messages",
            "env",
            "<<EOF",
            "\n",
            "EOF",
        ]
    )
).map("".join)


class Values:
    """A scope over one mapping of namespaces."""

    def __init__(self, **namespaces: Mapping[str, Any]) -> None:
        self._namespaces = namespaces

    def lookup(self, namespace: str, path: tuple[str, ...]) -> Any:
        value: Any = self._namespaces.get(namespace, {})
        for depth, segment in enumerate(path):
            if not isinstance(value, Mapping) or segment not in value:
                raise missing(namespace, path, depth)
            value = value[segment]
        return value


def rendered(template: str, **context: Any) -> str:
    return render(template, Values(context=context))


# --- the grammar -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "reference"),
    [
        ("${context.a}", Reference("${context.a}", 0, "context", ("a",))),
        ("x ${captured.c.output}", Reference("${captured.c.output}", 2, "captured", ("c", "output"))),
        ("${context.a?}", Reference("${context.a?}", 0, "context", ("a",), optional=True)),
        ("${context.a:shell}", Reference("${context.a:shell}", 0, "context", ("a",), shell=True)),
        ("${context.a:shell?}", Reference("${context.a:shell?}", 0, "context", ("a",), None, True, True)),
        ("${context.a?:shell}", Reference("${context.a?:shell}", 0, "context", ("a",), None, True, True)),
        ("${context.a:default=}", Reference("${context.a:default=}", 0, "context", ("a",), "")),
        ("${context.a:default=b: c?}", Reference("${context.a:default=b: c?}", 0, "context", ("a",), "b: c?")),
        (
            "${context.a:default=b:shell}",
            Reference("${context.a:default=b:shell}", 0, "context", ("a",), "b", shell=True),
        ),
        (
            "${context.a:shell:default=b}",
            Reference("${context.a:shell:default=b}", 0, "context", ("a",), "b", shell=True),
        ),
        ("${env.A.B}", Reference("${env.A.B}", 0, "env", ("A.B",))),
        ("${messages}", Reference("${messages}", 0, "messages", ())),
        ("${messages.last(2)}", Reference("${messages.last(2)}", 0, "messages", ("last(2)",))),
    ],
)
def test_a_reference_is_read_into_its_parts(template: str, reference: Reference) -> None:
    assert references(template) == [reference]
    assert problems(template) == []


def test_references_come_in_order_and_escaped_ones_not_at_all() -> None:
    found = references("${context.a} $${context.b} # ${context.c}")
    assert [(reference.path, reference.start) for reference in found] == [(("a",), 0), (("c",), 29)]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("echo ${X}", "Invalid variable: ${X} (expected namespace.path)"),
        ("echo ${X:-2}", "Invalid variable: ${X:-2} (expected namespace.path)"),
        ("echo ${}", "Invalid variable: ${} (expected namespace.path)"),
        (
            "${context.a?:default=b}",
            "Invalid variable: ${context.a?:default=b} (`?` and `:default=` exclude each other)",
        ),
        ("${context.a:default={}", "Invalid variable: ${context.a:default={} (a default holds no {)"),
        ("echo ${context.a\nand more", "Unclosed reference: ${context.a"),
    ],
)
def test_a_broken_reference_is_the_same_error_in_the_check_and_in_the_run(template: str, message: str) -> None:
    assert [(offset, text) for offset, text, _ in problems(template)] == [(template.index("${"), message)]
    with pytest.raises(TemplateError) as error:
        rendered(template, a=1)
    assert str(error.value) == message
    assert error.value.hint


def test_unknown_namespaces_and_members_are_problems_unless_guarded() -> None:
    assert [text for _, text, _ in problems("${foo.bar} ${state.nam} ${foo.bar?} ${loop.x:default=y}")] == [
        "Unknown namespace: foo in ${foo.bar}",
        "Path 'nam' not found in state",
    ]


def test_a_brace_that_is_never_closed_and_names_nothing_is_plain_text() -> None:
    assert rendered("write ${ in front") == "write ${ in front"


# --- values ----------------------------------------------------------------------------------------------


def test_values_become_text_in_python_notation_and_null_becomes_nothing() -> None:
    context = {"b": True, "i": 5, "f": 1.5, "l": (1, "a"), "m": {"k": ("v",)}, "n": None}
    template = "${context.b} ${context.i} ${context.f} ${context.l} ${context.m} [${context.n:default=x}]"
    assert rendered(template, **context) == "True 5 1.5 [1, 'a'] {'k': ['v']} []"


def test_guards_stand_in_for_missing_values_and_quote_what_they_put_there() -> None:
    template = "[${context.a?}] ${context.a?:shell} ${context.a:default=x y:shell} ${foo.bar?}${context.a:default=z}"
    assert rendered(template) == "[] '' 'x y' z"


def test_an_unguarded_missing_value_is_named_up_to_where_the_path_broke() -> None:
    with pytest.raises(MissingValue, match=r"^Path 'cfg\.b' not found in context$") as error:
        rendered("${context.cfg.b.c}", cfg={"a": 1})
    assert (error.value.namespace, error.value.path) == ("context", ("cfg", "b", "c"))
    with pytest.raises(MissingValue, match=r"^Unknown namespace: foo$"):
        rendered("${foo.bar}")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("X=1; echo $${X} $X $${X:-2}", "X=1; echo ${X} $X ${X:-2}"),
        ("$$${context.a}", "$${context.a}"),
        ("$(date) `date` $$(date) $", "$(date) `date` $$(date) $"),
    ],
)
def test_only_the_dollar_brace_form_is_claimed_and_can_be_escaped(template: str, text: str) -> None:
    assert rendered(template, a="never") == text


@given(value=ANY_TEXT)
def test_what_was_put_in_is_never_looked_at_again(value: str) -> None:
    assert rendered("<${context.a}|${context.a}>", a=value) == f"<{value}|{value}>"
    assert rendered("${context.a}b}", a="${context.") == "${context.b}"


@given(text=ANY_TEXT.filter(lambda text: "${" not in text))
def test_a_text_without_references_stays_as_it_is(text: str) -> None:
    assert render(text, Values()) == text


@given(value=ANY_TEXT)
def test_a_quoted_value_is_one_shell_word(value: str) -> None:
    assert shlex.split(rendered("echo ${context.a:shell} end", a=value)) == ["echo", value, "end"]


def test_a_real_shell_sees_quoted_values_as_written() -> None:
    value = '$(touch x) `id` it\'s "q" \\ \n ${HOME} $$ *'
    script = rendered("printf %s ${context.a:shell}", a=value)
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout == value


@given(template=ANY_TEXT | GRAMMAR_SOUP, value=ANY_TEXT)
def test_any_text_is_read_and_renders_or_raises_a_template_error(template: str, value: str) -> None:
    found = references(template)
    assert all(template.startswith(reference.text, reference.start) for reference in found)
    broken = any(text.startswith(("Invalid", "Unclosed")) for _, text, _ in problems(template))
    try:
        render(template, Values(context={"a": value}, messages={}))
    except TemplateError:
        return
    assert not broken


def test_values_are_rendered_at_any_depth_and_other_types_are_kept() -> None:
    value = {"a": ["${context.x}", 3, {"b": "${context.x?}"}], "c": None, "${k}": ("y",)}
    assert render_value(value, Values(context={"x": 1})) == {"a": ["1", 3, {"b": "1"}], "c": None, "${k}": ["y"]}


# --- here-documents --------------------------------------------------------------------------------------

HEREDOC = "cat <<{mark}\n${{context.v}}\nEOF\necho after\n"


@pytest.mark.parametrize("mark", ["EOF", "'EOF'", '"EOF"', "\\EOF", "  EOF", "-EOF"])
def test_a_value_may_not_end_the_here_document_it_stands_in(mark: str) -> None:
    template = HEREDOC.format(mark=mark)
    assert rendered(template, v="a\nEOFX\n EOF") == template.replace("${context.v}", "a\nEOFX\n EOF")
    with pytest.raises(HeredocCollision) as error:
        render(template, Values(context={"v": "x\nEOF\necho injected"}, state={"name": "b"}))
    assert str(error.value) == (
        "Heredoc terminator collision in state 'b': an interpolated value contains a line exactly equal to the "
        "heredoc terminator 'EOF', which would silently close the heredoc early and execute the remainder of the "
        "payload as shell."
    )
    assert "${context.v}" in error.value.hint


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("cat <<-EOF\n${context.v}\n\tEOF\n", "\t\tEOF"),
        ("cat <<A <<B\nx\nA\n${context.v}\nB\n", "B"),
        ("cat <<EOF\n${context.v}OF\nEOF\n", "E"),
        ("cat <<EOF\n${context.v}EOF\nEOF\n", ""),
        ("cat <<EOF\n${context.v}\n", "EOF"),
        ("# <<X\ncat <<EOF\n${context.v}\nEOF\n", "EOF"),
    ],
)
def test_the_guard_knows_the_forms_of_here_documents(template: str, value: str) -> None:
    with pytest.raises(HeredocCollision):
        rendered(template, v=value)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("cat <<EOF\nx\nEOF\necho ${context.v}", "EOF"),
        ("cat <<<EOF ${context.v}", "\nEOF"),
        ("echo $((1<<n))\necho ${context.v}", "\nn"),
        ("cat <<EOF\n${context.v}\n\tEOF\nEOF\n", "\tEOF"),
        ("cat <<A <<B\nx\nA\n${context.v}\nB\n", "A"),
    ],
)
def test_the_guard_leaves_other_places_alone(template: str, value: str) -> None:
    assert value in rendered(template, v=value)
