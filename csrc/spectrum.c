#include "spectrum.h"
#include "vectors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Waking a thread takes some microseconds, in which one core does about this number of complex multiplications. */
static const double WORK_PER_THREAD = 1e5;

/* Between these a product of squares of pivots has room for one more. */
static const double SMALL = 1e-100, LARGE = 1e100;

/* With 16 vector registers. */
enum { ROWS = 2, ENTRIES = 6 };

enum { MAX_THREADS = 256, MAX_LANES = 8, ALIGNMENT = 64 };

typedef struct {
    int num_channels, num_taps, gradient;
    const double *waves, *multiplicity, *filter;
} problem;

/* What one thread works on, and what comes of it; its part of the gradient is (taps, in, out). */
typedef struct {
    ptrdiff_t begin, end;
    void *matrices, *waves, *pivots;
    double *planes, *of_filter, log_abs_det;
} job;

#define LANES 2
#define TARGET
#define NAME(f) spectrum_##f##_baseline
#include "spectrum.inc.h"

#if defined(__x86_64__)
#define HAVE_X86_VERSIONS

#define LANES 4
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) spectrum_##f##_avx2
#include "spectrum.inc.h"

#define LANES 8
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define NAME(f) spectrum_##f##_avx512
#include "spectrum.inc.h"
#endif

/* In the order of ar_instruction_sets(). */
static const struct { int lanes; void (*run)(const problem *, job *); } versions[] = {
    {2, spectrum_run_baseline},
#ifdef HAVE_X86_VERSIONS
    {4, spectrum_run_avx2},
    {8, spectrum_run_avx512},
#endif
};

/* A piece of what is left at `*memory`, aligned for vectors. */
static void *take(char **memory, size_t bytes)
{
    char *piece = *memory;
    *memory += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return piece;
}

/* Lay out what a job works with from `memory` on; the bytes that takes. */
static size_t lay_out(const problem *p, job *job, char *memory)
{
    const size_t n = p->num_channels, entries = n * n, number = 2 * MAX_LANES * sizeof(double);
    char *rest = memory;
    job->matrices = take(&rest, entries * number);
    job->waves = take(&rest, p->num_taps * number);
    job->pivots = take(&rest, n * MAX_LANES * sizeof(int));
    job->planes = take(&rest, entries * number);
    job->of_filter = take(&rest, p->gradient ? entries * p->num_taps * sizeof(double) : 0);
    return rest - memory;
}

int spectrum_log_abs_det(int instruction_set, int num_channels, int num_taps, ptrdiff_t num_frequencies,
                         const double *waves, const double *multiplicity, const double *filter, double *log_abs_det,
                         double *of_filter, int num_threads)
{
    const problem p = {num_channels, num_taps, of_filter != NULL, waves, multiplicity, filter};
    const int lanes = versions[instruction_set].lanes;
    const ptrdiff_t num_groups = (num_frequencies + lanes - 1) / lanes, entries = (ptrdiff_t)num_channels * num_channels;
    double most = 1 + (double)num_groups * lanes * entries * num_channels / WORK_PER_THREAD;
    most = most < num_groups ? most : num_groups;
    most = most < MAX_THREADS ? most : MAX_THREADS;
    const int num_jobs = num_threads < most ? num_threads : (int)most;

    job jobs[MAX_THREADS];
    const size_t room = lay_out(&p, &jobs[0], NULL);
    char *memory = aligned_alloc(ALIGNMENT, num_jobs * room);
    if (!memory)
        return SPECTRUM_NO_MEMORY;
    for (int n = 0; n < num_jobs; n++) {
        const ptrdiff_t end = num_groups * (n + 1) / num_jobs * lanes;
        lay_out(&p, &jobs[n], memory + n * room);
        jobs[n].begin = num_groups * n / num_jobs * lanes;
        jobs[n].end = end < num_frequencies ? end : num_frequencies;
        jobs[n].log_abs_det = 0;
    }
    if (num_jobs == 1) /* without OpenMP's runtime: that costs time, and does not survive a fork */
        versions[instruction_set].run(&p, jobs);
    else {
#pragma omp parallel for schedule(static, 1) num_threads(num_jobs)
        for (int n = 0; n < num_jobs; n++)
            versions[instruction_set].run(&p, &jobs[n]);
    }
    *log_abs_det = 0;
    for (int n = 0; n < num_jobs; n++) {
        *log_abs_det += jobs[n].log_abs_det;
        for (ptrdiff_t e = 0; e < entries * num_taps && n > 0 && of_filter; e++)
            jobs[0].of_filter[e] += jobs[n].of_filter[e];
    }
    if (of_filter)
        for (ptrdiff_t o = 0; o < num_channels; o++)
            for (ptrdiff_t i = 0; i < num_channels; i++)
                for (ptrdiff_t t = 0; t < num_taps; t++)
                    *of_filter++ = jobs[0].of_filter[t * entries + i * num_channels + o];
    free(memory);
    return SPECTRUM_DONE;
}
