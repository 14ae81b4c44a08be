#include "masked_autoregressive.h"
#include "vectors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* With 16 vector registers, 12 sums leave room for weights and a value. */
enum { MAX_SUMS = 12, MAX_SITES = 4, ALIGNMENT = 64 };

/* Independent pixels, of several images or of one, that are solved together: where each finds what. */
typedef struct {
    int count;
    void *x[MAX_SITES];                 /* the pixel's channels in the padded map */
    void *hidden1[MAX_SITES];           /* needed only while the pixel is solved */
    void *hidden2[MAX_SITES];           /* the pixel's units in the padded map: later pixels read them */
    void *outputs[MAX_SITES];
    const void *z[MAX_SITES];           /* channel 0 (in the order of substitution) of the pixel in the image */
    void *result[MAX_SITES];            /* the same of x */
    void *bad[MAX_SITES];               /* a number of the image that becomes NaN where z is not finite */
} site_list;

typedef void site_solver(const mar_plan *, const site_list *);

struct mar_plan {
    int num_channels, num_hidden, height, width;
    ptrdiff_t hidden_stride, output_stride;     /* units and outputs, rounded up to whole vectors */
    ptrdiff_t map_width;                        /* of the padded maps: a column of zeros on either side */
    ptrdiff_t first_place, pixel_step, channel_step;    /* from number to number in an image, backwards if reversed */
    size_t real_size;
    double max_log_scale, max_shift, max_input, offset;     /* a bound is 0 for none */
    int *first_units;
    void *first, *second, *last;                /* [bias, then inputs][outputs], rows of whole vectors */
    site_solver *solve;
};

/* By way of double, in which its error is 2e-16 or so, and faster: glibc's exp takes a quarter of its tanhf's time. */
static inline float quick_tanhf(float u)
{
    return (float)(1 - 2 / (1 + exp(2 * (double)u)));
}

/* One instance of the kernel for each type and instruction set. */

#define REAL float
#define EXP expf
#define TANH quick_tanhf
#define LANES 4
#define TARGET
#define NAME(f) masked_##f##_float_baseline
#include "masked_substitution.inc.h"

#define REAL double
#define EXP exp
#define TANH tanh
#define LANES 2
#define TARGET
#define NAME(f) masked_##f##_double_baseline
#include "masked_substitution.inc.h"

#if defined(__x86_64__)
#define HAVE_X86_VERSIONS

#define REAL float
#define EXP expf
#define TANH quick_tanhf
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) masked_##f##_float_avx2
#include "masked_substitution.inc.h"

#define REAL double
#define EXP exp
#define TANH tanh
#define LANES 4
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) masked_##f##_double_avx2
#include "masked_substitution.inc.h"

#define REAL float
#define EXP expf
#define TANH quick_tanhf
#define LANES 16
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define NAME(f) masked_##f##_float_avx512
#include "masked_substitution.inc.h"

#define REAL double
#define EXP exp
#define TANH tanh
#define LANES 8
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define NAME(f) masked_##f##_double_avx512
#include "masked_substitution.inc.h"
#endif

/* In the order of ar_instruction_sets(). */
static const struct { int bytes; site_solver *solve[2]; } versions[] = {
    {16, {masked_solve_float_baseline, masked_solve_double_baseline}},
#ifdef HAVE_X86_VERSIONS
    {32, {masked_solve_float_avx2, masked_solve_double_avx2}},
    {64, {masked_solve_float_avx512, masked_solve_double_avx512}},
#endif
};

static void *allocate(size_t size)
{
    return aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

static void *allocate_zeros(size_t size)
{
    void *memory = allocate(size);
    return memory ? memset(memory, 0, size) : NULL;
}

/* Copy a matrix with a row of biases above it, widening its rows to `stride`. Its inputs come in groups of `group`, of
   which each is widened to `group_stride` rows; the added weights are zero. */
static void *widen(const char *source, ptrdiff_t num_groups, ptrdiff_t group, ptrdiff_t group_stride, ptrdiff_t columns,
                   ptrdiff_t stride, size_t real_size)
{
    char *matrix = allocate_zeros((1 + num_groups * group_stride) * stride * real_size);
    if (!matrix)
        return NULL;
    memcpy(matrix, source, columns * real_size);
    for (ptrdiff_t g = 0; g < num_groups; g++)
        for (ptrdiff_t k = 0; k < group; k++)
            memcpy(matrix + (1 + g * group_stride + k) * stride * real_size,
                   source + (1 + g * group + k) * columns * real_size, columns * real_size);
    return matrix;
}

mar_plan *mar_plan_create(int instruction_set, size_t real_size, int is_reversed, int num_channels, int num_hidden,
                          int height, int width, const int *first_units, double max_log_scale, double max_shift,
                          double max_input, double offset, const void *first, const void *second, const void *last)
{
    mar_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return NULL;
    const ptrdiff_t lanes = versions[instruction_set].bytes / (ptrdiff_t)real_size;
    const ptrdiff_t num_pixels = (ptrdiff_t)height * width, num_outputs = 2 * (ptrdiff_t)num_channels;
    const ptrdiff_t hidden = plan->hidden_stride = (num_hidden + lanes - 1) / lanes * lanes;
    const ptrdiff_t outputs = plan->output_stride = (num_outputs + lanes - 1) / lanes * lanes;
    plan->num_channels = num_channels;
    plan->num_hidden = num_hidden;
    plan->height = height;
    plan->width = width;
    plan->map_width = width + 2;
    plan->first_place = is_reversed ? num_channels * num_pixels - 1 : 0;
    plan->pixel_step = is_reversed ? -1 : 1;
    plan->channel_step = is_reversed ? -num_pixels : num_pixels;
    plan->real_size = real_size;
    plan->max_log_scale = max_log_scale;
    plan->max_shift = max_shift;
    plan->max_input = max_input;
    plan->offset = offset;
    plan->solve = versions[instruction_set].solve[real_size == sizeof(double)];
    plan->first_units = malloc((num_channels + 1) * sizeof *first_units);
    plan->first = widen(first, 5, num_channels, num_channels, num_hidden, hidden, real_size);
    plan->second = widen(second, 1, num_hidden, hidden, num_hidden, hidden, real_size);
    plan->last = widen(last, 5, num_hidden, hidden, num_outputs, outputs, real_size);
    if (!plan->first_units || !plan->first || !plan->second || !plan->last) {
        mar_plan_free(plan);
        return NULL;
    }
    memcpy(plan->first_units, first_units, (num_channels + 1) * sizeof *first_units);
    return plan;
}

void mar_plan_free(mar_plan *plan)
{
    if (!plan)
        return;
    free(plan->first_units);
    free(plan->first);
    free(plan->second);
    free(plan->last);
    free(plan);
}

/* One call of mar_solve: groups of images, taken by the threads one after the other. */
typedef struct {
    const mar_plan *plan;
    const char *z;
    char *x;
    ptrdiff_t num_images, next_image;
    int group;                  /* images that are solved together */
    ptrdiff_t result;           /* the first image that is not finite, or MAR_NO_MEMORY, which is less than any */
} job;

static void report(job *job, ptrdiff_t result)
{
#pragma omp critical(masked_autoregressive_report)
    if (result < job->result)
        job->result = result;
}

/* The memory of one thread: for each image of a group a padded map of x and one of the second layer's units, and for
   each site the rest. The padding is zero, and stays so. */
typedef struct {
    char *x, *hidden2, *hidden1, *outputs, *bad;
    size_t x_bytes, hidden_bytes;       /* of one image's maps */
} workspace;

static int make_workspace(workspace *memory, const mar_plan *plan, int group)
{
    const size_t map = (size_t)(plan->height + 1) * plan->map_width;
    memory->x_bytes = map * plan->num_channels * plan->real_size;
    memory->hidden_bytes = map * plan->hidden_stride * plan->real_size;
    memory->x = allocate_zeros(group * memory->x_bytes);
    memory->hidden2 = allocate_zeros(group * memory->hidden_bytes);
    memory->hidden1 = allocate(MAX_SITES * plan->hidden_stride * plan->real_size);
    memory->outputs = allocate(MAX_SITES * plan->output_stride * plan->real_size);
    memory->bad = allocate(group * plan->real_size);
    return memory->x && memory->hidden2 && memory->hidden1 && memory->outputs && memory->bad;
}

static void free_workspace(workspace *memory)
{
    free(memory->x);
    free(memory->hidden2);
    free(memory->hidden1);
    free(memory->outputs);
    free(memory->bad);
}

/* Solve some images. Pixels with the same 2 i + j do not read one another, nor do the images. */
static void solve_group(const mar_plan *plan, const char *z, char *x, int num_images, const workspace *memory)
{
    const size_t real_size = plan->real_size;
    const size_t image_bytes = (size_t)plan->height * plan->width * plan->num_channels * real_size;
    site_list at = {0};
    for (int front = 0; front < plan->width + 2 * (plan->height - 1); front++) {
        const int begin = front < plan->width ? 0 : (front - plan->width) / 2 + 1;
        for (int i = begin; i < plan->height && 2 * i <= front; i++) {
            const int j = front - 2 * i;
            const ptrdiff_t pixel = (i + 1) * plan->map_width + j + 1;
            const ptrdiff_t place = plan->first_place + ((ptrdiff_t)i * plan->width + j) * plan->pixel_step;
            for (int n = 0; n < num_images; n++) {
                const int s = at.count++;
                at.x[s] = memory->x + n * memory->x_bytes + pixel * plan->num_channels * real_size;
                at.hidden2[s] = memory->hidden2 + n * memory->hidden_bytes + pixel * plan->hidden_stride * real_size;
                at.hidden1[s] = memory->hidden1 + s * plan->hidden_stride * real_size;
                at.outputs[s] = memory->outputs + s * plan->output_stride * real_size;
                at.z[s] = z + n * image_bytes + place * real_size;
                at.result[s] = x + n * image_bytes + place * real_size;
                at.bad[s] = memory->bad + n * real_size;
                if (at.count == MAX_SITES) {
                    plan->solve(plan, &at);
                    at.count = 0;
                }
            }
        }
        if (at.count > 0)
            plan->solve(plan, &at);
        at.count = 0;
    }
}

static void work(job *job)
{
    const mar_plan *plan = job->plan;
    const size_t real_size = plan->real_size;
    const size_t image_bytes = (size_t)plan->height * plan->width * plan->num_channels * real_size;
    workspace memory;
    const int have_memory = make_workspace(&memory, plan, job->group);
    if (!have_memory)
        report(job, MAR_NO_MEMORY);
    while (have_memory) {
        ptrdiff_t first;
#pragma omp atomic capture
        { first = job->next_image; job->next_image += job->group; }
        if (first >= job->num_images)
            break;
        const ptrdiff_t left = job->num_images - first;
        const int num_images = left < job->group ? (int)left : job->group;
        memset(memory.bad, 0, job->group * real_size);
        solve_group(plan, job->z + first * image_bytes, job->x + first * image_bytes, num_images, &memory);
        for (int n = 0; n < num_images; n++)
            if (real_size == sizeof(float) ? isnan(((float *)memory.bad)[n]) : isnan(((double *)memory.bad)[n]))
                report(job, first + n);
    }
    free_workspace(&memory);
}

ptrdiff_t mar_solve(const mar_plan *plan, const void *z, void *x, ptrdiff_t num_images, int num_threads)
{
    /* Together as many images as make full use of the weights, but something to do for every thread. */
    ptrdiff_t group = (num_images + num_threads - 1) / num_threads;
    group = group < 1 ? 1 : group > MAX_SITES ? MAX_SITES : group;
    job job = {plan, z, x, num_images, 0, (int)group, num_images};
    const ptrdiff_t num_groups = (num_images + group - 1) / group;
    if (num_threads > num_groups)
        num_threads = (int)num_groups;

    /* Alone, without OpenMP's runtime: that costs time, and does not survive a fork. */
    if (num_threads > 1) {
#pragma omp parallel num_threads(num_threads)
        work(&job);
    } else {
        work(&job);
    }
    return job.result == num_images ? MAR_SOLVED : job.result;
}
