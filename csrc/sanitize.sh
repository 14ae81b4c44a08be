#!/bin/sh
# Build the kernel and its C test with AddressSanitizer and UndefinedBehaviorSanitizer, and run it.
#
#     csrc/sanitize.sh [compiler]
set -eu
cd "$(dirname "$0")"
compiler=${1:-${CC:-cc}}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$compiler" -std=gnu11 -g -O2 -ffp-contract=fast -Wall -Wextra -Wno-psabi -fopenmp \
    -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer \
    autoregressive.c test_autoregressive.c -lm -o "$folder/test"
"$folder/test"
