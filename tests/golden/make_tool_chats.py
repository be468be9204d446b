"""Make tests/golden/tokenizers/tool_chats.json: conversations with tools and reasoning as transformers renders them.

The template is written for this test; what it renders is what Qwen3.5's does: tools before the system message, calls
as <function=...><parameter=...>, results as a user's <tool_response>, reasoning only behind the last question, and an
empty block of it where thinking is off.

    pip install transformers tokenizers
    python tests/golden/make_tool_chats.py
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from transformers import PreTrainedTokenizerFast

OUT = Path(__file__).with_name("tokenizers") / "tool_chats.json"
TEMPLATE = r"""
{%- macro flat(content) -%}
  {%- if content is string -%}{{ content }}
  {%- elif content is sequence -%}{%- for part in content -%}
    {%- if part.type == 'text' -%}{{ part.text }}{%- else -%}{{ raise_exception('only text parts') }}{%- endif -%}
  {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro turn(role, text) -%}{{ '<|im_start|>' ~ role ~ '\n' ~ text ~ '<|im_end|>\n' }}{%- endmacro -%}
{%- macro written(call) -%}
  {{- '<tool_call>\n<function=' ~ call.name ~ '>\n' -}}
  {%- for key, value in call.arguments | items -%}
    {{- '<parameter=' ~ key ~ '>\n' -}}
    {{- value | string if value is string or value is not iterable else value | tojson | safe -}}
    {{- '\n</parameter>\n' -}}
  {%- endfor -%}
  {{- '</function>\n</tool_call>' -}}
{%- endmacro -%}
{%- set found = namespace(question=-1) -%}
{%- for message in messages if message.role == 'user' and not flat(message.content).startswith('<tool_response>') -%}
  {%- set found.question = messages.index(message) -%}
{%- endfor -%}
{%- if found.question < 0 -%}{{- raise_exception('no question of a user') -}}{%- endif -%}
{%- set system = flat(messages[0].content) | trim if messages[0].role == 'system' else '' -%}
{%- if tools -%}
  {%- set listed = tools | map('tojson') | join('\n') -%}
  {{- turn('system', '# Tools\n\n<tools>\n' ~ listed ~ '\n</tools>' ~ ('\n\n' ~ system if system else '')) -}}
{%- elif system -%}{{- turn('system', system) -}}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
  {%- set content = flat(message.content) | trim -%}
  {%- if message.role == 'user' -%}{{- turn('user', content) -}}
  {%- elif message.role == 'tool' -%}
    {%- if loop.previtem is undefined or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
    {{- '\n<tool_response>\n' ~ content ~ '\n</tool_response>' -}}
    {%- if loop.nextitem is undefined or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
  {%- else -%}
    {%- set thought = message.reasoning_content | default('', true) | trim -%}
    {%- set late = messages.index(message) > found.question -%}
    {%- set thought = '<think>\n' ~ thought ~ '\n</think>\n\n' if thought and late -%}
    {%- set written_calls = namespace(text='') -%}
    {%- for call in message.tool_calls or [] -%}
      {%- set before = ('\n\n' if content else '') if loop.first else '\n' -%}
      {%- set written_calls.text = written_calls.text ~ before ~ written(call.function or call) -%}
    {%- endfor -%}
    {{- turn('assistant', (thought or '') ~ content ~ written_calls.text) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n<think>\n' ~ ('\n</think>\n\n' if enable_thinking is false else '') -}}
{%- endif -%}
""".strip()
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather <now> & 'here', été",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {"type": "object"}},
            "required": ["city"],
        },
    },
}
NOTE = {"type": "function", "function": {"name": "note", "parameters": {"type": "object", "properties": {}}}}
ARGUMENTS = {
    "city": "Köln\n 'Süd' ",
    "days": 3,
    "units": {"t": ["°C", None, True]},
    "exact": True,
    "at": None,
    "x": 1.5,
}


def call(name: str, arguments: dict) -> dict:
    return {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": arguments}}


ASKED = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Weather in <Köln>?\n"}]
CALLED = [
    *ASKED,
    {
        "role": "assistant",
        "content": "Let me look.",
        "reasoning_content": "\nA call is due.\n",
        "tool_calls": [call("weather", ARGUMENTS), call("note", {})],
    },
    {"role": "tool", "tool_call_id": "call_weather", "content": '{"t": 21}'},
    {"role": "tool", "tool_call_id": "call_note", "content": [{"type": "text", "text": "noted"}]},
]
AGAIN = [
    *CALLED,
    {"role": "assistant", "content": "21 degrees.", "reasoning_content": "The result says so."},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "tomorrow?"}]},
    {"role": "assistant", "content": None, "tool_calls": [call("weather", {"city": "Köln", "days": 1})]},
    {"role": "tool", "content": "rain"},
]


def main() -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()))
    cases = []
    for messages in (ASKED, CALLED, AGAIN, ASKED[1:]):
        for options in ({}, {"enable_thinking": True}, {"enable_thinking": False}, {"tools": [WEATHER, NOTE]}):
            text = fast.apply_chat_template(
                messages, chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True, **options
            )
            cases.append({"messages": messages, "options": options, "text": text})
    value = {"template": TEMPLATE, "cases": cases}
    OUT.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
