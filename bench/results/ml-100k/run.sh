#!/bin/sh
# The sweep, then its pictures, page and table. From anywhere; needs MovieLens 100K in CCE_DATA, and the extra `plot`.
set -e
cd "$(dirname "$0")/../../.."
python -m bench sweep --dataset ml-100k --methods all --budgets 2^4,2^6,2^8,2^10 --equal-bytes cce --seeds 3 --out bench/results/ml-100k
python -m bench plot bench/results/ml-100k
