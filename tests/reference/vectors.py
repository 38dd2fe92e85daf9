"""Vectors as they are written, and what is most like them, by definition: nothing of cce_core."""

from __future__ import annotations

import struct

import numpy as np


def glove(words, vectors):
    """GloVe's text."""
    return "".join(f"{w} {' '.join(repr(float(x)) for x in v)}\n" for w, v in zip(words, vectors, strict=True)).encode()


def word2vec_text(words, vectors):
    """word2vec's text: a header before it."""
    return f"{len(words)} {len(vectors[0])}\n".encode() + glove(words, vectors)


def word2vec_binary(words, vectors, end=b"\n"):
    """word2vec's binary format, with a line end after each vector or none."""
    head = f"{len(words)} {len(vectors[0])}\n".encode()
    rows = (w.encode() + b" " + struct.pack(f"<{len(v)}f", *v) + end for w, v in zip(words, vectors, strict=True))
    return head + b"".join(rows)


def added_up(x, q):
    """Σ_d x[n, d] · q[d] in float64, one coordinate after the other."""
    total = np.zeros(len(x))
    for d in range(len(q)):
        total = total + np.float64(q[d]) * x[:, d].astype(np.float64)
    return total


def most_similar(vectors, query, k, metric, without=()):
    """The k rows that are most like a query, best first, ties by the lower row; and how like."""
    x, q = np.asarray(vectors, np.float32), np.asarray(query, np.float32)
    if metric == "l2":
        total = np.zeros(len(x))
        for d in range(len(q)):
            apart = x[:, d].astype(np.float64) - np.float64(q[d])
            total = total + apart * apart
        order, score = total, np.sqrt(total)
    else:
        score = added_up(x, q)
        if metric == "cosine":
            squares = np.zeros(len(x))
            for d in range(len(q)):
                squares = squares + x[:, d].astype(np.float64) ** 2
            lengths = np.sqrt(squares) * np.sqrt(added_up(q[None], q)[0])
            score = np.divide(score, lengths, out=np.zeros(len(x)), where=lengths > 0)
        order = -score
    ids = [i for i in np.lexsort((np.arange(len(x)), order)).tolist() if i not in without][:k]
    return np.array(ids, np.int64), score[ids]
