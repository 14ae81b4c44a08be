#!/bin/sh
# Build the kernels and their C tests with AddressSanitizer and UndefinedBehaviorSanitizer, and run them.
#
#     csrc/sanitize.sh [compiler]
set -eu
cd "$(dirname "$0")"
compiler=${1:-${CC:-cc}}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for test in test_autoregressive test_masked_autoregressive; do
    "$compiler" -std=gnu11 -g -O2 -ffp-contract=fast -Wall -Wextra -Wno-psabi -fopenmp \
        -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer \
        autoregressive.c masked_autoregressive.c "$test.c" -lm -o "$folder/$test"
    "$folder/$test"
done
