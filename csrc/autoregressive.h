/* The inverse of a zero-padded, autoregressively masked convolution, by substitution.

   The filter is given pre-multiplied by the inverse of its centre tap A, as square matrices M_t, one a tap:

       x_p  =  M_0 z_p + sum over t >= 1 of  M_t x_(p + offset_t),     M_0 = A^-1,  M_t = -A^-1 W_t,

   where p is a pixel and neighbours outside the image count as zero. A pixel is solved after the ones that it reads.
   So there is no division and no branch a channel: the inverse multiplies and adds exactly as often as the
   convolution itself. */

#ifndef AUTOREGRESSIVE_H
#define AUTOREGRESSIVE_H

#include <stddef.h>

/* A pixel reads pixels after it in raster order, and M_0 is lower triangular; or before it, and M_0 is upper. */
enum { AR_LOWER, AR_UPPER };

/* The memory order of the images: (B, C, H, W) or (B, H, W, C). */
enum { AR_CHANNELS_FIRST, AR_CHANNELS_LAST };

/* What ar_solve returns besides the index of an image. */
enum { AR_SOLVED = -1, AR_NO_MEMORY = -2 };

typedef struct ar_plan ar_plan;

/* Names, best last, of the instruction sets that both this build and this processor know; ends with NULL. */
const char *const *ar_instruction_sets(void);

/* Arrange a filter for one instruction set (an index into ar_instruction_sets()).

   real_size: sizeof(float) or sizeof(double).
   offsets:   num_taps pairs (rows, columns), dilation included; the first is (0, 0).
   matrices:  M_0 .. M_(num_taps - 1), each num_channels x num_channels, output channel first.

   Returns NULL if memory is short. The arguments are copied. */
ar_plan *ar_plan_create(int instruction_set, size_t real_size, int direction, int num_channels, int height, int width,
                        int num_taps, const int *offsets, const void *matrices);
void ar_plan_free(ar_plan *plan);

/* Solve num_images contiguous images z into x, both in the given layout; they must not overlap.

   Any number of threads may solve with one plan at the same time. Uses at most num_threads OpenMP threads, fewer
   where waking them costs more than it saves.

   Returns AR_SOLVED, AR_NO_MEMORY, or the index of the first image of z that holds NaN or infinity; then x is
   undefined. */
ptrdiff_t ar_solve(const ar_plan *plan, const void *z, void *x, ptrdiff_t num_images, int layout, int num_threads);

#endif
