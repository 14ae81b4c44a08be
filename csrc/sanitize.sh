#!/bin/sh
# Build the kernels and their C tests with AddressSanitizer and UndefinedBehaviorSanitizer, and run them.
#
#     csrc/sanitize.sh [compiler]
set -eu
cd "$(dirname "$0")"
compiler=${1:-${CC:-cc}}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
sanitizers="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
for source in autoregressive masked_autoregressive test_autoregressive test_masked_autoregressive; do
    # Line numbers (-g1) are all that a report needs; to track variables through the unrolled kernels takes minutes.
    "$compiler" -std=gnu11 -g1 -O2 -ffp-contract=fast -Wall -Wextra -Wno-psabi -fopenmp $sanitizers \
        -c "$source.c" -o "$folder/$source.o"
done
for kernel in autoregressive masked_autoregressive; do
    "$compiler" -fopenmp $sanitizers "$folder/autoregressive.o" "$folder/masked_autoregressive.o" \
        "$folder/test_$kernel.o" -lm -o "$folder/test_$kernel"
    "$folder/test_$kernel"
done
