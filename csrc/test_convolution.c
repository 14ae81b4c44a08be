/* Run the convolutions over shapes that tempt an overrun and compare them with the definition, for the sanitizers: see
   sanitize.sh. Images lie in buffers of exactly their size, so that one element too far is an error. */

#include "autoregressive.h"
#include "convolution.h"
#include "test_numbers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* An array of the type that is tested, and the same numbers in double. */
typedef struct { size_t length, real_size; void *tested; double *exact; } array;

static array make(size_t length, size_t real_size, int is_random)
{
    array a = {length, real_size, malloc(length * real_size), calloc(length, sizeof(double))};
    for (size_t n = 0; n < length && is_random; n++)
        if (real_size == sizeof(float))
            a.exact[n] = ((float *)a.tested)[n] = (float)random_number();
        else
            a.exact[n] = ((double *)a.tested)[n] = random_number();
    return a;
}

static double release(array a)
{
    double worst = 0;
    for (size_t n = 0; n < a.length; n++) {
        const double tested = a.real_size == sizeof(float) ? ((float *)a.tested)[n] : ((double *)a.tested)[n];
        worst = fmax(worst, fabs(tested - a.exact[n]));
    }
    free(a.tested);
    free(a.exact);
    return worst;
}

static int check(const conv_shape *s, int num_images, int instruction_set, size_t real_size, int num_threads)
{
    const int height = s->top + s->height + s->bottom - s->dilation * (s->kernel_height - 1);
    const int width = s->left + s->width + s->right - s->dilation * (s->kernel_width - 1);
    const int in = s->in_channels, out = s->out_channels, num_pixels = height * width;
    const size_t x_size = (size_t)num_images * s->height * s->width * in, z_size = (size_t)num_images * num_pixels * out;
    const size_t weights = (size_t)out * s->kernel_height * s->kernel_width * in;
    const size_t sums = (s->is_added_everywhere ? 1 : num_pixels) * (size_t)out;
    array x = make(x_size, real_size, 1), weight = make(weights, real_size, 1), added = make(sums, real_size, 1);
    array z = make(z_size, real_size, 0), of_z = make(z_size, real_size, 1), of_x = make(x_size, real_size, 0);
    array of_weight = make(weights, real_size, 0), of_added = make(sums, real_size, 0);

    int failed = conv_forward(instruction_set, real_size, s, num_images, x.tested, weight.tested, added.tested, z.tested,
                              num_threads);
    failed |= conv_backward(instruction_set, real_size, s, num_images, x.tested, weight.tested, z.tested, of_z.tested,
                            of_x.tested, of_weight.tested, of_added.tested, num_threads);
    for (int n = 0; n < num_images; n++)
        for (int pixel = 0; pixel < num_pixels; pixel++)
            for (int o = 0; o < out; o++) {
                const size_t here = ((size_t)n * num_pixels + pixel) * out + o;
                const size_t sum = s->is_added_everywhere ? (size_t)o : (size_t)pixel * out + o;
                double gradient = 0;
                z.exact[here] = added.exact[sum];
                for (int pass = 0; pass < 2; pass++) {      /* z first, then what depends on its sign */
                    for (int i = 0; i < s->kernel_height; i++)
                        for (int j = 0; j < s->kernel_width; j++) {
                            int row = pixel / width + i * s->dilation - s->top;
                            int column = pixel % width + j * s->dilation - s->left;
                            if (s->wraps) {
                                row = (row + s->dilation * s->kernel_height * s->height) % s->height;
                                column = (column + s->dilation * s->kernel_width * s->width) % s->width;
                            }
                            if (row < 0 || row >= s->height || column < 0 || column >= s->width)
                                continue;
                            for (int c = 0; c < in; c++) {
                                const size_t there = (((size_t)n * s->height + row) * s->width + column) * in + c;
                                const size_t entry = (((size_t)o * s->kernel_height + i) * s->kernel_width + j) * in + c;
                                if (pass == 0)
                                    z.exact[here] += weight.exact[entry] * x.exact[there];
                                of_x.exact[there] += weight.exact[entry] * gradient;
                                of_weight.exact[entry] += x.exact[there] * gradient;
                            }
                        }
                    if (s->has_relu && z.exact[here] < 0)
                        z.exact[here] = 0;
                    else if (pass == 0)
                        gradient = of_z.exact[here];
                    if (pass == 0)
                        of_added.exact[sum] += gradient;
                }
            }
    double worst = fmax(release(z), fmax(release(of_x), fmax(release(of_weight), release(of_added))));
    worst = fmax(worst, fmax(release(x), fmax(release(weight), fmax(release(added), release(of_z)))));
    const int right = !failed && worst < (real_size == sizeof(float) ? 1e-3 : 1e-11);
    if (!right)
        printf("wrong by %g: instruction set %d, %zu bytes, %d images of %dx%dx%d, %d channels, %dx%d taps, wraps %d\n",
               worst, instruction_set, real_size, num_images, s->height, s->width, in, out, s->kernel_height,
               s->kernel_width, s->wraps);
    return right;
}

/* Of all problems every n-th is solved; n is the argument, or 1. A prime beyond 13 keeps the mixture. */
int main(int num_arguments, char **arguments)
{
    const int step = num_arguments > 1 ? atoi(arguments[1]) : 1;
    static const int channels[] = {1, 2, 3, 6, 8, 12, 13, 17, 25, 40, 49};
    static const int sizes[][2] = {{1, 1}, {1, 5}, {3, 1}, {2, 3}, {3, 17}, {9, 4}};
    static const int kernels[][3] = {{1, 1, 1}, {2, 2, 1}, {3, 3, 1}, {2, 3, 2}, {5, 1, 1}};     /* and dilation */
    enum { NUM_CHANNELS = sizeof channels / sizeof *channels };

    int num_wrong = 0, num_checks = 0, instruction_set = 0;
    for (const char *const *name = ar_instruction_sets(); *name; name++, instruction_set++)
        for (int in = 0; in < NUM_CHANNELS; in++)
            for (int out = 0; out < NUM_CHANNELS; out++)
                for (int k = 0; k < 5; k++)
                    for (int bits = 0; bits < 8; bits++, num_checks++) {
                        if (num_checks % step)
                            continue;
                        const int *size = sizes[num_checks % 6], *kernel = kernels[k];
                        const int rows = kernel[2] * (kernel[0] - 1), columns = kernel[2] * (kernel[1] - 1);
                        /* As many rows and columns around the image as the filter reaches, on one side or on both. */
                        const conv_shape shape = {
                            channels[in], channels[out], size[0], size[1], kernel[0], kernel[1], kernel[2],
                            bits & 1 ? columns : columns / 2, bits & 1 ? 0 : columns - columns / 2,
                            bits & 2 ? 0 : rows, bits & 2 ? rows : 0, num_checks / 5 & 1, bits >> 2 & 1, num_checks / 3 & 1};
                        num_wrong += !check(&shape, 1 + num_checks % 5, instruction_set,
                                            num_checks / 7 & 1 ? sizeof(double) : sizeof(float), 1 + num_checks % 3);
                    }
    printf("%d checks on %d instruction sets, %d wrong\n", (num_checks - 1) / step + 1, instruction_set, num_wrong);
    return num_wrong != 0;
}
