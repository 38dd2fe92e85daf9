"""Statistics of the hashes, with fixed seeds: what comes out is the same in every run.

Each checker takes a hash `f(ids, n, seed)` and returns a list of what is wrong with it: empty for a right hash. Each is
run on weak hashes too, where it must find something. A finding is a statistic that chance alone would give with
probability below `RARE`; a few thousand are taken, so that a right hash passes with a wide margin.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from reference import hashing as twin
from scipy import special

from cce_core._jit import COMPILED
from cce_core.hashing import PolynomialHash, derive_key, hash_strings, mix_hash

RARE = 1e-8
IDS, SEEDS = (1 << 14, 2048) if COMPILED else (1500, 400)
P = 2**61 - 1
U = np.uint64
RNG = np.random.default_rng(2210_05974)
RANDOM = [int(x) for x in RNG.integers(0, 2**64, 64, dtype=np.uint64)]


def words(ids):
    return np.array([int(x) % 2**64 for x in ids], np.uint64)


# The hashes: right ones.


def mixed(ids, n, seed):
    return mix_hash(ids, n, seed=seed)


def mixed_low(ids, n, seed):
    return mix_hash(ids, seed=seed) % U(n)


def polynomial(k):
    return lambda ids, n, seed: PolynomialHash(k, seed)(ids, n)


def texts(ids, n, seed):
    return mix_hash(hash_strings(ids.astype(str), seed), n)


RIGHT = {"mix": mixed, "mix, low bits": mixed_low, "polynomial 4": polynomial(4), "strings": texts}
OVER_SEEDS = {**RIGHT, "polynomial 2": polynomial(2)}  # k = 2 promises nothing about many ids under one seed
if not COMPILED:
    del RIGHT["polynomial 4"], OVER_SEEDS["polynomial 4"]  # slow there, and the same values as when compiled

# Weak ones.


def reduced(hashes, n):
    """floor(hash · n / 2^64), for n below 2^32, as a NumPy expression."""
    return ((hashes >> U(32)) * U(n)) >> U(32)


def multiplicative(ids, n, seed):
    """Bare multiplication by a seeded odd number: 0 stays 0, and the top bit stays the top bit."""
    return reduced(ids * U(derive_key(seed) | 1), n)


def modulo(ids, n, seed):
    return (ids + U(derive_key(seed))) % U(n)


def two_rounds(ids, n, seed):
    """The mix without its third round."""
    z = ids ^ ids >> U(32)
    z = z * U(twin.G1)
    z = (z ^ z >> U(29) ^ U(derive_key(seed, 0))) * U(twin.F1)
    z = (z ^ z >> U(32)) * U(twin.F2)
    return reduced(z ^ z >> U(29), n)


def modulo_prime(ids, n, seed):
    """The polynomial with ids taken mod p instead of folded."""
    return PolynomialHash(2, seed)(ids % U(P), n)


def xor_seed(ids, n, seed):
    """A seed that is only a change of ids: good for one seed, the same buckets for id ^ seed under all."""
    return mix_hash(ids ^ U(seed), n)


# Checkers.


def unlikely(counts):
    """Whether chance would give counts so uneven, or so even, with probability below RARE (chi-square)."""
    counts = np.asarray(counts, np.float64).reshape(-1)
    mean, freedom = counts.mean(), len(counts) - 1
    chi2 = ((counts - mean) ** 2).sum() / mean
    too_even = freedom > 5 and special.chdtr(freedom, chi2) < RARE / 2  # few counts may be equal by chance
    return bool(special.chdtrc(freedom, chi2) < RARE / 2 or too_even)


def unlikely_count(count, trials, chance):
    """Whether that many hits, or as few, have a probability below RARE (binomial)."""
    count = int(count)
    return bool(min(special.bdtr(count, trials, chance), special.bdtrc(count - 1, trials, chance)) < RARE / 2)


def over_seeds(f, ids, n, seeds=None):
    """Buckets, (seeds, ids)."""
    return np.array([f(ids, n, seed) for seed in (range(SEEDS) if seeds is None else seeds)]).astype(np.int64)


def patterns():
    consecutive = np.arange(IDS, dtype=np.uint64)
    yield "consecutive", consecutive
    yield "consecutive from 2^63 - 100", consecutive + U(2**63 - 100)
    yield "consecutive down from 2^64 - 1", ~consecutive
    for k in (1, 3, 8, 16, 24, 31, 32, 33, 40, 48, 50):  # up to "high bits only"
        yield f"strided by 2^{k}", consecutive << U(k)
    for step in (1000, 1023, 2**32 - 1, 2**32 + 1, 2**61 - 1, pow(twin.G1, -1, 2**64)):
        yield f"strided by {step}", consecutive * U(step)
    yield "both halves the same", consecutive << U(32) | consecutive
    yield (
        "few bits",
        words(sum(1 << b for b in bits) for r in (1, 2, 3) for bits in itertools.combinations(range(64), r))[:IDS],
    )
    yield "random", np.random.default_rng(1).integers(0, 2**64, IDS, dtype=np.uint64)


def check_uniform(f, counts=(7, 64, 1000), seeds=(0, 1, 2**63)):
    """Buckets of many different ids under one seed."""
    found = []
    for name, ids in patterns():
        for n, seed in zip(counts, seeds):
            if len(ids) >= 8 * n and unlikely(np.bincount(f(ids, n, seed).astype(np.int64), minlength=n)):
                found.append((name, n, seed))
    return found


def check_every_id(f, n=16):
    """Buckets of one id under many seeds."""
    ids = words([0, 1, 2, 2**31, 2**32, P - 1, P, P + 1, 2 * P, 2**63, 2**64 - 1, *RANDOM[:5]])
    buckets = over_seeds(f, ids, n)
    return [int(x) for i, x in enumerate(ids) if unlikely(np.bincount(buckets[:, i], minlength=n))]


DISTANCES = [
    1,
    2,
    3,
    4,
    10,
    255,
    256,
    1000,
    2**16,
    2**24,
    2**31,
    2**32 - 1,
    2**32,
    2**32 + 1,
    2**48,
    P,
    2 * P,
    2**62,
    2**63,
]
PAIRS = [(0, 1), (0, 2**63), (0, 2**64 - 1), (0, P), (1, 2**32), (2**32, 2**33), (P, 2 * P), (1, 2**63 + 1)]
PAIRS += [(x, x + d) for x in (0, RANDOM[0]) for d in DISTANCES]
PAIRS += [(x, ~x) for x in (1, 12345, *RANDOM[1:3])] + [(x, x + P) for x in (1, 2**32, *RANDOM[3:5])]
PAIRS += [(x, x >> 32 | x << 32) for x in RANDOM[5:8]] + [
    (x, x ^ 1 << bit) for x, bit in zip(RANDOM[8:24], range(0, 64, 4))
]
# Chosen against the mix: ids whose keyless halves differ in one bit, or in the top bits alone.
PAIRS += [(twin.unpremix(x), twin.unpremix(x ^ 1 << bit)) for bit, x in enumerate(RANDOM)]
PAIRS += [
    (twin.unpremix(x), twin.unpremix(x ^ top << 48)) for x, top in zip(RANDOM, (3 << 14, 7 << 13, 255 << 8, 2**16 - 1))
]


def check_pairs(f, pairs):
    """Two ids under many seeds: how often they meet, how far apart they are, and where they are together."""
    found = []
    ids = words(itertools.chain.from_iterable(pairs))
    for n in (2, 8, 64, 1000):
        buckets = over_seeds(f, ids, n)
        first, second = buckets[:, ::2], buckets[:, 1::2]
        for j, pair in enumerate(pairs):
            if unlikely_count((first[:, j] == second[:, j]).sum(), SEEDS, 1 / n):
                found.append((pair, n, "meet"))
            if n <= 64 and 5 * n <= SEEDS and unlikely(np.bincount((first[:, j] - second[:, j]) % n, minlength=n)):
                found.append((pair, n, "move together"))
            if n <= 8 and unlikely(np.bincount(first[:, j] * n + second[:, j], minlength=n * n)):
                found.append((pair, n, "depend"))
    return found


def flips(before, after, bits):
    """How often each of the low `bits` bits differs; counts."""
    changed = (before ^ after).astype(np.uint64)
    return np.array([int((changed >> U(bit) & U(1)).sum()) for bit in range(bits)])


def check_avalanche_of_ids(f, bits, many_seeds):
    """Each bit of an id, each bit of its bucket out of 2^bits: the one flips the other half of the time."""
    trials = 4096 if COMPILED else 128
    base = np.random.default_rng(2).integers(0, 2**64, trials, dtype=np.uint64)
    turns = np.concatenate([np.zeros(1, np.uint64), U(1) << np.arange(64, dtype=np.uint64)])
    if many_seeds:
        hashes = np.array([f(x ^ turns, 2**bits, seed) for seed, x in enumerate(base)])
    else:
        hashes = f((base[:, None] ^ turns).reshape(-1), 2**bits, 0).reshape(-1, 65)
    found = []
    for bit in range(64):
        for out, count in enumerate(flips(hashes[:, 0], hashes[:, bit + 1], bits)):
            if unlikely_count(count, trials, 0.5):
                found.append((bit, out))
    return found


def check_avalanche_of_seeds(f, bits=16):
    """Each bit of the seed, each bit of the bucket."""
    seeds = [int(x) for x in np.random.default_rng(3).integers(0, 2**64, 256 if COMPILED else 32, dtype=np.uint64)]
    ids = words([0, 1, 2**63, *range(100, 100 + (29 if COMPILED else 5))])
    before = over_seeds(f, ids, 2**bits, seeds)
    found = []
    for bit in range(0, 64, 1 if COMPILED else 7):
        after = over_seeds(f, ids, 2**bits, [seed ^ 1 << bit for seed in seeds])
        for out, count in enumerate(flips(before, after, bits)):
            if unlikely_count(count, before.size, 0.5):
                found.append((bit, out))
    return found


def check_independent(hashes, n=8):
    """Buckets of many ids under two hashes: each pair of buckets is as frequent as any other."""
    ids = np.arange(IDS, dtype=np.uint64)
    buckets = {name: f(ids, n).astype(np.int64) for name, f in hashes.items()}
    pairs = itertools.combinations(buckets, 2)
    return [(a, b) for a, b in pairs if unlikely(np.bincount(buckets[a] * n + buckets[b], minlength=n * n))]


def check_joint(f, size, n, ids=range(8)):
    """All `size` ids of a few, under many seeds: each combination of buckets is as frequent as any other."""
    buckets = over_seeds(f, words(ids), n, range(4 * SEEDS if COMPILED else 2 * SEEDS))
    found = []
    for chosen in itertools.combinations(range(len(ids)), size):
        joint = np.ravel_multi_index([buckets[:, i] for i in chosen], (n,) * size)
        if unlikely(np.bincount(joint, minlength=n**size)):
            found.append(tuple(ids[i] for i in chosen))
    return found


# The tests.


@pytest.mark.parametrize("name", RIGHT)
def test_uniform(name):
    assert check_uniform(RIGHT[name]) == []


@pytest.mark.parametrize("weak", [multiplicative, modulo])
def test_uniform_can_fail(weak):
    assert len(check_uniform(weak)) > 10


@pytest.mark.parametrize("name", OVER_SEEDS)
def test_no_id_keeps_its_bucket(name):
    assert check_every_id(OVER_SEEDS[name]) == []


def test_no_id_keeps_its_bucket_can_fail():
    assert {0, 2**63} <= set(check_every_id(multiplicative))


@pytest.mark.parametrize("name", OVER_SEEDS)
def test_pairs(name):
    step = 1 if COMPILED else 9 if name.startswith(("polynomial", "strings")) else 3
    assert check_pairs(OVER_SEEDS[name], PAIRS[::step]) == []


def test_pairs_can_fail():
    faults = {(pair, fault) for pair, _, fault in check_pairs(multiplicative, PAIRS[:50])}
    assert {((0, 2**63), "move together"), ((0, 2**63), "meet"), ((0, 1), "depend")} <= faults
    faults = check_pairs(modulo, [(x, x + d) for x in (0, 7, RANDOM[0] >> 1) for d in DISTANCES])
    assert {fault for _, _, fault in faults} == {"meet", "move together", "depend"}
    assert {pair for pair, _, _ in faults} == {(x, x + d) for x in (0, 7, RANDOM[0] >> 1) for d in DISTANCES}
    assert ((1, 1 + P), 2, "meet") in check_pairs(modulo_prime, [(1, 1 + P), (1, 2)])
    assert {((1, 2), n, "meet") for n in (2, 8)}.isdisjoint(check_pairs(modulo_prime, [(1, 1 + P), (1, 2)]))


def test_two_rounds_are_too_few():
    """Why the keyed half of the mix has three."""
    top = PAIRS.index((twin.unpremix(RANDOM[63]), twin.unpremix(RANDOM[63] ^ 1 << 63)))
    faults = check_pairs(two_rounds, [PAIRS[top]])
    assert {fault for _, _, fault in faults} == {"meet", "move together", "depend"}


@pytest.mark.parametrize(
    ("f", "bits", "many_seeds"),
    [(mixed, 63, False), (mixed_low, 16, False), (polynomial(2), 16, True)],
    ids=["mix", "mix, low bits", "polynomial 2"],
)
def test_avalanche_of_ids(f, bits, many_seeds):
    assert check_avalanche_of_ids(f, bits, many_seeds) == []


def test_avalanche_of_ids_can_fail():
    assert len(check_avalanche_of_ids(multiplicative, 16, False)) > 100
    assert len(check_avalanche_of_ids(multiplicative, 16, True)) > 10
    assert len(check_avalanche_of_ids(modulo, 16, True)) > 100


@pytest.mark.parametrize("name", OVER_SEEDS)
def test_avalanche_of_seeds(name):
    assert check_avalanche_of_seeds(OVER_SEEDS[name]) == []


def test_avalanche_of_seeds_can_fail():
    assert check_avalanche_of_seeds(lambda ids, n, seed: (mix_hash(ids, n) + U(seed % n)) % U(n))


STREAMS = [0, 1, 2, 3, 4, 8, 255, 256, 2**31, 2**32, 2**62, 2**63, 2**63 + 1, 2**64 - 1]


def test_streams_and_seeds_are_independent():
    streams = {("stream", t): lambda ids, n, t=t: mix_hash(ids, n, seed=9, stream=t) for t in STREAMS}
    seeds = {("seed", s): lambda ids, n, s=s: mix_hash(ids, n, seed=s) for s in STREAMS}
    assert check_independent({**streams, **seeds}) == []
    seeds = {("seed", s): lambda ids, n, s=s: PolynomialHash(4, s)(ids, n) for s in STREAMS[:: 1 if COMPILED else 5]}
    degrees = {
        ("k", k): lambda ids, n, k=k: PolynomialHash(k, 99)(ids, n) for k in ((3, 4, 5, 6) if COMPILED else (3, 4))
    }
    assert check_independent({**seeds, **degrees}) == []


def test_streams_can_fail():
    shifted = {t: lambda ids, n, t=t: (mix_hash(ids, n) + U(t)) % U(n) for t in range(3)}
    assert len(check_independent(shifted)) == 3
    permuted = {s: lambda ids, n, s=s: xor_seed(ids, 4 * n, s) // U(4) for s in range(3)}
    assert check_independent(permuted) == []  # it is not seen over all ids together, but:
    assert check_pairs(lambda ids, n, seed: xor_seed(ids, n, seed % 2), [(0, 1)])


JOINT = [(2, 2, 5), (3, 3, 3), (3, 2, 5), (4, 3, 3), (4, 4, 2)] + ([(3, 3, 8), (4, 4, 5)] if COMPILED else [])


@pytest.mark.parametrize(("k", "size", "n"), JOINT)
def test_polynomial_is_k_wise_independent(k, size, n):
    assert check_joint(polynomial(k), size, n, range(8) if COMPILED else range(5)) == []


def test_k_wise_independence_can_fail():
    found = check_joint(polynomial(2), 3, 3, range(8) if COMPILED else range(5))
    assert {(0, 1, 2), (1, 2, 3), (0, 2, 4)} <= set(found)  # three points of a line
    if COMPILED:
        assert {(0, 1, 2, 3), (1, 2, 3, 4)} <= set(check_joint(polynomial(3), 4, 5))  # four of a parabola


def test_polynomial_over_large_ids_is_k_wise_independent():
    ids = [0, P, 2**32, 2**61, 2**63, 2**64 - 1][: 6 if COMPILED else 4]
    assert check_joint(polynomial(3), 3, 3, ids) == []
