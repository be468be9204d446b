"""A conversation in a few lines: every turn sends all messages, and only what is new is run.

python examples/chat.py ["first message" "second message" ...]
"""

import sys

import lattice

MESSAGES = ["My name is Ada. Please greet me.", "What is my name?"]


def main(texts: list[str]) -> None:
    model = lattice.load("smollm2-135m")  # fetched once, 98 MB
    conversation = model.conversation()
    messages = []
    for text in texts:
        print(f"> {text}")
        messages.append({"role": "user", "content": text})
        answer = conversation.stream(messages, max_tokens=80, temperature=0)
        for chunk in answer:
            print(chunk.text, end="", flush=True)
        messages.append({"role": "assistant", "content": answer.completion().text})
        new = answer.usage.prompt_tokens - answer.usage.reused_tokens
        print(f"\n({new} of {answer.usage.prompt_tokens} prompt tokens were new)\n")


if __name__ == "__main__":
    main(sys.argv[1:] or MESSAGES)
