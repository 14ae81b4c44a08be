/* Run the masked kernels over shapes that tempt an overrun and compare them with the definition, for the sanitizers: see
   sanitize.sh. Images and weights lie in buffers of exactly their size, so that one element too far is an error. */

#include "autoregressive.h"
#include "masked_autoregressive.h"
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

typedef struct {
    int channels, hidden, height, width, num_images, is_reversed;
    size_t real_size;
    double max_log_scale, max_shift, max_input;     /* 0 for none */
} problem;

enum { NUM_NEIGHBOURS = 4 };
static const int neighbours[NUM_NEIGHBOURS + 1][2] = {{-1, -1}, {-1, 0}, {-1, 1}, {0, -1}, {0, 0}};
static const double offset = 2;

static int degree_of(const problem *p, int unit) { return unit * p->channels / p->hidden; }

/* Where a number, counted in the order of substitution, lies in its image. */
static size_t place(const problem *p, int image, int c, int i, int j)
{
    const size_t size = (size_t)p->channels * p->height * p->width;
    const size_t n = ((size_t)c * p->height + i) * p->width + j;
    return image * size + (p->is_reversed ? size - 1 - n : n);
}

/* weights^T values at one pixel: `sums` gets num_outputs numbers. `map` is [pixel][input]. */
static void convolve(const problem *p, const void *weights, int num_inputs, int num_outputs, const double *map, int i,
                     int j, double *sums)
{
    for (int out = 0; out < num_outputs; out++) {
        sums[out] = get(weights, p->real_size, out);
        for (int n = 0; n <= NUM_NEIGHBOURS; n++) {
            const int row = i + neighbours[n][0], column = j + neighbours[n][1];
            if (row < 0 || column < 0 || column >= p->width)
                continue;
            for (int in = 0; in < num_inputs; in++)
                sums[out] += map[((size_t)row * p->width + column) * num_inputs + in]
                           * get(weights, p->real_size,
                                 (size_t)(1 + n * num_inputs + in) * num_outputs + out);
        }
    }
}

/* The largest difference between z and what the network makes of x. */
static double worst_error(const problem *p, const void *first, const void *second, const void *last, const void *z,
                          const void *x)
{
    const int pixels = p->height * p->width;
    double *map = malloc(pixels * p->channels * sizeof *map), *units = malloc(pixels * p->hidden * sizeof *units);
    double *hidden = malloc(p->hidden * sizeof *hidden), *outputs = malloc(2 * p->channels * sizeof *outputs);
    double worst = 0;
    for (int image = 0; image < p->num_images; image++)
        for (int i = 0; i < p->height; i++)
            for (int j = 0; j < p->width; j++) {
                const int pixel = i * p->width + j;
                for (int c = 0; c < p->channels; c++) {
                    const double number = get(x, p->real_size, place(p, image, c, i, j)), B = p->max_input;
                    map[pixel * p->channels + c] = B ? B * tanh(number / B) : number;
                }
                convolve(p, first, p->channels, p->hidden, map, i, j, hidden);
                for (int u = 0; u < p->hidden; u++)
                    hidden[u] = fmax(hidden[u], 0);
                for (int out = 0; out < p->hidden; out++) {
                    double sum = get(second, p->real_size, out);
                    for (int in = 0; in < p->hidden; in++)
                        sum += hidden[in] * get(second, p->real_size, (size_t)(1 + in) * p->hidden + out);
                    units[pixel * p->hidden + out] = fmax(sum, 0);
                }
                convolve(p, last, p->hidden, 2 * p->channels, units, i, j, outputs);
                for (int c = 0; c < p->channels; c++) {
                    const double mu = outputs[2 * c], h = outputs[2 * c + 1], m = p->max_log_scale, M = p->max_shift;
                    const double scale = m ? exp(m * tanh(h / m)) : 1 / (1 + exp(-(h + offset)));
                    const double number = get(x, p->real_size, place(p, image, c, i, j));
                    const double again = number * scale + (M ? M * tanh(mu / M) : mu);
                    worst = fmax(worst, fabs(again - get(z, p->real_size, place(p, image, c, i, j))));
                }
            }
    free(map);
    free(units);
    free(hidden);
    free(outputs);
    return worst;
}

static int check(const problem *p, int instruction_set, int num_threads)
{
    const int inputs[] = {5 * p->channels, p->hidden, 5 * p->hidden};
    const int outputs[] = {p->hidden, p->hidden, 2 * p->channels};
    void *weights[3];
    for (int layer = 0; layer < 3; layer++) {
        weights[layer] = malloc((size_t)(1 + inputs[layer]) * outputs[layer] * p->real_size);
        for (int in = -1; in < inputs[layer]; in++)
            for (int out = 0; out < outputs[layer]; out++) {
                const int own = in - (layer == 0 ? 4 * p->channels : layer == 1 ? 0 : 4 * p->hidden);
                const int known = layer == 0 ? own + 1 : degree_of(p, own);
                const int degree = layer == 2 ? out / 2 : degree_of(p, out);
                set(weights[layer], p->real_size, (size_t)(1 + in) * outputs[layer] + out,
                    in >= 0 && own >= 0 && known > degree ? 0 : random_number() / sqrt(inputs[layer]));
            }
    }
    int *first_units = malloc((p->channels + 1) * sizeof *first_units);
    for (int c = 0; c <= p->channels; c++)
        for (first_units[c] = 0; first_units[c] < p->hidden && degree_of(p, first_units[c]) < c;)
            first_units[c]++;

    const size_t size = (size_t)p->num_images * p->channels * p->height * p->width;
    void *z = malloc(size * p->real_size), *x = malloc(size * p->real_size);
    for (size_t n = 0; n < size; n++)
        set(z, p->real_size, n, random_number());
    mar_plan *plan = mar_plan_create(instruction_set, p->real_size, p->is_reversed, p->channels, p->hidden, p->height,
                                     p->width, first_units, p->max_log_scale, p->max_shift, p->max_input, offset,
                                     weights[0], weights[1], weights[2]);
    int right = plan && mar_solve(plan, z, x, p->num_images, num_threads) == MAR_SOLVED;
    right = right
         && worst_error(p, weights[0], weights[1], weights[2], z, x) < (p->real_size == sizeof(float) ? 1e-5 : 1e-13);

    const int spoilt = p->num_images / 2;
    set(z, p->real_size, place(p, spoilt, p->channels - 1, p->height - 1, 0), INFINITY);
    right = right && mar_solve(plan, z, x, p->num_images, num_threads) == spoilt;
    mar_plan_free(plan);
    for (int layer = 0; layer < 3; layer++)
        free(weights[layer]);
    free(first_units);
    free(z);
    free(x);
    if (!right)
        printf("wrong: instruction set %d, %zu bytes, %s, %d images of %dx%dx%d, %d units\n", instruction_set,
               p->real_size, p->is_reversed ? "reversed" : "ahead", p->num_images, p->height, p->width, p->channels,
               p->hidden);
    return right;
}

/* Of all problems every n-th is solved; n is the argument, or 1. A prime beyond 13 keeps the mixture. */
int main(int num_arguments, char **arguments)
{
    const int step = num_arguments > 1 ? atoi(arguments[1]) : 1;
    static const int channels[] = {1, 3, 4, 12, 13, 25};
    static const int hidden[] = {1, 2, 7, 8, 17, 48};
    static const int sizes[][2] = {{1, 1}, {1, 5}, {3, 1}, {2, 3}, {3, 11}, {9, 4}};
    static const int batches[] = {1, 2, 3, 4, 5, 8, 9};

    int num_wrong = 0, num_checks = 0, instruction_set = 0;
    for (const char *const *name = ar_instruction_sets(); *name; name++, instruction_set++)
        for (size_t c = 0; c < sizeof channels / sizeof *channels; c++)
            for (size_t u = 0; u < sizeof hidden / sizeof *hidden; u++)
                for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
                    for (int bits = 0; bits < 4; bits++) {
                        problem p = {channels[c], hidden[u], sizes[s][0], sizes[s][1], batches[num_checks % 7],
                                     bits & 1, bits & 2 ? sizeof(double) : sizeof(float),
                                     num_checks % 5 % 2 * 0.7, num_checks % 11 % 3 * 0.5,
                                     num_checks % 13 % 2 * 0.8};
                        if (num_checks % step == 0)
                            num_wrong += !check(&p, instruction_set, 1 + num_checks % 3);
                        num_checks++;
                    }
    printf("%d checks of the masked kernel on %d instruction sets, %d wrong\n", (num_checks - 1) / step + 1, instruction_set, num_wrong);
    return num_wrong != 0;
}
