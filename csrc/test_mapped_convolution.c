/* Run mapped convolutions over shapes that tempt an overrun, for the sanitizers: see sanitize.sh. The map is compared with
   its definition, and each gradient, along a random direction, with a difference of the definition. */

#include "autoregressive.h"
#include "mapped_convolution.h"
#include "test_numbers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { X, WEIGHT, MASK, BIAS, MATRIX, SHIFT, OF_PIXEL, NUM_INPUTS };

static double *new_numbers(size_t length, double scale)
{
    double *numbers = malloc(length * sizeof(double));
    for (size_t n = 0; n < length; n++)
        numbers[n] = (float)(scale * random_number());
    return numbers;
}

/* A buffer of exactly that size, in the type that is tested. */
static void *as_real(const double *numbers, size_t length, size_t real_size)
{
    void *copy = numbers ? malloc(length * real_size) : NULL;
    for (size_t n = 0; n < length && copy; n++)
        if (real_size == sizeof(float))
            ((float *)copy)[n] = (float)numbers[n];
        else
            ((double *)copy)[n] = numbers[n];
    return copy;
}

static double get(const void *array, size_t n, size_t real_size)
{
    return real_size == sizeof(float) ? ((const float *)array)[n] : ((const double *)array)[n];
}

/* V, where weight and mask are (out, in, taps). */
static double entry_of(const conv_shape *s, const conv_mapping *m, double *const *input, int o, int c, int t)
{
    const int e = (o * s->in_channels + c) * s->kernel_height * s->kernel_width + t;
    const double entry = input[WEIGHT][e] * (input[MASK] ? input[MASK][e] : 1);
    return m->is_exponential && o == c && t == m->diagonal_tap ? exp(entry) : entry;
}

/* The sum of z, each number times of_z, and of the log-determinants; z itself too, if asked for. */
static double define(const conv_shape *s, const conv_mapping *m, int num_images, double *const *input, int height,
                     int width, const double *of_z, const double *of_log_det, double *z, double *log_det)
{
    const int in = s->in_channels, taps = s->kernel_height * s->kernel_width;
    double total = 0, of_pixel = input[OF_PIXEL] ? *input[OF_PIXEL] : 0;
    for (int c = 0; c < in && m->diagonal_tap >= 0; c++)
        of_pixel += log(fabs(entry_of(s, m, input, c, c, m->diagonal_tap)));
    for (int n = 0; n < num_images; n++) {
        if (m->diagonal_tap >= 0)
            total += of_log_det[n] * of_pixel * s->height * s->width;
        for (int p = 0; p < height * width; p++)
            for (int o = 0; o < s->out_channels; o++) {
                double sum = input[BIAS] ? input[BIAS][o] : 0;
                for (int t = 0; t < taps; t++) {
                    int row = p / width + t / s->kernel_width * s->dilation - s->top;
                    int column = p % width + t % s->kernel_width * s->dilation - s->left;
                    if (s->wraps) {
                        row = (row + s->dilation * s->kernel_height * s->height) % s->height;
                        column = (column + s->dilation * s->kernel_width * s->width) % s->width;
                    }
                    if (row < 0 || row >= s->height || column < 0 || column >= s->width)
                        continue;
                    const double *pixel = input[X] + (((size_t)n * s->height + row) * s->width + column) * in;
                    for (int c = 0; c < in; c++) {
                        double mapped = input[SHIFT] ? input[SHIFT][c] : 0;
                        if (m->matrix_dims < 2)
                            mapped += m->matrix_dims ? input[MATRIX][c] * pixel[c] : pixel[c];
                        else
                            for (int d = 0; d < in; d++)
                                mapped += input[MATRIX][c * in + d] * pixel[d];
                        sum += entry_of(s, m, input, o, c, t) * mapped;
                    }
                }
                const size_t here = ((size_t)n * height * width + p) * s->out_channels + o;
                total += of_z[here] * sum;
                if (z)
                    z[here] = sum;
            }
    }
    if (log_det)
        *log_det = of_pixel * s->height * s->width;
    return total;
}

static int check(const conv_shape *s, const conv_mapping *m, int bits, int num_images, int instruction_set,
                 size_t real_size, int num_threads)
{
    const int height = s->top + s->height + s->bottom - s->dilation * (s->kernel_height - 1);
    const int width = s->left + s->width + s->right - s->dilation * (s->kernel_width - 1), in = s->in_channels;
    const size_t weights = (size_t)s->out_channels * in * s->kernel_height * s->kernel_width;
    const size_t lengths[NUM_INPUTS] = {(size_t)num_images * s->height * s->width * in, weights, weights, s->out_channels,
                                        m->matrix_dims == 2 ? (size_t)in * in : (size_t)in, in, 1};
    const int is_there[NUM_INPUTS] = {1, 1, bits & 1, bits & 2, m->matrix_dims, m->matrix_dims && bits & 4,
                                      m->diagonal_tap >= 0 && bits & 4};
    const size_t z_size = (size_t)num_images * height * width * s->out_channels;
    double *input[NUM_INPUTS], *z = malloc(z_size * sizeof(double)), log_det;
    double *of_z = new_numbers(z_size, 1), *of_log_det = new_numbers(num_images, 1);
    void *real[NUM_INPUTS], *of[NUM_INPUTS];
    for (int a = 0; a < NUM_INPUTS; a++) {
        input[a] = is_there[a] ? new_numbers(lengths[a], 0.7) : NULL;
        for (size_t n = 0; a == MASK && n < weights && input[a]; n++)
            input[a][n] = input[a][n] > -0.3;
        real[a] = as_real(input[a], lengths[a], real_size);
        of[a] = as_real(input[a], lengths[a], real_size);
    }
    for (int c = 0; c < in && m->diagonal_tap >= 0; c++) { /* far from zero, where the logarithm is steep */
        const size_t e = ((size_t)c * in + c) * s->kernel_height * s->kernel_width + m->diagonal_tap;
        input[WEIGHT][e] = 1 + 0.25 * (c % 3);
        if (input[MASK])
            input[MASK][e] = 1;
    }
    for (int a = WEIGHT; a <= MASK; a++) {
        free(real[a]);
        real[a] = as_real(input[a], lengths[a], real_size);
    }
    void *kept = malloc(conv_mapped_kept(s, m) * real_size), *of_z_real = as_real(of_z, z_size, real_size);
    void *z_real = malloc(z_size * real_size), *of_log_det_real = as_real(of_log_det, num_images, real_size);
    void *log_det_real = m->diagonal_tap >= 0 ? malloc(num_images * real_size) : NULL;
    int failed = conv_mapped_forward(instruction_set, real_size, s, m, num_images, real[X], real[WEIGHT], real[MASK],
                                     real[BIAS], real[MATRIX], real[SHIFT], real[OF_PIXEL], kept, z_real, log_det_real,
                                     num_threads);
    failed |= conv_mapped_backward(instruction_set, real_size, s, m, num_images, real[X], real[MASK], real[MATRIX],
                                   real[SHIFT], kept, of_z_real, log_det_real ? of_log_det_real : NULL, of[X], of[WEIGHT],
                                   of[BIAS], of[MATRIX], of[SHIFT], of[OF_PIXEL], num_threads);

    define(s, m, num_images, input, height, width, of_z, of_log_det, z, &log_det);
    double worst = 0;
    for (size_t n = 0; n < z_size; n++)
        worst = fmax(worst, fabs(get(z_real, n, real_size) - z[n]));
    for (int n = 0; n < num_images && log_det_real; n++)
        worst = fmax(worst, fabs(get(log_det_real, n, real_size) - log_det));
    for (int a = 0; a < NUM_INPUTS; a++) {
        if (!input[a] || a == MASK)
            continue;
        double *direction = new_numbers(lengths[a], 1e-4), along = 0, sides[2];
        for (size_t n = 0; n < lengths[a]; n++)
            along += get(of[a], n, real_size) * direction[n];
        for (int side = 0; side < 2; side++) {
            for (size_t n = 0; n < lengths[a]; n++)
                input[a][n] += (side ? -2 : 1) * direction[n];
            sides[side] = define(s, m, num_images, input, height, width, of_z, of_log_det, NULL, NULL);
        }
        for (size_t n = 0; n < lengths[a]; n++)
            input[a][n] += direction[n];
        worst = fmax(worst, 1e3 * fabs(along - (sides[0] - sides[1]) / 2));
        free(direction);
    }
    for (int a = 0; a < NUM_INPUTS; a++) {
        free(input[a]);
        free(real[a]);
        free(of[a]);
    }
    void *others[] = {z, of_z, of_log_det, kept, of_z_real, z_real, of_log_det_real, log_det_real};
    for (size_t n = 0; n < sizeof others / sizeof *others; n++)
        free(others[n]);
    const int right = !failed && worst < (real_size == sizeof(float) ? 1e-2 : 1e-5);
    if (!right)
        printf("wrong by %g: instruction set %d, %zu bytes, %d images of %dx%dx%d, %d channels, %dx%d taps, matrix %d, "
               "bits %d, diagonal %d, wraps %d\n", worst, instruction_set, real_size, num_images, s->height, s->width, in,
               s->out_channels, s->kernel_height, s->kernel_width, m->matrix_dims, bits, m->diagonal_tap, s->wraps);
    return right;
}

/* Of all problems every n-th is solved; n is the argument, or 1. A prime beyond 13 keeps the mixture. */
int main(int num_arguments, char **arguments)
{
    const int step = num_arguments > 1 ? atoi(arguments[1]) : 1;
    static const int channels[][2] = {{1, 1}, {3, 3}, {8, 8}, {12, 12}, {13, 13}, {2, 5}, {9, 4}};
    static const int sizes[][2] = {{1, 1}, {1, 5}, {3, 1}, {2, 3}, {5, 4}};
    static const int kernels[][3] = {{1, 1, 1}, {2, 2, 1}, {3, 3, 1}, {2, 3, 2}};     /* and dilation */

    int num_wrong = 0, num_checks = 0, instruction_set = 0;
    for (const char *const *name = ar_instruction_sets(); *name; name++, instruction_set++)
        for (int c = 0; c < 7; c++)
            for (int k = 0; k < 4; k++)
                for (int matrix_dims = 0; matrix_dims < 3; matrix_dims++)
                    for (int bits = 0; bits < 16; bits++, num_checks++) {
                        if (num_checks % step)
                            continue;
                        const int *size = sizes[num_checks % 5], *kernel = kernels[k];
                        const int rows = kernel[2] * (kernel[0] - 1), columns = kernel[2] * (kernel[1] - 1);
                        const int is_square = channels[c][0] == channels[c][1];
                        const conv_shape shape = {.in_channels = channels[c][0], .out_channels = channels[c][1],
                                                  .height = size[0], .width = size[1], .kernel_height = kernel[0],
                                                  .kernel_width = kernel[1], .dilation = kernel[2], .right = columns,
                                                  .top = rows, .wraps = num_checks / 3 & 1};
                        const conv_mapping mapping = {matrix_dims, is_square && bits & 8 ? kernel[0] * kernel[1] - 1 : -1,
                                                      num_checks / 5 & 1};
                        num_wrong += !check(&shape, &mapping, bits, 1 + num_checks % 3, instruction_set,
                                            num_checks / 7 & 1 ? sizeof(double) : sizeof(float), 1 + num_checks % 2);
                    }
    printf("%d checks on %d instruction sets, %d wrong\n", (num_checks - 1) / step + 1, instruction_set, num_wrong);
    return num_wrong != 0;
}
