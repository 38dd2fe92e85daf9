"""Write hashing.json, the frozen values of cce_core/hashing, from the Python-integer twin.

    PYTHONPATH=tests python tests/golden/make_hashing.py

The values are a file format: run this to add cases, never to change those that are there. Every number is a string
that `int(text, 0)` reads, since many JSON readers round beyond 53 bits. A negative id stands for the word of its bits.
"""

from __future__ import annotations

import json
from pathlib import Path

from reference import hashing

PATH = Path(__file__).with_name("hashing.json")

IDS = [0, 1, 2, 3, 255, 256, 65_535, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**53, 2**53 + 1]
IDS += [2**61 - 2, 2**61 - 1, 2**61, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2, 2**64 - 1, 0x0123456789ABCDEF]
IDS += [-1, -2, -(2**31), -(2**32), -(2**53), -(2**63)]
BUCKETS = [1, 2, 3, 1000, 2**31, 2**32 + 1, 2**61 - 1]
SEED = 0xFEDCBA9876543210
DIGITS = [
    ([1], [0]),
    ([10], range(10)),
    ([2, 3, 5], range(30)),
    ([1000, 1000], [0, 1, 999, 1000, 123_456, 999_999]),
    ([2**16] * 4, [x % 2**64 for x in IDS]),
    ([2**32, 2**32], [x % 2**64 for x in IDS]),
    ([2**63, 1, 2], [x % 2**64 for x in IDS]),
    ([3, 2**31 + 11, 2**32 - 5], [0, 2**31, 2**32, 2**53, 2**61 - 1, 2**63]),
    ([97] * 10, [x % 2**64 for x in IDS]),
]
BALANCED = [(1, 1), (1, 3), (2, 3), (10, 2), (10**6, 2), (10**6 + 1, 2), (10**6, 3), (33_762_577, 4), (65_537, 16)]
STRINGS = [b"", b"a", b"b", b"ab", b"abc", b"abcd", b"user_1", b"user_12345", bytes(16), bytes(17), bytes(range(128))]
STRINGS += ["é".encode(), "東京".encode(), "🎬".encode(), b"a\0", b"x" * 129, bytes(range(240)), b"y" * 241]
STRINGS += [bytes(range(256)) * 4, bytes(range(256)) * 5 + b"."]


def vectors() -> dict:
    """All sections, each a list of cases."""
    plain = [(seed, stream, None) for seed in (0, 1, 2**63, 2**64 - 1, SEED) for stream in (0, 1, 2**64 - 1)]
    ranged = [(seed, stream, n) for seed, stream in ((0, 0), (SEED, 3)) for n in [*BUCKETS, 2**63]]
    streams = [(), (0,), (0, 0), (0, 1), (1, 0), (2**64 - 1, 0, 7)]
    polynomials = [(k, seed, n) for k in (2, 3, 4, 17) for seed in (0, SEED) for n in BUCKETS]
    polynomials += [(256, 2**64 - 1, 2**61 - 1)]
    return {
        "ids": [str(x) for x in IDS],
        "keys": [
            {"seed": hex(seed), "stream": [hex(x) for x in stream], "key": hex(hashing.derive_key(seed, *stream))}
            for seed in (0, 1, SEED, 2**64 - 1)
            for stream in streams
        ],
        "mix": [
            {
                "seed": hex(seed),
                "stream": hex(stream),
                "n_buckets": n and hex(n),
                "hashes": [hex(hashing.mix_hash(x, n, seed, stream)) for x in IDS],
            }
            for seed, stream, n in plain + ranged
        ],
        "polynomial": [
            {
                "k": k,
                "seed": hex(seed),
                "n_buckets": hex(n),
                "hashes": [hex(hashing.polynomial_hash(x, n, k, seed)) for x in IDS],
            }
            for k, seed, n in polynomials
        ],
        "digits": [
            {
                "bases": [hex(base) for base in bases],
                "ids": [hex(x) for x in ids],
                "digits": [[hex(digit) for digit in hashing.digits(x, bases)] for x in ids],
            }
            for bases, ids in DIGITS
        ],
        "balanced_bases": [
            {"vocab": hex(vocab), "n": n, "bases": [hex(base) for base in hashing.balanced_bases(vocab, n)]}
            for vocab, n in BALANCED
        ],
        "strings": [
            {"seed": hex(seed), "bytes": text.hex(), "hash": hex(hashing.hash_string(text, seed))}
            for seed in (0, 1, SEED, 2**64 - 1)
            for text in STRINGS
        ],
    }


def text() -> str:
    """The file: JSON with one case a line."""
    sections = []
    for name, cases in vectors().items():
        sections.append(f' "{name}": [\n  ' + ",\n  ".join(json.dumps(case) for case in cases) + "\n ]")
    return "{\n" + ",\n".join(sections) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="ascii")
