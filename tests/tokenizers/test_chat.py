"""Chat templates: equal to transformers byte for byte, and harmless whatever the template is."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lattice.errors import LatticeError
from lattice.tokenizers import ChatTemplate, TemplateError
from lattice.tokenizers._budget import FILENAME, Budget, Stop, Tracer

HERE = Path(__file__).parent
GOLDENS = json.loads((HERE.parent / "golden/tokenizers/chats.json").read_text())
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]

_spec = importlib.util.spec_from_file_location("attacks", HERE / "attacks.py")
attacks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(attacks)


def text(source: str, messages: list | None = None, **variables: object) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(TALK if messages is None else messages, **variables)


@pytest.mark.parametrize("golden", GOLDENS, ids=[f"{i}-{golden['name']}" for i, golden in enumerate(GOLDENS)])
def test_equal_to_transformers(golden: dict) -> None:
    assert text(golden["template"], golden["messages"], **golden["options"]) == golden["text"]


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_attack_is_refused_or_harmless(name: str) -> None:
    source = attacks.ATTACKS[name]
    before = time.thread_time()
    tracemalloc.start()
    try:
        result = text(source)
    except TemplateError as error:
        assert str(error).startswith("[chat template] expected ")
        result = ""
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert not any(word in result for word in attacks.SECRET), result
    assert len(result) <= 1 << 20
    assert peak < 64 << 20
    # A hang must fail the test; how fast exactly is no test's business (tracemalloc slows everything).
    assert time.thread_time() - before < 8


@pytest.mark.parametrize(
    "name", ["nested ranges", "doubling", "captured blocks", "macros", "macro branching", "center", "format"]
)
def test_bomb_is_an_error(name: str) -> None:
    with pytest.raises(TemplateError):
        text(attacks.BOMBS[name])


def test_source_limit_counts_bytes() -> None:
    assert text("a" * (64 << 10)) == "a" * (64 << 10)
    with pytest.raises(TemplateError, match="65536 bytes"):
        ChatTemplate("a" * ((64 << 10) + 1))
    with pytest.raises(TemplateError, match="65536 bytes"):
        ChatTemplate("é" * (40 << 10))


def test_output_limit() -> None:
    long = [{"role": "user", "content": "a" * ((1 << 20) - 1)}]
    assert len(text("{{ messages[0].content }}", long)) == (1 << 20) - 1
    with pytest.raises(TemplateError, match="1048576"):
        text("{{ messages[0].content }}ab", long)


@pytest.mark.parametrize(
    "source", ["{{ 'a' * 2 }}", "{{ 2 * 'a' }}", "{{ 'a' ** 2 }}", "{{ '%s' % 1 }}", "{{ '%s'|format(1) }}"]
)
def test_string_operators_are_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="expected n"):
        text(source)


def test_constants_are_not_evaluated_while_compiling() -> None:
    ChatTemplate("{{ 9 ** 9 ** 9 ** 9 }}{{ 'a' * 10 ** 10 }}{{ 'a'|center(10 ** 10) }}{{ '%d'|format(1) }}")


def test_raise_exception_is_a_clear_error() -> None:
    with pytest.raises(LatticeError, match="expected messages that the template accepts, got roles must alternate"):
        text("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("source", ["{% if %}", "{{ a", "{% for %}", "{{ x|nofilter }}", "{% endif %}"])
def test_broken_source_says_where(source: str) -> None:
    with pytest.raises(TemplateError, match=r"template that compiles, got .*line 1"):
        ChatTemplate(source)


def test_messages_stay_the_callers_own() -> None:
    messages = [{"role": "user", "content": ["a"]}]
    with pytest.raises(TemplateError):
        text("{{ messages[0].content.append('b') }}", messages)
    assert messages == [{"role": "user", "content": ["a"]}]

    class Hostile:
        secret = "x"

    with pytest.raises(TemplateError, match="Hostile"):
        text("{{ messages[0].content.secret }}", [{"role": "user", "content": Hostile()}])


def test_the_trace_function_is_given_back() -> None:
    def mine(*_: object) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(mine)
    try:
        text("{{ messages }}")
        assert sys.gettrace() is mine
        with pytest.raises(TemplateError):
            text("{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}")
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)


def test_threads_have_their_own_budgets() -> None:
    template = ChatTemplate("{% set s = messages[0].content %}{% for i in range(12) %}{{ s ~ i }}{% endfor %}")
    content = [{"role": "user", "content": "a" * 80_000}]
    failures: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(5):
                assert len(template.render(content)) == 80_000 * 12 + 14
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_now_is_a_date() -> None:
    assert len(text("{{ strftime_now('%d %b %Y') }}")) >= 10


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet="{}%|'\"()[]~*+.abcrange019_ =\\\n", max_size=60),
    st.sampled_from(["{{ %s }}", "{%% set x = %s %%}{{ x }}", "{%% for i in %s %%}{{ i }}{%% endfor %%}", "%s"]),
)
def test_any_source_gives_text_or_our_error(fragment: str, frame: str) -> None:
    try:
        result = text(frame % fragment)
    except TemplateError:
        return
    assert isinstance(result, str)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text()}),
        max_size=4,
    )
)
def test_content_is_never_code(messages: list) -> None:
    wanted = "".join(f"<{m['role']}>{m['content']}" for m in messages)
    assert text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", messages) == wanted


def test_the_deadline_is_not_raised_where_it_would_be_lost() -> None:
    """Not in strangers' functions, which may be callbacks of the garbage collector: Python drops exceptions there."""
    stranger = eval("lambda: None", {"__name__": "elsewhere"})
    late, reached, previous = Budget(), [], sys.gettrace()
    late.start(-1.0)
    try:
        with pytest.raises(Stop, match="ends within"), Tracer(late):
            stranger()
            reached.append(1)
            exec(compile("(lambda: None)()", FILENAME, "exec"))
            reached.append(2)
    finally:
        sys.settrace(previous)
    assert reached == [1]
