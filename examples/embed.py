"""Turn texts into vectors and compare them.      python examples/embed.py [TEXT TEXT ...]"""

import sys

import lattice

TEXTS = [
    "The cat sleeps on the sofa.",
    "A kitten naps on the couch.",
    "The train to Lisbon leaves at noon.",
]


def main(texts: list[str]) -> None:
    encoder = lattice.load_encoder("minilm")  # fetched once, 92 MB
    vectors = encoder.encode(texts)  # one row a text, each of length 1: products are cosines
    print(f"{len(texts)} texts, {encoder.dimensions} dimensions\n")
    for text, row in zip(texts, vectors @ vectors.T, strict=True):
        print("  ".join(f"{value:5.2f}" for value in row), " ", text)


if __name__ == "__main__":
    main(sys.argv[1:] or TEXTS)
