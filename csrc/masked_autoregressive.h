/* The inverse of a masked autoregressive layer over pixels and channels, by substitution.

   A network of two layers of hidden units, zero-padded 3x3, 1x1 and 3x3 convolutions with ReLU between, predicts mu
   and h of every number from B tanh(x / B) of the numbers before it: pixels in raster order and, within a pixel, channels ascending.
   With z = x exp(s) + t, s = m tanh(h / m) and t = M tanh(mu / M),

       x_c  =  (z_c - t_c) exp(-s_c).

   Without a bound m the scale exp(s) is sigmoid(h + offset); without a bound M the shift t is mu; without a bound B the
   network sees x.

   A pixel reads itself and the pixels above left, above, above right and left of it. For the pixel's own channels
   each hidden unit has a degree d: it sees the channels below d, and serves channel d and later ones. */

#ifndef MASKED_AUTOREGRESSIVE_H
#define MASKED_AUTOREGRESSIVE_H

#include <stddef.h>

/* What mar_solve returns besides the index of an image. */
enum { MAR_SOLVED = -1, MAR_NO_MEMORY = -2 };

typedef struct mar_plan mar_plan;

/* Arrange a network for one instruction set (an index into ar_instruction_sets()).

   real_size:    sizeof(float) or sizeof(double).
   is_reversed:  the images are to be taken in the reverse order of pixels and channels.
   first_units:  for each channel the first hidden unit of its degree, then num_hidden; num_channels + 1 numbers that
                 ascend from 0.
   first, second, last:  the weights, [input][output]. Above the weights there is one row with the biases. For first and
                 last the inputs are those at the four neighbours, in the order above, then the pixel's own; what the
                 degrees forbid must be zero. The outputs of last are mu_0, h_0, mu_1, ...
   max_log_scale, max_shift, max_input:  the bounds m, M and B; 0 for none.
   offset:       added to h where there is no bound m.

   Returns NULL if memory is short. The arguments are copied. */
mar_plan *mar_plan_create(int instruction_set, size_t real_size, int is_reversed, int num_channels, int num_hidden,
                          int height, int width, const int *first_units, double max_log_scale, double max_shift,
                          double max_input, double offset, const void *first, const void *second,
                          const void *last);
void mar_plan_free(mar_plan *plan);

/* Solve num_images contiguous images z, (B, C, H, W), into x; they must not overlap.

   Any number of threads may solve with one plan at the same time. Uses at most num_threads OpenMP threads.

   Returns MAR_SOLVED, MAR_NO_MEMORY, or the index of the first image of z that holds NaN or infinity; then x is
   undefined. */
ptrdiff_t mar_solve(const mar_plan *plan, const void *z, void *x, ptrdiff_t num_images, int num_threads);

#endif
