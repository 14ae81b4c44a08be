#include "mapped_convolution.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* How many numbers there are, and the matrix of the map as a convolution of the filter's rows. */
typedef struct {
    ptrdiff_t num_taps, num_pixels, rows, filter;
    conv_shape of_matrix;
} sizes;

static int height_of(const conv_shape *s) { return s->top + s->height + s->bottom - s->dilation * (s->kernel_height - 1); }
static int width_of(const conv_shape *s) { return s->left + s->width + s->right - s->dilation * (s->kernel_width - 1); }

static sizes sizes_of(const conv_shape *s)
{
    sizes n = {.num_taps = s->kernel_height * s->kernel_width, .num_pixels = (ptrdiff_t)height_of(s) * width_of(s)};
    n.rows = s->out_channels * n.num_taps;
    n.filter = n.rows * s->in_channels;
    n.of_matrix = (conv_shape){.in_channels = s->in_channels, .out_channels = s->in_channels, .height = 1,
                               .width = (int)n.rows, .kernel_height = 1, .kernel_width = 1, .dilation = 1,
                               .is_added_everywhere = 1};
    return n;
}

/* Whether a tap that would read row or column `place` finds it on the image. */
static int is_on_image(const conv_shape *s, int place, int length) { return s->wraps || (0 <= place && place < length); }

#define FOR_EACH_PIXEL(s, i, j)                                                                              \
    for (int i = 0; i < height_of(s); i++)                                                                   \
        for (int j = 0; j < width_of(s); j++)

#define FOR_EACH_TAP_ON_IMAGE(s, i, j, t)                                                                    \
    for (int k = 0; k < (s)->kernel_height; k++)                                                             \
        if (is_on_image(s, i + k * (s)->dilation - (s)->top, (s)->height))                                   \
            for (int l = 0, t = k * (s)->kernel_width; l < (s)->kernel_width; l++, t++)                      \
                if (is_on_image(s, j + l * (s)->dilation - (s)->left, (s)->width))

#define REAL float
#define NAME(f) f##_float
#include "mapped_convolution.inc.h"

#define REAL double
#define NAME(f) f##_double
#include "mapped_convolution.inc.h"

ptrdiff_t conv_mapped_kept(const conv_shape *shape, const conv_mapping *mapping)
{
    return sizes_of(shape).filter * (mapping->matrix_dims ? 2 : 1);
}

int conv_mapped_forward(int instruction_set, size_t real_size, const conv_shape *shape, const conv_mapping *mapping,
                        ptrdiff_t num_images, const void *x, const void *weight, const void *mask, const void *bias,
                        const void *matrix, const void *shift, const void *of_pixel,
                        void *kept, void *z, void *log_det, int num_threads)
{
    return real_size == sizeof(float)
               ? forward_float(instruction_set, shape, mapping, num_images, x, weight, mask, bias, matrix, shift, of_pixel, kept,
                               z, log_det, num_threads)
               : forward_double(instruction_set, shape, mapping, num_images, x, weight, mask, bias, matrix, shift, of_pixel, kept,
                                z, log_det, num_threads);
}

int conv_mapped_backward(int instruction_set, size_t real_size, const conv_shape *shape, const conv_mapping *mapping,
                         ptrdiff_t num_images, const void *x, const void *mask, const void *matrix, const void *shift,
                         const void *kept, const void *of_z, const void *of_log_det, void *of_x, void *of_weight,
                         void *of_bias, void *of_matrix, void *of_shift, void *of_of_pixel, int num_threads)
{
    return real_size == sizeof(float)
               ? backward_float(instruction_set, shape, mapping, num_images, x, mask, matrix, shift, kept, of_z,
                                of_log_det, of_x, of_weight, of_bias, of_matrix, of_shift, of_of_pixel, num_threads)
               : backward_double(instruction_set, shape, mapping, num_images, x, mask, matrix, shift, kept, of_z,
                                 of_log_det, of_x, of_weight, of_bias, of_matrix, of_shift, of_of_pixel, num_threads);
}
