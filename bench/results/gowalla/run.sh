#!/bin/sh
# The sweep, then its pictures, page and table. From anywhere; needs Gowalla in CCE_DATA, and the extra `plot`.
set -e
cd "$(dirname "$0")/../../.."
out=bench/results/gowalla
python -m bench sweep --dataset gowalla --ratios 240,150,100,32 --seeds 3 --out $out \
    --methods full,vq,vq:rank=4,pq:codec=int8:n_chunks=1,narrow-int8,ldim:codec=int4:lr=0.06,cce:codec=int8:n_chunks=2:rank=2:last_cluster=2,robe,hash "$@"
python -m bench plot $out --reference vq
