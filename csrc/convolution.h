/* A zero-padded convolution of few channels, what is added to it, and a ReLU, in one pass over the images; and its
   gradients in another. Libraries' convolutions are made for many channels: with a dozen they take twice as long.

   All images are channels last, (B, H, W, C), and the filter is (out, kernel_height, kernel_width, in):

       z_p  =  f(added_p + sum over taps t of  weight_t x_(p + offset_t)),     f the identity or max(., 0),

   where neighbours outside the image count as zero, or the image goes on from its other side. */

#ifndef CONVOLUTION_H
#define CONVOLUTION_H

#include <stddef.h>

typedef struct {
    int in_channels, out_channels;
    int height, width;                          /* of x */
    int kernel_height, kernel_width, dilation;
    int left, right, top, bottom;               /* rows and columns around x; at most the filter's reach */
    int wraps;                                  /* what stands there: the image again, and z is as large; or zeros */
    int is_added_everywhere;                    /* `added` is (out), the same at every pixel; otherwise (H', W', out) */
    int has_relu;
} conv_shape;

enum { CONV_DONE, CONV_NO_MEMORY };

/* z, (B, H', W', out), from x, (B, H, W, in); `added` may be NULL for nothing. instruction_set is an index into
   ar_instruction_sets(), real_size sizeof(float) or sizeof(double). Each image's result is the same in any batch. */
int conv_forward(int instruction_set, size_t real_size, const conv_shape *shape, ptrdiff_t num_images, const void *x,
                 const void *weight, const void *added, void *z, int num_threads);

/* The gradients of x, weight and added from that of z. z itself is read if there is a ReLU. Any of the three may be
   NULL, and is then not computed. The order of the sums over images depends on the number of threads alone. */
int conv_backward(int instruction_set, size_t real_size, const conv_shape *shape, ptrdiff_t num_images, const void *x,
                  const void *weight, const void *z, const void *of_z, void *of_x, void *of_weight, void *of_added,
                  int num_threads);

#endif
