#!/bin/sh
# What cce might gain at its two smallest budgets. From anywhere; needs MovieLens 100K in CCE_DATA, and the extra `plot`.
set -e
cd "$(dirname "$0")/../../.."
i8=cce:codec=int8
python -m bench sweep --dataset ml-100k --budgets 16,64 --equal-bytes cce --seeds 3 --out bench/results/ml-100k-variants --methods \
cce-int8,cce:codec=bfloat16,cce:codec=int4,$i8:n_chunks=1,$i8:n_chunks=2,$i8:n_chunks=8,$i8:rank=4,$i8:rank=8,$i8:rank=16,\
$i8:n_chunks=1:rank=2,$i8:n_chunks=1:rank=4,$i8:n_chunks=2:rank=2,$i8:n_chunks=2:rank=4,\
$i8:last_cluster=5,$i8:last_cluster=10,$i8:last_cluster=19,$i8:cluster_by=counts,$i8:residual=zero,$i8:n_chunks=1:rank=2:cluster_by=counts,\
narrow-int8,ldim:codec=int4,pq-int8,pq:codec=int8:n_chunks=2,pq:codec=int8:n_chunks=8
python -m bench plot bench/results/ml-100k-variants
