/* Compare log-determinants with their definition, and the gradient along a random direction with a difference of it, for
   the sanitizers: see sanitize.sh. */

#include "autoregressive.h"
#include "spectrum.h"
#include "test_numbers.h"

#include <complex.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static double *new_numbers(size_t length, double scale)
{
    double *numbers = malloc(length * sizeof(double));
    for (size_t n = 0; n < length; n++)
        numbers[n] = scale * random_number();
    return numbers;
}

static double define(int n, int num_taps, int num_frequencies, const double *waves, const double *multiplicity,
                     const double *filter)
{
    double complex *a = malloc(n * n * sizeof(*a));
    double total = 0;
    for (int f = 0; f < num_frequencies; f++) {
        for (int e = 0; e < n * n; e++) {
            a[e] = 0;
            for (int t = 0; t < num_taps; t++)
                a[e] += (waves[2 * (f * num_taps + t)] + I * waves[2 * (f * num_taps + t) + 1]) * filter[e * num_taps + t];
        }
        for (int k = 0; k < n; k++) {
            int pivot = k;
            for (int i = k; i < n; i++)
                if (cabs(a[i * n + k]) > cabs(a[pivot * n + k]))
                    pivot = i;
            for (int j = 0; j < n; j++) {
                const double complex entry = a[k * n + j];
                a[k * n + j] = a[pivot * n + j];
                a[pivot * n + j] = entry;
            }
            total += multiplicity[f] * log(cabs(a[k * n + k]));
            for (int i = k + 1; i < n; i++)
                for (int j = n; j-- > k;)
                    a[i * n + j] -= a[i * n + k] / a[k * n + k] * a[k * n + j];
        }
    }
    free(a);
    return total;
}

/* With `is_hard` the diagonals are zero, so that every pivot has to be looked for. */
static int check(int n, int num_taps, int num_frequencies, int is_hard, double scale, int instruction_set, int num_threads)
{
    const size_t length = (size_t)n * n * num_taps;
    double *waves = new_numbers(2 * (size_t)num_frequencies * num_taps, 1), *filter = new_numbers(length, scale);
    double *multiplicity = new_numbers(num_frequencies, 1), *direction = new_numbers(length, 1e-6 * scale);
    double *gradient = malloc(length * sizeof(double)), with_gradient, alone, along = 0, sides[2];
    for (int c = 0; c < n; c++)
        for (int t = 0; t < num_taps; t++)
            filter[(c * n + c) * num_taps + t] = is_hard && n > 1 ? 0 : 3 * scale;

    int failed = spectrum_log_abs_det(instruction_set, n, num_taps, num_frequencies, waves, multiplicity, filter,
                                      &with_gradient, gradient, num_threads);
    failed |= spectrum_log_abs_det(instruction_set, n, num_taps, num_frequencies, waves, multiplicity, filter, &alone,
                                   NULL, num_threads);
    const double exact = define(n, num_taps, num_frequencies, waves, multiplicity, filter);
    for (size_t e = 0; e < length; e++)
        along += gradient[e] * direction[e];
    for (int side = 0; side < 2; side++) {
        for (size_t e = 0; e < length; e++)
            filter[e] += (side ? -2 : 1) * direction[e];
        sides[side] = define(n, num_taps, num_frequencies, waves, multiplicity, filter);
    }
    const double size = 1 + fabs(exact), difference = (sides[0] - sides[1]) / 2;
    const int right = !failed && fabs(with_gradient - exact) < 1e-10 * size && fabs(alone - exact) < 1e-10 * size
                      && fabs(along - difference) < 1e-3 * fabs(difference) + 1e-9 * size;
    if (!right)
        printf("wrong: %g and %g are %g, %g is %g: instruction set %d, %d channels, %d taps, %d frequencies\n",
               with_gradient, alone, exact, along, difference, instruction_set, n, num_taps, num_frequencies);
    free(waves), free(filter), free(multiplicity), free(direction), free(gradient);
    return right;
}

/* Of all problems every n-th is solved; n is the argument, or 1. */
int main(int num_arguments, char **arguments)
{
    const int step = num_arguments > 1 ? atoi(arguments[1]) : 1;
    static const double scales[] = {1, 1e-30, 1e30};
    int num_wrong = 0, num_checks = 0, instruction_set = 0;
    for (const char *const *name = ar_instruction_sets(); *name; name++, instruction_set++)
        for (int n = 1; n <= 14; n++)
            for (int num_taps = 1; num_taps <= 9; num_taps += 4)
                for (int num_frequencies = 1; num_frequencies <= 19; num_frequencies += 2, num_checks++)
                    if (num_checks % step == 0)
                        num_wrong += !check(n, num_taps, num_frequencies, num_checks / 2 & 1, scales[num_checks % 3],
                                            instruction_set, 1 + num_checks % 3);
    printf("%d checks on %d instruction sets, %d wrong\n", (num_checks - 1) / step + 1, instruction_set, num_wrong);
    return num_wrong != 0;
}
