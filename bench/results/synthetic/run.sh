#!/bin/sh
# Sweeps of drawn interactions, then their pictures, pages and tables. From anywhere; needs the extra `plot`.
set -e
cd "$(dirname "$0")/../../.."
out=bench/results/synthetic
some=narrow-int8,hash,robe,rhemb,cce-int8,cce-lean,pq-int8
few="--dataset synthetic --vocab 10000 --bytes 1280,12800,40000,128000 --seeds 3"
many="--dataset synthetic --vocab 1000000 --batch-size 8192 --lr 0.01"

python -m bench sweep $few --interactions 1000000 --epochs 4 --batch-size 1024 --lr 0.003 \
    --methods full,int8,int4,ldim,ce,dhe,$some --out $out/1m-of-10k
python -m bench sweep $few --interactions 10000000 --epochs 2 --batch-size 4096 --lr 0.003 \
    --methods full,int4,ldim,$some --out $out/10m-of-10k
python -m bench sweep $many --interactions 1000000 --epochs 4 --seeds 3 \
    --methods ce,ldim,narrow-int8,hash,robe,rhemb,cce-int8,cce-lean --bytes 128000,1280000,4000000 --out $out/1m-of-1m
python -m bench sweep $many --interactions 1000000 --epochs 4 --seeds 1 \
    --methods full,pq-int8 --bytes 128000,1280000,4000000 --out $out/1m-of-1m
python -m bench sweep $many --interactions 10000000 --epochs 2 --seeds 3 \
    --methods ldim,hash,robe,rhemb,narrow-int8,cce-int8,cce-lean --bytes 128000,1280000,4000000 --out $out/10m-of-1m
python -m bench sweep $many --interactions 20000000 --epochs 2 --seeds 3 \
    --methods hash,robe,rhemb,narrow-int8,cce-lean --bytes 128000,1280000 --out $out/20m-of-1m
for folder in 1m-of-10k 10m-of-10k 1m-of-1m 10m-of-1m 20m-of-1m; do
    python -m bench plot $out/$folder --reference cce-lean
done
