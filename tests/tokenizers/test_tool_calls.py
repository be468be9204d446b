"""Tool calls: what a template renders is read back whatever the chunking; what is no call stays content, letter by
letter."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lattice.tokenizers.tool_calls import BEGIN, END, ToolCallParser
from lattice.tokenizers.tool_values import typed

PROPERTIES = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "share": {"type": "number"},
    "flag": {"type": "boolean"},
    "list": {"type": "array", "items": {"type": "integer"}},
    "map": {"type": "object"},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": PROPERTIES}}}]


def xml(name: str, arguments: dict) -> str:
    """Return a call as Qwen3.5's template renders it (Jinja's `string` and `tojson`)."""
    parts = [f"{BEGIN}\n<function={name}>\n"]
    for key, value in arguments.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)
        parts.append(f"<parameter={key}>\n{text}\n</parameter>\n")
    return "".join([*parts, f"</function>\n{END}"])


def as_json(name: str, arguments: dict) -> str:
    """Return a call in the form of Qwen3 and Hermes."""
    return f'{BEGIN}\n{{"name": {json.dumps(name)}, "arguments": {json.dumps(arguments)}}}\n{END}'


def cut(text: str, places: list[int]) -> list[str]:
    places = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(places)]


def read(pieces, tools=TOOLS):
    """Return (content, calls as (name, arguments)) of an answer in pieces, the deltas checked against the calls."""
    parser, content, deltas = ToolCallParser(tools), "", []
    for piece in pieces:
        text, new = parser.push(piece)
        content += text
        deltas += new
    text, new = parser.finish()
    content += text
    deltas += new
    streams: dict[int, list] = {}
    for delta in deltas:
        if delta.name is not None:
            assert delta.index == len(streams) and delta.id
            streams[delta.index] = [delta.id, delta.name, ""]
        streams[delta.index][2] += delta.arguments
    whole = {call.id: [call.id, call.name, call.arguments_json] for call in parser.calls}
    assert [stream for stream in streams.values() if stream[0] in whole] == list(whole.values())
    assert all(json.loads(call.arguments_json) == call.arguments for call in parser.calls)
    return content, [(call.name, call.arguments) for call in parser.calls]


# A text that holds a whole end of a value, and what may follow one, cannot be told from the end itself.
letters = st.sampled_from('ab é€😀\n\t "\\<>/=}{') | st.characters(codec="utf-8")
strings = st.text(letters, max_size=20) | st.sampled_from(
    ["", "\n", "\n\n x \n", "</parameter>", "<parameter=x>\n", "</function>", "<tool_call>", END, "a\n</parameter", "5"]
)
floats = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | floats | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3),
    max_leaves=6,
)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "text": strings,
        "count": st.integers(-(2**70), 2**70),
        "share": floats | st.integers(-5, 5),
        "flag": st.booleans(),
        "list": st.lists(json_values, max_size=3),
        "map": st.dictionaries(strings, json_values, max_size=3),
        "maybe": st.none() | st.text("abc\n", max_size=5),
    },
)


@settings(max_examples=400)
@given(st.lists(arguments, min_size=1, max_size=3), st.text("ab<>\n é", max_size=9), st.lists(st.integers(0, 999)))
def test_xml_calls_come_back(given_, before, places):
    text = before + "\n\n" + "\n".join(xml("f", each) for each in given_) + "\n"
    content, calls = read(cut(text, places))
    assert calls == [("f", each) for each in given_]
    assert content == before.rstrip()


@settings(max_examples=200)
@given(
    st.lists(st.tuples(strings.filter(bool), st.dictionaries(strings, json_values)), min_size=1, max_size=3),
    st.lists(st.integers(0, 999)),
)
def test_json_calls_come_back(given_, places):
    text = "So: " + "\n".join(as_json(name, each) for name, each in given_) + " done"
    content, calls = read(cut(text, places))
    assert calls == given_
    assert content == "So: done"


@pytest.mark.parametrize("form", [xml, as_json])
def test_every_split_position_gives_the_same(form):
    given_ = {"text": "line\n</parameter>x <b>\n", "count": 7, "map": {"a": ["</tool_call>", "}"]}}
    text = f"One.\n\n{form('f', given_)}\n{form('f', {})}\nTwo."
    for first in range(len(text) + 1):
        assert read([text[:first], text[first:]]) == ("One.\nTwo.", [("f", given_), ("f", {})])
    assert read(text) == ("One.\nTwo.", [("f", given_), ("f", {})])


def test_names_and_strings_come_as_they_are_written():
    parser = ToolCallParser(TOOLS)
    text = xml("f", {"text": 'a "quoted"\nline', "count": 12})
    seen = []
    for letter in text:
        seen += parser.push(letter)[1]
    assert seen[0].name == "f" and seen[0].arguments == ""
    joined = "".join(delta.arguments for delta in seen)
    assert joined == '{"text": "a \\"quoted\\"\\nline", "count": 12}'
    assert max(len(delta.arguments) for delta in seen) <= len(', "count": ') + 2  # nothing waits for its end
    parser, seen = ToolCallParser(), []
    for letter in as_json("f", {"text": "abcdef" * 9}):
        seen += parser.push(letter)[1]
    assert seen[0].name == "f" and max(len(delta.arguments) for delta in seen) == 1


@pytest.mark.parametrize(
    "text",
    [
        BEGIN, f"a {BEGIN} b", f"{BEGIN}{BEGIN}", f"{BEGIN}{END}", f"{BEGIN}\n\n", "<tool_cal", "  ", "a \n", END,
        f"{BEGIN}[1]{END}", f"{BEGIN}{{}}{END}", f"{BEGIN}{{1: 2}}{END}",
        f'{BEGIN}{{"name": 5, "arguments": {{}}}}{END}',
        f'{BEGIN}{{"name": "f", "arguments": [1]}}{END}', f'{BEGIN}{{"name": "f", "arguments": {{"a": NaN}}}}{END}',
        f'{BEGIN}{{"name": "f", "arguments": {{"a": 1}}, "arguments": {{}}}}{END}',
        f'{BEGIN}{{"name": "f", "arguments": {{"a": "b"}}', f'{BEGIN}{{"name": "f", "arguments": {{"a": }}}}{END}',
        f'{BEGIN}{{"name": "f", "arguments": {"[" * 5000}{"]" * 5000}}}{END}', f"{BEGIN}<function=", f"{BEGIN}<func x",
        f"{BEGIN}<function=>", f"{BEGIN}<function=f", f"{BEGIN}<function=a\nb></function>{END}",
        f"{BEGIN}<function={'f' * 300}></function>{END}", f"{BEGIN}<function=f>",
        f"{BEGIN}<function=f>words</function>",
        f"{BEGIN}<function=f><parameter=text>", f"{BEGIN}<function=f><parameter=text>\nabc\n</parameter>",
        f"{BEGIN}<function=f><parameter=text>abc</function>{END}", f"{BEGIN}<function=f><parameter=></parameter>",
        f"{BEGIN}<function=f><parameter=a>1</parameter><parameter=a>2</parameter></function>{END}",
        f"{BEGIN}<function=f><parameter=text>a</parameter>{' ' * 99}</function>{END}", f"{BEGIN}{' ' * 99}<function=f>",
    ],
)  # fmt: skip
def test_what_is_no_call_is_content(text):
    assert read([text]) == (text, []) == read(text)
    behind = text + xml("f", {"count": 1})
    content, calls = read(behind)
    if "<parameter=text>" in text or ("arguments" in text and not calls):  # a value may hold anything
        assert content in ("", behind)
    else:
        assert (content, calls) == (text.rstrip(), [("f", {"count": 1})])


@settings(max_examples=500)
@given(
    st.lists(
        st.sampled_from(
            [BEGIN, END, "<function=f>", "</function>", "<parameter=text>", "<parameter=count>", "</parameter>", "\n",
             '{"name": "f", "arguments": ', "{", "}", '"', "\\", "[", "]", "x", " ", "<", "1"]
        ),
        max_size=20,
    ),
    st.lists(st.integers(0, 999)),
)  # fmt: skip
@example([BEGIN, '{"name": "f", "arguments": ', "{", "}", "}", "}", END], [])
def test_hostile_text_is_read_the_same_however_it_is_cut(pieces, places):
    text = "".join(pieces)
    content, calls = read([text])
    assert read(cut(text, places)) == (content, calls) == read(text)
    assert calls or content == text


def test_an_end_that_was_cut_off_is_forgiven():
    whole = xml("f", {"text": "x"})
    assert read([whole.removesuffix(END)]) == ("", [("f", {"text": "x"})])  # as the stop string </tool_call> leaves it
    assert read([whole.removesuffix("call>")]) == ("", [("f", {"text": "x"})])
    assert read([whole.replace("\n", "")]) == ("", [("f", {"text": "x"})])
    content, calls = read([whole.removesuffix(END), "and so on"])
    assert (content, calls) == ("and so on", [("f", {"text": "x"})])


def test_arguments_of_json_calls_may_be_text_or_absent():
    assert read([f'{BEGIN}{{"arguments": "{{\\"a\\": 1}}", "name": "f"}}{END}'])[1] == [("f", {"a": 1})]
    assert read([f'{BEGIN}{{"name": "f"}}{END}'])[1] == [("f", {})]


def test_long_answers_take_linear_time():
    value = "x <y> \n" * 40_000
    started = time.process_time()
    text = xml("f", {"text": value}) + as_json("f", {"text": value}) + BEGIN + "\n" * 50_000 + "<" * 50_000
    assert [call[1]["text"] for call in read([text[i : i + 5] for i in range(0, len(text), 5)])[1]] == [value, value]
    assert time.process_time() - started < 30  # a hang must fail; how fast it is, is no test's business


# ---- values ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, " 5 ", " 5 "), ({"type": "string"}, '"a"', '"a"'), ({"type": "string"}, "null", "null"),
        ({"type": "integer"}, "5", 5), ({"type": "integer"}, " -5\n", -5), ({"type": "integer"}, "5.0", 5),
        ({"type": "integer"}, "5.5", "5.5"), ({"type": "integer"}, "1_000", "1_000"),
        ({"type": "integer"}, "true", "true"), ({"type": "integer"}, "9" * 5000, "9" * 5000),
        ({"type": "number"}, "5", 5), ({"type": "number"}, "1e-05", 1e-5),
        ({"type": "number"}, "1e999", "1e999"), ({"type": "number"}, "NaN", "NaN"), ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False), ({"type": "boolean"}, "yes", "yes"), ({"type": "null"}, "None", None),
        ({"type": ["integer", "null"]}, "null", None), ({"type": "integer", "nullable": True}, "None", None),
        ({"type": "integer"}, "null", "null"), ({"type": "array"}, '[1, "a"]', [1, "a"]),
        ({"type": "array"}, "1", "1"),
        ({"type": "object"}, '{"a": null}', {"a": None}), ({"type": "object"}, "{'a': 1}", "{'a': 1}"),
        ({"type": "object"}, "[" * 9999, "[" * 9999), ({"type": "array"}, "[" * 99 + "]" * 99, "[" * 99 + "]" * 99),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "5", 5), ({"items": {}}, "[]", []),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "x", "x"), ({"oneOf": [{"type": "boolean"}]}, "true", True),
        ({"enum": ["1", "2"]}, "1", "1"), ({"enum": [1, 2]}, "1", 1), ({"enum": [1, 2]}, "3", "3"),
        ({"type": "string", "enum": ["a b"]}, "a b", "a b"), ({"const": True}, "True", True), ({}, "5", "5"),
        ({}, '{"a": 1}', {"a": 1}), ({}, "words", "words"), ({"$ref": "#/$defs/size"}, "5", 5),
        ({"$ref": "#/$defs/loop"}, "5", "5"), ({"$ref": "#/nowhere"}, "5", "5"), ({"type": 7, "anyOf": "x"}, "5", "5"),
    ],
)  # fmt: skip
def test_values_are_typed_by_the_schema(schema, text, value):
    definitions = {"size": {"type": "integer"}, "loop": {"anyOf": [{"$ref": "#/$defs/loop"}] * 9}}
    parameters = {"properties": {"a": schema}, "$defs": definitions}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    call = f"{BEGIN}<function=f><parameter=a>\n{text}\n</parameter></function>{END}"
    ((_, found),) = read([call], tools)[1]
    assert found == {"a": value} and type(found["a"]) is type(value)


def test_parameters_and_functions_that_no_schema_knows():
    call = xml("g", {"a": "5", "b": [1]})
    assert read([call])[1] == [("g", {"a": "5", "b": [1]})]
    call = [xml("g", {"a": 5})]
    more = {"name": "g", "parameters": {"additionalProperties": {"type": "integer"}}}
    assert read(call, [{"type": "function", "function": more}])[1] == [("g", {"a": 5})]
    for parameters in (None, 5, {"properties": []}, {"properties": {"a": True}}):
        assert read(call, [{"function": {"name": "g", "parameters": parameters}}])[1] == [("g", {"a": "5"})]


@given(st.text(max_size=20))
def test_any_text_is_a_value(text):
    assert typed(text, [{"type": "string"}]) == text
    assert isinstance(typed(text, [{"type": "integer"}]), (int, str))
