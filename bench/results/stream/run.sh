#!/bin/sh
# The rows, then their table. From anywhere.
set -e
cd "$(dirname "$0")/../../.."
out=bench/results/stream
narrow=rank=4:codec=int8:rounding=stochastic
wider=rank=8:codec=int8:rounding=stochastic
run() { python -m bench stream --rows 1000000 --out $out "$@"; }
run --shares 0.3,1,5,10 --seeds 1 --methods dict,tiered,robe:$narrow,hash:$narrow,cafe:$narrow
run --shares 5,10 --seeds 1 --methods tiered:lead=1:rank=8,robe:$wider
run --shares 1,5 --seeds 1 --methods cafe,robe,hash
run --shares 1 --seeds 1 --methods cce:n_chunks=2:rank=4:codec=int8
run --shares 1,5 --seeds 2,2 --methods dict,tiered,robe:$narrow
python -m bench stream --table --out $out
