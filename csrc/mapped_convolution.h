/* A convolution (convolution.h) as a layer of a flow has it: with a masked filter, behind a map of the channels that is
   the same at every pixel, and with the log-determinant of an autoregressive one. In one call each for the map and its
   gradients, since at small sizes a dozen operations on filters take longer than the convolution.

       z_p  =  bias + sum over taps t of  V_t (M x_(p + offset_t) + s),     V = mask * weight,

   where what lies outside the image counts as zero behind the map: a tap that reads there adds no V_t s. So the filter
   of the whole is V M. Weight and mask are (out, in, kernel_height, kernel_width) here, images channels last. */

#ifndef MAPPED_CONVOLUTION_H
#define MAPPED_CONVOLUTION_H

#include "convolution.h"

typedef struct {
    int matrix_dims;            /* of M: 2 for (in, in), 1 for (in), the diagonal of one, 0 for the identity */
    int diagonal_tap;           /* the tap whose diagonal is that of the whole convolution, if triangular; or -1 */
    int is_exponential;         /* of that diagonal the weight holds logarithms */
} conv_mapping;

/* Numbers that a caller keeps from the map for its gradients. */
ptrdiff_t conv_mapped_kept(const conv_shape *shape, const conv_mapping *mapping);

/* z, and the log-determinant of each image if there is a diagonal tap. mask, bias, matrix and shift may be NULL.
   shape->is_added_everywhere and has_relu are not looked at. */
int conv_mapped_forward(int instruction_set, size_t real_size, const conv_shape *shape, const conv_mapping *mapping,
                        ptrdiff_t num_images, const void *x, const void *weight, const void *mask, const void *bias,
                        const void *matrix, const void *shift, const void *of_pixel,
                        void *kept, void *z, void *log_det, int num_threads);

/* The gradients from those of z and log_det. of_x may be NULL, as may what belongs to nothing. */
int conv_mapped_backward(int instruction_set, size_t real_size, const conv_shape *shape, const conv_mapping *mapping,
                         ptrdiff_t num_images, const void *x, const void *mask, const void *matrix, const void *shift,
                         const void *kept, const void *of_z, const void *of_log_det, void *of_x, void *of_weight,
                         void *of_bias, void *of_matrix, void *of_shift, void *of_of_pixel, int num_threads);

#endif
