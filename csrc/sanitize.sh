#!/bin/sh
# Build the kernels and their C tests with AddressSanitizer and UndefinedBehaviorSanitizer, and run them.
#
#     csrc/sanitize.sh [n]      # optimised, on all shapes: minutes; with n, unoptimised, on every n-th shape: seconds
#
# CC=... chooses the compiler.
set -eu
cd "$(dirname "$0")"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ $# = 0 ]; then optimization=-O2; else optimization=-O0; fi
# Line numbers (-g1) are all that a report needs; to track variables through the unrolled kernels takes minutes.
options="-std=gnu11 -g1 $optimization -ffp-contract=fast -Wall -Wextra -Wno-psabi -fopenmp
         -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
kernels="autoregressive convolution mapped_convolution masked_autoregressive spectrum"
for kernel in $kernels; do
    # shellcheck disable=SC2086 # options are words
    "${CC:-cc}" $options -c "$kernel.c" -o "$folder/$kernel.o"
done
for kernel in $kernels; do
    # shellcheck disable=SC2086
    "${CC:-cc}" $options "test_$kernel.c" "$folder"/*.o -lm -o "$folder/test_$kernel"
    "$folder/test_$kernel" "$@"
done
