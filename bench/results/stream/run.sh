#!/bin/sh
# The rows, then their table. From anywhere.
set -e
cd "$(dirname "$0")/../../.."
out=bench/results/stream
narrow=rank=4:codec=int8:rounding=stochastic
python -m bench stream --rows 1000000 --shares 0.3,1,5,10 --seeds 2 --out $out \
    --methods dict,tiered,robe:$narrow,hash:$narrow,cafe:$narrow "$@"
python -m bench stream --rows 1000000 --shares 0.3,1,5 --seeds 1 --out $out --methods cafe,robe,hash,cce:n_chunks=2:rank=4:codec=int8 "$@"
python -m bench stream --table --out $out
