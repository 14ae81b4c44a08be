/* Run the kernels over shapes that tempt an overrun and compare them with the definition, for the sanitizers: see
   sanitize.sh. Images lie in buffers of exactly their size, so that one element too far is an error. */

#include "autoregressive.h"
#include "test_numbers.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static double get(const void *array, size_t real_size, size_t n)
{
    return real_size == sizeof(float) ? ((const float *)array)[n] : ((const double *)array)[n];
}

static void set(void *array, size_t real_size, size_t n, double value)
{
    if (real_size == sizeof(float))
        ((float *)array)[n] = (float)value;
    else
        ((double *)array)[n] = value;
}

typedef struct { int num_channels, height, width, num_images, direction, layout, num_taps; const int *offsets; } problem;

static size_t index_of(const problem *p, int image, int c, int i, int j)
{
    const size_t pixel = (size_t)i * p->width + j, num_pixels = (size_t)p->height * p->width;
    return p->layout == AR_CHANNELS_FIRST ? ((size_t)image * p->num_channels + c) * num_pixels + pixel
                                          : (image * num_pixels + pixel) * p->num_channels + c;
}

/* The largest difference between x and what the recurrence gives for it. */
static double worst_error(const problem *p, size_t real_size, const void *matrices, const void *z, const void *x)
{
    double worst = 0;
    for (int image = 0; image < p->num_images; image++)
        for (int i = 0; i < p->height; i++)
            for (int j = 0; j < p->width; j++)
                for (int out = 0; out < p->num_channels; out++) {
                    double sum = 0;
                    for (int t = 0; t < p->num_taps; t++) {
                        const int row = i + p->offsets[2 * t], column = j + p->offsets[2 * t + 1];
                        if (row < 0 || row >= p->height || column < 0 || column >= p->width)
                            continue;
                        for (int in = 0; in < p->num_channels; in++)
                            sum += get(matrices, real_size, ((size_t)t * p->num_channels + out) * p->num_channels + in)
                                 * get(t == 0 ? z : x, real_size, index_of(p, image, in, row, column));
                    }
                    worst = fmax(worst, fabs(sum - get(x, real_size, index_of(p, image, out, i, j))));
                }
    return worst;
}

static int check(const problem *p, int instruction_set, size_t real_size, int num_threads)
{
    const size_t matrix = (size_t)p->num_channels * p->num_channels;
    const size_t size = (size_t)p->num_images * p->num_channels * p->height * p->width;
    void *matrices = malloc(p->num_taps * matrix * real_size);
    void *z = malloc(size * real_size), *x = malloc(size * real_size);
    for (int t = 0; t < p->num_taps; t++)
        for (int out = 0; out < p->num_channels; out++)
            for (int in = 0; in < p->num_channels; in++) {
                const int outside = t == 0 && (p->direction == AR_LOWER ? in > out : in < out);
                set(matrices, real_size, t * matrix + (size_t)out * p->num_channels + in,
                    outside ? 0 : 0.3 / p->num_channels * random_number() + (t == 0 && in == out));
            }
    for (size_t n = 0; n < size; n++)
        set(z, real_size, n, random_number());

    ar_plan *plan = ar_plan_create(instruction_set, real_size, p->direction, p->num_channels, p->height, p->width,
                                   p->num_taps, p->offsets, matrices);
    int right = plan && ar_solve(plan, z, x, p->num_images, p->layout, num_threads) == AR_SOLVED;
    right = right && worst_error(p, real_size, matrices, z, x) < (real_size == sizeof(float) ? 1e-5 : 1e-13);

    const int spoilt = p->num_images / 2;
    set(z, real_size, index_of(p, spoilt, p->num_channels - 1, p->height - 1, 0), NAN);
    right = right && ar_solve(plan, z, x, p->num_images, p->layout, num_threads) == spoilt;
    ar_plan_free(plan);
    free(matrices);
    free(z);
    free(x);
    if (!right)
        printf("wrong: instruction set %d, %zu bytes, direction %d, layout %d, %d images of %dx%dx%d, %d taps\n",
               instruction_set, real_size, p->direction, p->layout, p->num_images, p->height, p->width,
               p->num_channels, p->num_taps);
    return right;
}

/* Of all problems every n-th is solved; n is the argument, or 1. A prime beyond 13 keeps the mixture. */
int main(int num_arguments, char **arguments)
{
    const int step = num_arguments > 1 ? atoi(arguments[1]) : 1;
    /* For AR_LOWER; negated, for AR_UPPER. */
    static const int single[] = {0, 0};
    static const int square[] = {0, 0, 1, 0, 1, 1, 0, 1};
    static const int raster[] = {0, 0, 1, -1, 1, 0, 1, 1, 0, 1};
    static const int dilated[] = {0, 0, 7, -7, 7, 0, 7, 7, 0, 7};
    static const int wide[] = {0, 0, 1, -2, 1, -1, 1, 0, 1, 1, 1, 2, 2, -2, 2, -1, 2, 0, 2, 1, 2, 2, 0, 1, 0, 2};
    static const struct { int num_taps; const int *offsets; } filters[] = {
        {1, single}, {4, square}, {5, raster}, {5, dilated}, {13, wide}};
    static const int channels[] = {1, 3, 5, 8, 12, 13, 17, 25, 49, 97};
    static const int sizes[][2] = {{1, 1}, {1, 5}, {3, 1}, {2, 3}, {3, 17}, {9, 4}};
    static const int batches[] = {1, 2, 5, 8, 9, 17};

    int num_wrong = 0, num_checks = 0, instruction_set = 0;
    for (const char *const *name = ar_instruction_sets(); *name; name++, instruction_set++)
        for (size_t f = 0; f < sizeof filters / sizeof *filters; f++)
            for (size_t c = 0; c < sizeof channels / sizeof *channels; c++)
                for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
                    int upper[64];
                    for (int n = 0; n < 2 * filters[f].num_taps; n++)
                        upper[n] = -filters[f].offsets[n];
                    for (int bits = 0; bits < 8; bits++) {
                        problem p = {channels[c], sizes[s][0], sizes[s][1], batches[num_checks % 6], bits & 1,
                                     bits >> 1 & 1, filters[f].num_taps, bits & 1 ? upper : filters[f].offsets};
                        if (num_checks % step == 0)
                            num_wrong += !check(&p, instruction_set, bits & 4 ? sizeof(double) : sizeof(float),
                                            1 + num_checks % 3);
                        num_checks++;
                    }
                }
    printf("%d checks on %d instruction sets, %d wrong\n", (num_checks - 1) / step + 1, instruction_set, num_wrong);
    return num_wrong != 0;
}
