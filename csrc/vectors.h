/* What all kernels are written with. */

#ifndef VECTORS_H
#define VECTORS_H

#define ALWAYS_INLINE __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#endif
