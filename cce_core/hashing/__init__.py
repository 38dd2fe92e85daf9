"""Ids to integers: the same bits on every machine, in every framework. (family, version, seed) is a file format."""

from cce_core.hashing.digits import balanced_bases as balanced_bases
from cce_core.hashing.digits import digits as digits
from cce_core.hashing.digits import undigits as undigits
from cce_core.hashing.mix import derive_key as derive_key
from cce_core.hashing.mix import mix_hash as mix_hash
from cce_core.hashing.polynomial import PolynomialHash as PolynomialHash
from cce_core.hashing.strings import hash_strings as hash_strings
