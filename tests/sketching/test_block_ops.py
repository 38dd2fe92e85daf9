"""Blocks moved by vector instructions, against slices; every width, codec and alignment that the lookup may ask for."""

from __future__ import annotations

import numpy as np
import pytest

from cce_core._jit import jit
from cce_core.sketching.block_ops import add_blocks, add_scaled, array_at, copy_blocks, copy_rows, load_bits, sum_blocks
from cce_core.storage.codec import CODECS, codec


def mover(number):
    kind = codec(CODECS[number]).dtype

    @jit
    def run(how, address, n, to, tos, shift, scales, froms, back, count, width, factors):
        codes = array_at(address, n, kind)
        if how == 0:
            copy_blocks(to, tos, shift, codes, scales, froms, back, count, width, factors, number)
        elif how == 1:
            add_blocks(to, tos, shift, codes, scales, froms, back, count, width, factors, number)
        else:
            add_scaled(to, tos, shift, codes, scales, froms, back, count, width, factors, number)

    return run


@pytest.mark.parametrize("number", range(len(CODECS)), ids=CODECS)
def test_every_width_moves_its_floats_alone(number):
    kept, run, rng = codec(CODECS[number]), mover(number), np.random.default_rng(number)
    codes, scales = kept.encode(rng.standard_normal(64 * 12).astype(np.float32))
    decoded = kept.decode(codes, scales, 64 * 12)
    for width in (*range(1, 36), 64, 100):
        # from places where no move of up to 16 floats crosses a scale's 64: those that the lookup sends here
        froms = np.array([0, 64, 16 * 9, 64 * 5], np.uint64)
        if width <= 16 and number < 2:
            froms += np.uint64(3)  # without scales any place will do
        tos = np.array([0, 1, 2, 3], np.uint64) * np.uint64(width + 2)
        factors = rng.standard_normal(4).astype(np.float32)
        for count in range(5):
            for how in range(3):
                to = rng.standard_normal(4 * (width + 2) + 5).astype(np.float32)
                expected = to.copy()
                for n in range(count):
                    o, a = int(tos[n]) + 1, int(froms[n]) + 64
                    block = decoded[a : a + width]
                    if how == 0:
                        expected[o : o + width] = block
                    else:
                        expected[o : o + width] += block * factors[n] if how == 2 else block
                shift, back, number_of, w = (np.uint64(k) for k in (1, 64, count, width))
                run(how, codes.ctypes.data, codes.size, to, tos, shift, scales, froms, back, number_of, w, factors)
                np.testing.assert_array_equal(to, expected)


@pytest.mark.parametrize("number", range(len(CODECS)), ids=CODECS)
def test_runs_of_blocks_are_summed_in_order(number):
    kept, rng = codec(CODECS[number]), np.random.default_rng(number)

    @jit
    def run(address, n, to, tos, scales, froms, heads, width, more):
        sum_blocks(
            to, tos, _1, array_at(address, n, kind), scales, froms, heads, np.uint64(tos.shape[0]), width, more, number
        )

    kind, _1 = kept.dtype, np.uint64(1)
    codes, scales = kept.encode(rng.standard_normal(64 * 12).astype(np.float32))
    decoded = kept.decode(codes, scales, 64 * 12)
    froms = rng.integers(0, 6, 9).astype(np.uint64) * np.uint64(128)  # where no move crosses a scale
    heads = np.array([0, 3, 3, 4, 9], np.uint64)
    others, factors = rng.permutation(froms), rng.standard_normal(9).astype(np.float32)
    for width in (*range(1, 36), 64, 100):
        tos = np.array([2, 0, 3, 1], np.uint64) * np.uint64(width + 2)
        start = rng.standard_normal(4 * (width + 2) + 1).astype(np.float32)
        for more in (None, others, factors):
            to, expected = start.copy(), start.copy()
            for bag in range(4):
                o = int(tos[bag]) + 1
                for i in range(int(heads[bag]), int(heads[bag + 1])):
                    block = decoded[int(froms[i]) : int(froms[i]) + width]
                    if more is others:
                        block = block + decoded[int(others[i]) : int(others[i]) + width]
                    expected[o : o + width] += block * factors[i] if more is factors else block
            run(codes.ctypes.data, codes.size, to, tos, scales, froms, heads, np.uint64(width), more)
            np.testing.assert_array_equal(to, expected)


def test_single_floats_of_int4_at_odd_places():
    kept, run = codec("int4"), mover(CODECS.index("int4"))
    codes, scales = kept.encode(np.arange(64, dtype=np.float32))
    to, at = np.zeros(64, np.float32), np.arange(64, dtype=np.uint64)
    zero, one = np.uint64(0), np.uint64(1)
    run(0, codes.ctypes.data, codes.size, to, at, zero, scales, at, zero, np.uint64(64), one, np.ones(64, np.float32))
    np.testing.assert_array_equal(to, kept.decode(codes, scales, 64))


def test_overlapping_targets_are_added_in_order():
    run, zero = mover(0), np.uint64(0)
    memory, to = np.array([1.0, 2.0, 4.0, 8.0], np.float32), np.zeros(3, np.float32)
    tos, froms = np.array([0, 1, 0], np.uint64), np.array([0, 2, 1], np.uint64)
    ones = np.ones(3, np.float32)
    run(1, memory.ctypes.data, 4, to, tos, zero, memory, froms, zero, np.uint64(3), np.uint64(2), ones)
    np.testing.assert_array_equal(to, [1 + 2, 2 + 4 + 4, 8])


def test_words_are_loaded_from_any_byte():
    words = np.random.default_rng(0).integers(0, 2**64, 3, np.uint64)

    @jit
    def run(words, byte):
        return load_bits(words, byte)

    for byte in range(17):
        assert run(words, np.uint64(byte)) == int.from_bytes(words.tobytes()[byte : byte + 8], "little")


@pytest.mark.parametrize("number", range(len(CODECS)), ids=CODECS)
@pytest.mark.parametrize("terms", [1, 2, 3])
def test_rows_are_their_chunks_side_by_side(number, terms):
    kept, rng = codec(CODECS[number]), np.random.default_rng(number)

    @jit
    def run(address, n, to, tos, scales, froms, apart, count, width, sizes):
        codes = array_at(address, n, kind)
        copy_rows(to, tos, _1, codes, scales, froms, apart, count, width, sizes, number)

    kind, _1 = kept.dtype, np.uint64(1)
    codes, scales = kept.encode(rng.standard_normal(64 * 12).astype(np.float32))
    decoded = kept.decode(codes, scales, 64 * 12)
    for width in (*range(1, 36), 64, 100):
        for chunks in (1, 3):
            froms = rng.integers(0, 6, (chunks * terms, 5)).astype(np.uint64) * np.uint64(128)
            tos = rng.permutation(4).astype(np.uint64) * np.uint64(chunks * width + 2)
            to = rng.standard_normal(4 * (chunks * width + 2) + 1).astype(np.float32)
            expected = to.copy()
            for n in range(4):
                for c in range(chunks):
                    o = int(tos[n]) + 1 + c * width
                    block = np.zeros(width, np.float32)
                    for t in range(terms):
                        a = int(froms[c * terms + t, n])
                        block = block + decoded[a : a + width]
                    expected[o : o + width] = block
            sizes = np.uint64(chunks), np.uint64(terms)
            run(codes.ctypes.data, codes.size, to, tos, scales, froms.reshape(-1), np.uint64(5), np.uint64(4), np.uint64(width), sizes)  # noqa: E501  # fmt: skip
            np.testing.assert_array_equal(to, expected)
