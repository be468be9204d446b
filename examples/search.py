"""Search lines by meaning.      python examples/search.py "a question" [FILE]"""

import sys
from pathlib import Path

import numpy as np

import lattice

LINES = """\
Bread rises because yeast turns sugar into gas.
The Moon pulls the oceans, and twice a day the tide comes in.
A violin's strings sound through the wood of its body.
Bees tell each other where flowers are by dancing.
Glass is sand that was melted and cooled before it could order itself.
Salt lowers the freezing point of water, so roads stay clear of ice.
""".splitlines()


def main(question: str, lines: list[str], count: int = 3) -> None:
    encoder = lattice.load_encoder("minilm")
    documents = encoder.encode_document(lines)
    scores = documents @ encoder.encode_query(question)
    for index in np.argsort(-scores)[:count]:
        print(f"{scores[index]:.3f}  {lines[index]}")


if __name__ == "__main__":
    asked = sys.argv[1] if len(sys.argv) > 1 else "How do insects communicate?"
    given = Path(sys.argv[2]).read_text("utf-8").splitlines() if len(sys.argv) > 2 else LINES
    main(asked, [line for line in given if line.strip()])
