#!/bin/sh
# Where there is no GPU, device: cuda ends at once with exit code 2, says so and names the way out;
# configurations and dry runs need none. no_gpu_test.sh FARSPAN CONFIG
out=$(CUDA_VISIBLE_DEVICES='' timeout 20 "$1" train "$2" 2>&1)
code=$?
echo "$out"
[ $code = 2 ] || { echo "exit code $code"; exit 1; }
case $out in *"no GPU can be used here"*"device: cpu"*) ;; *) exit 1 ;; esac
"$1" config "$2" >/dev/null && "$1" train "$2" --dry-run >/dev/null
