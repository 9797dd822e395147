"""Judging by a model: what is asked, and what the answer means.

`step` is called with the answers so far and says what to look up or to ask next, until it has a verdict. Every answer
is journaled by the engine, so a resumed run never asks twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from .effects import Answer, AskModel, Effect, ModelSaid, Probed, ProbeFile, WriteFile
from .hosts.turn import Reply
from .model import EMPTY, Judge
from .template import Scope, TemplateError, render

SEEN = 4000
"""Characters of the text that a judge sees: its end."""
VERDICTS = ("yes", "no", "blocked", "partial", "cannot_judge")
NEED_EVIDENCE = frozenset({"yes", "no", "blocked", "partial"})
PREVIEW = 500
RAW_PREVIEW = 300
TIMEOUT = 1800.0
MODEL = "sonnet"
"""Who judges where the host is Claude Code and nobody says; others have a model of their own."""
NEUTRAL = "neutral"
QUESTION = "Did the action below do what it was meant to do?"
EVIDENCE = """Give one verdict: yes, no, partial, blocked, or cannot_judge. All but the last need evidence: a passage of
the output, quoted word for word. If no passage of the output settles the question, the verdict is cannot_judge; do not
guess."""
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "verdict": {"type": "string", "enum": list(VERDICTS)},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "reason": {"type": "string"},
        "evidence": {"type": "string"},
    },
    "required": ["verdict", "confidence", "reason", "evidence"],
}
PAIR_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "verdict": {"type": "string", "enum": ["yes", "no"]},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "reason": {"type": "string"},
    },
    "required": ["verdict", "confidence", "reason"],
}
DUEL_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "verdict_a": {"type": "string", "enum": ["yes", "no"]},
        "verdict_b": {"type": "string", "enum": ["yes", "no"]},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "reason": {"type": "string"},
    },
    "required": ["verdict_a", "verdict_b", "confidence", "reason"],
}

Details = dict[str, Any]


class Verdict(Struct, frozen=True):
    """A verdict and the facts behind it, to be cleaned for JSON by `verdicts`."""

    word: str
    details: Mapping[str, Any] = EMPTY


class Case(Struct, frozen=True, kw_only=True):
    """What is to be judged, by whom. `chances` are numbers in [0, 1), one for each answer there will be.

    `advisor` is whether a host for advice is set up.
    """

    judge: Judge
    output: str
    scope: Scope
    timeout: float = TIMEOUT
    chance: float = 0.5
    advisor: bool = False


def step(case: Case, answers: Sequence[Answer]) -> Effect | Verdict:
    """What to do next, given the answers to what was done before: an effect, or the verdict."""
    match case.judge.kind:
        case "contract":
            return _contract(case, answers)
        case "comparator":
            return _comparator(case, answers)
        case "advisor_consult":
            return _advice(case, answers)
        case _:
            return _structured(case, answers)


# --- one question: llm_structured, and the default judge of prompts ---------------------------------------


def _structured(case: Case, answers: Sequence[Answer]) -> Effect | Verdict:
    keys = case.judge.keys
    schema = keys.get("schema") or SCHEMA
    prompt = _prompt(case)
    heard = _heard(iter(answers), _ask(case, prompt, schema, "judge"))
    if isinstance(heard, AskModel):
        return heard
    opinion, reply = heard
    if isinstance(opinion, Unclear):
        return Verdict("error", opinion.details | _about(reply))
    word, details = _by_schema(opinion, keys) if "schema" in keys else _by_default(opinion, keys)
    return Verdict(word, details | _trace(prompt, reply) | _about(reply))


AGAIN = "Your last answer could not be read. Answer with one JSON object that fits the schema, and nothing else."


def _heard(answers: Iterator[Answer], ask: AskModel) -> AskModel | tuple[Mapping[str, Any] | Unclear, Reply]:
    """What was answered to a question, once it is: an answer that cannot be read is asked for once more."""
    answer = next(answers, None)
    if answer is None:
        return ask
    assert isinstance(answer, ModelSaid)
    opinion = _opinion(answer.reply)
    if isinstance(opinion, Unclear) and opinion.may_ask_again:
        answer = next(answers, None)
        if answer is None:
            return replace(ask, prompt=f"{ask.prompt}\n\n{AGAIN}")
        assert isinstance(answer, ModelSaid)
        opinion = _opinion(answer.reply)
    return opinion, answer.reply


def _prompt(case: Case) -> str:
    template = case.judge.keys.get("prompt") or QUESTION
    try:
        question = render(str(template), case.scope)
    except TemplateError:
        question = str(template)
    return f"{question}\n\n{EVIDENCE}\n\n<action_output>\n{case.output[-SEEN:]}\n</action_output>"


def _by_schema(opinion: Mapping[str, Any], keys: Mapping[str, Any]) -> tuple[str, Details]:
    word = str(opinion.get("verdict", "error"))
    return _weighed(word, opinion, keys, coerced=False)


def _by_default(opinion: Mapping[str, Any], keys: Mapping[str, Any]) -> tuple[str, Details]:
    word = str(opinion.get("verdict", "error"))
    if word not in VERDICTS:
        details = {"error": f"no such verdict: {word!r}", "invalid_verdict": True, "raw_verdict": word}
        return "error", details
    coerced = word in NEED_EVIDENCE and not str(opinion.get("evidence") or "").strip()
    return _weighed("no" if coerced else word, opinion, keys, coerced=coerced)


def _weighed(word: str, opinion: Mapping[str, Any], keys: Mapping[str, Any], *, coerced: bool) -> tuple[str, Details]:
    confidence = _confidence(opinion)
    confident = confidence >= float(keys.get("min_confidence", 0.5))
    details = {
        "confidence": confidence,
        "confident": confident,
        "reason": opinion.get("reason", ""),
        "evidence": opinion.get("evidence", ""),
        "evidence_coerced": coerced,
        "raw": dict(opinion),
    }
    return f"{word}_uncertain" if keys.get("uncertain_suffix") and not confident else word, details


def _confidence(opinion: Mapping[str, Any]) -> float:
    value = opinion.get("confidence", 1.0)
    try:
        return float(value)
    except (TypeError, ValueError):
        return 1.0


def _trace(prompt: str, reply: Reply) -> Details:
    return {"llm_model": _model(reply), "llm_prompt": prompt[:PREVIEW], "llm_raw_output": reply.answer[:PREVIEW]}


def _about(reply: Reply) -> Details:
    """Which model was asked for and which one answered; None where nobody named one."""
    backend = {"model_backend": reply.host} if reply.host else {}
    return {"model_requested": reply.asked_model or None, "model_resolved": _model(reply), **backend}


def _model(reply: Reply) -> str | None:
    return reply.model or reply.asked_model or None


def _ask(case: Case, prompt: str, schema: Mapping[str, Any] | None, purpose: str) -> AskModel:
    return AskModel(prompt, schema, "", case.timeout, purpose)


# --- reading an answer -------------------------------------------------------------------------------------


class Unclear(Struct, frozen=True):
    """An answer that is none, and why. It is asked for again only if the model answered at all."""

    details: Details
    may_ask_again: bool = False


def _opinion(reply: Reply) -> Mapping[str, Any] | Unclear:
    if reply.timed_out:
        return Unclear({"error": "the judge took too long", "timeout": True})
    if reply.missing:
        return Unclear({"error": reply.error, "missing_dependency": True})
    if not reply.ok:
        return Unclear({"error": reply.error, "api_error": True})
    if isinstance(reply.structured, Mapping):
        return reply.structured
    text = reply.answer.strip()
    if not text:
        return Unclear({"error": "the judge said nothing", "empty_output": True}, may_ask_again=True)
    found = _object_in(text) or _tags_in(text)
    if found is None:
        details = {"error": "the judge's answer cannot be read", "raw_preview": text[:RAW_PREVIEW]}
        return Unclear(details, may_ask_again=True)
    return found


_FENCE = re.compile(r"```(?:\w+)?\s*\n(.*?)\n?```", re.DOTALL)


def _object_in(text: str) -> Mapping[str, Any] | None:
    """A JSON object: the whole text, a fenced part of it, or its last line."""
    fenced = _FENCE.search(text)
    for candidate in (text, fenced[1] if fenced else "", text.splitlines()[-1]):
        try:
            document = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict):
            return document
    return None


def _tags_in(text: str) -> Mapping[str, Any] | None:
    found = {}
    for name in ("verdict", "confidence", "reason", "evidence"):
        match = re.search(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        if match:
            found[name] = match[1].strip()
    if "verdict" not in found:
        return None
    opinion: Details = {**found, "verdict": found["verdict"].lower()}
    opinion["confidence"] = _confidence(found)
    return opinion


# --- many questions: contract -------------------------------------------------------------------------------


def _contract(case: Case, answers: Sequence[Answer]) -> Effect | Verdict:
    """For each pair: read both files, then ask; a pair that cannot be read is an error without a question."""
    given = iter(answers)
    results: list[Details] = []
    for pair in case.judge.keys.get("pairs") or ():
        step_or_result = _pair(case, pair, given)
        if not isinstance(step_or_result, dict):
            return step_or_result
        results.append(step_or_result)
    words = [result["verdict"] for result in results]
    if not words or "error" in words:
        return Verdict("error", {"pair_results": results, **({} if words else {"error": "there are no pairs"})})
    return Verdict("yes" if all(word == "yes" for word in words) else "no", {"pair_results": results})


def _pair(case: Case, pair: Mapping[str, Any], given: Iterable[Answer]) -> Effect | Details:
    answers = iter(given)
    names = {side: str(pair.get(side) or "") for side in ("producer", "consumer")}
    result: Details = dict(names)
    texts: dict[str, str] = {}
    for side, path in names.items():
        answer = next(answers, None)
        if answer is None:
            return ProbeFile(path)
        assert isinstance(answer, Probed)
        text = _selected(answer.value, pair.get(f"{side}_pattern"))
        if text is None:
            what = "cannot be read" if answer.value is None else "has no match of its pattern"
            result |= {"verdict": "error", "error": f"{path} {what}"} if "error" not in result else {}
        texts[side] = text or ""
    if "error" in result:
        return result
    heard = _heard(answers, _ask(case, _pair_prompt(pair, texts), PAIR_SCHEMA, "contract"))
    if isinstance(heard, AskModel):
        return heard
    opinion = heard[0]
    if isinstance(opinion, Unclear):
        return result | {"verdict": "error", **opinion.details}
    word = str(opinion.get("verdict", "error")).lower()
    word = word if word in ("yes", "no") else "error"
    return result | {"verdict": word, "confidence": _confidence(opinion), "reason": opinion.get("reason", "")}


def _selected(text: str | None, pattern: object) -> str | None:
    if text is None or not pattern:
        return None if text is None else text[-SEEN:]
    try:
        found = [match[0] for match in re.finditer(str(pattern), text, re.DOTALL)]
    except re.error:
        return None
    return "\n".join(found) or None


def _pair_prompt(pair: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    contract = str(pair.get("contract") or "The consumer uses what the producer provides, in the form it provides it.")
    return (
        f"Do these two sides keep this contract?\n{contract}\n\n"
        f"<producer>\n{texts['producer']}\n</producer>\n\n<consumer>\n{texts['consumer']}\n</consumer>\n\n"
        "Verdict yes if they agree, no if they do not; name the place in the reason."
    )


# --- blind comparison: comparator ---------------------------------------------------------------------------


def _comparator(case: Case, answers: Sequence[Answer]) -> Effect | Verdict:
    keys = case.judge.keys
    path = f"{keys.get('baseline_path')}/output.txt"
    if not answers:
        return ProbeFile(path)
    baseline = answers[0].value if isinstance(answers[0], Probed) else None
    promotes = bool(keys.get("auto_promote"))
    written = any(not isinstance(answer, Probed | ModelSaid) for answer in answers)
    if baseline is None:
        if promotes and not written:
            return WriteFile(path, case.output)
        return _without_baseline(path, promotes=promotes)
    rounds = max(1, int(keys.get("min_pairs") or 1))
    said = (answer for answer in answers if isinstance(answer, ModelSaid))
    opinions: list[Mapping[str, Any] | Unclear] = []
    for number in range(rounds):
        prompt = _duel_prompt(case, baseline, ours_first=_ours_is_first(case.chance, number))
        heard = _heard(said, _ask(case, prompt, DUEL_SCHEMA, "compare"))
        if isinstance(heard, AskModel):
            return heard
        opinions.append(heard[0])
    verdict = _score(case, opinions)
    if verdict.word == "yes" and promotes and not written:
        return WriteFile(path, case.output)
    return verdict


def _without_baseline(path: str, *, promotes: bool) -> Verdict:
    if promotes:
        return Verdict("yes", {"bootstrapped": True, "reason": f"the first output is the baseline: {path}"})
    return Verdict("no_baseline", {"reason": f"there is no baseline: {path}"})


def _ours_is_first(chance: float, number: int) -> bool:
    """Which side is called A, by a coin that is thrown anew each time, and the same again in a replay."""
    return int(chance * 2**20) >> (number % 20) & 1 == 1


def _duel_prompt(case: Case, baseline: str, *, ours_first: bool) -> str:
    question = case.judge.keys.get("prompt") or "Does each of these outputs do what was asked for, well and completely?"
    try:
        question = render(str(question), case.scope)
    except TemplateError:
        question = str(question)
    sides = (case.output, baseline) if ours_first else (baseline, case.output)
    a, b = (side[-SEEN:] for side in sides)
    return (
        f"{question}\n\n<output_a>\n{a}\n</output_a>\n\n<output_b>\n{b}\n</output_b>\n\n"
        "Judge each on its own: yes or no. Do not prefer one for its place."
    )


def _score(case: Case, opinions: Sequence[Mapping[str, Any] | Unclear]) -> Verdict:
    ours = theirs = 0
    last: Mapping[str, Any] = EMPTY
    for number, opinion in enumerate(opinions):
        if isinstance(opinion, Unclear):
            continue
        a, b = (str(opinion.get(name)).lower() == "yes" for name in ("verdict_a", "verdict_b"))
        first = _ours_is_first(case.chance, number)
        ours += a if first else b
        theirs += b if first else a
        last = opinion
    word = "yes" if ours > theirs else "no" if ours < theirs else "tie"
    raw = {name: last[name] for name in ("verdict_a", "verdict_b") if name in last}
    facts = {"harness_wins": ours, "baseline_wins": theirs, "min_pairs": len(opinions)}
    return Verdict(word, {**facts, "raw": raw, "reason": last.get("reason", "")})


# --- advice ------------------------------------------------------------------------------------------------


def _advice(case: Case, answers: Sequence[Answer]) -> Effect | Verdict:
    keys = case.judge.keys
    words = {str(word).lower(): str(verdict) for word, verdict in dict(keys.get("verdict_map") or {}).items()}
    if not case.advisor:
        return Verdict(NEUTRAL, {"skipped": "no host for advice is set up"})
    if not answers:
        timeout = float(keys.get("timeout") or case.timeout)
        return replace(_ask(case, _advice_prompt(case, words), None, "advise"), timeout=timeout)
    answer = answers[0]
    assert isinstance(answer, ModelSaid)
    if not answer.reply.ok:
        return Verdict(NEUTRAL, {"error": answer.reply.error})
    return Verdict(_mapped(answer.reply.answer, words), {"answer": answer.reply.answer[:PREVIEW]})


def _mapped(answer: str, words: Mapping[str, str]) -> str:
    found: list[str] = re.findall(r"[\w-]+", answer.lower())
    if found and found[0] in words:
        return words[found[0]]
    return next((words[word] for word in found if word in words), NEUTRAL)


def _advice_prompt(case: Case, words: Mapping[str, str]) -> str:
    parts = [_rendered(str(case.judge.keys.get("question") or ""), case.scope)]
    for name in case.judge.keys.get("context_from") or ():
        value = _rendered(f"${{{name}}}", case.scope)
        if value != f"${{{name}}}":
            parts.append(f"{name}:\n{value[-SEEN:]}")
    parts.append(f"Answer with one of these words first: {', '.join(words)}.")
    return "\n\n".join(parts)


def _rendered(template: str, scope: Scope) -> str:
    try:
        return render(template, scope)
    except TemplateError:
        return template
