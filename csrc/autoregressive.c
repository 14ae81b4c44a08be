#include "autoregressive.h"
#include "vectors.h"

#include <stdlib.h>
#include <string.h>

/* The vector of the listed elements of a and b joined together. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(index_vec, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(index_vec, a, b, ...) __builtin_shuffle(a, b, (index_vec){__VA_ARGS__})
#endif
#define LANES_2(F, s) F(0, s), F(1, s)
#define LANES_4(F, s) LANES_2(F, s), F(2, s), F(3, s)
#define LANES_8(F, s) LANES_4(F, s), F(4, s), F(5, s), F(6, s), F(7, s)
#define LANES_16(F, s) LANES_8(F, s), F(8, s), F(9, s), F(10, s), F(11, s), F(12, s), F(13, s), F(14, s), F(15, s)

/* Waking a thread takes some microseconds, in which one core does about this number of multiplications. */
static const double WORK_PER_THREAD = 3e5;

/* With 16 vector registers, 12 sums leave room for a value, a weight and a product. */
enum { MAX_SUMS = 12, MAX_ROWS = 12, MAX_VECTORS = 6, ALIGNMENT = 64 };

typedef struct { ptrdiff_t begin, end; } range;

/* Taps that read neighbouring columns of one row. */
typedef struct { int row, column, first_tap, num_taps; } tap_run;

/* What is left of a run of taps inside the image; `pixel` is counted from the pixel being solved. */
typedef struct { ptrdiff_t pixel, tap; int num_taps; } term;

/* Some consecutive output channels (or groups of LANES of them) of a pixel, solved together: `size` of them from
   `first` on, which read the input channels `centre` through the triangular centre tap. */
typedef struct { int first, size; range centre; } panel;

/* All output channels, cut into panels of nearly equal size, in the order in which a pixel may be overwritten in place:
   none reads what an earlier one has overwritten. The weights of a panel are one run of memory,
   [tap][input channel][output channel of the panel], and the runs are sorted by `first`. */
typedef struct {
    int total, count;
    panel *list;
    void *weights;
} panels;

typedef ptrdiff_t tile_kernel(const ar_plan *, const void *z, void *x, int num_images, int layout, void *, term *);
typedef ptrdiff_t image_kernel(const ar_plan *, const void *z, void *x, int layout, void *, term *);

struct ar_plan {
    int direction, num_channels, height, width, num_taps, num_runs, lanes;
    size_t real_size;
    tap_run *runs;                      /* the centre tap is a run of its own, and the first */
    range interior;                     /* the columns from which all taps reach columns of the image */
    panels tile, image;
    tile_kernel *solve_tile;
    image_kernel *solve_image;
};

static int first_of(const ar_plan *plan, int length) { return plan->direction == AR_LOWER ? length - 1 : 0; }
static int step_of(const ar_plan *plan) { return plan->direction == AR_LOWER ? -1 : 1; }

/* The pixels in the order of substitution. */
#define FOR_EACH_PIXEL(plan, i, j)                                                                           \
    for (int i = first_of(plan, plan->height), in = plan->height; in--; i += step_of(plan))                  \
        for (int j = first_of(plan, plan->width), jn = plan->width; jn--; j += step_of(plan))

/* List what pixel (i, j) reads: itself first, then its neighbours inside the image. Returns the number of terms.
   `terms` holds what was found for the pixel solved before, num_terms long; between interior pixels nothing changes. */
static inline int find_terms(const ar_plan *plan, int i, int j, term *terms, int num_terms)
{
    const int before = j - step_of(plan);
    if (plan->interior.begin <= j && j < plan->interior.end && plan->interior.begin <= before
        && before < plan->interior.end)
        return num_terms;
    num_terms = 0;
    for (const tap_run *run = plan->runs; run < plan->runs + plan->num_runs; run++) {
        const int row = i + run->row, column = j + run->column;
        const int begin = column < 0 ? -column : 0;
        const int end = plan->width - column < run->num_taps ? plan->width - column : run->num_taps;
        if (0 <= row && row < plan->height && begin < end)
            terms[num_terms++] = (term){(ptrdiff_t)run->row * plan->width + run->column + begin,
                                        run->first_tap + begin, end - begin};
    }
    return num_terms;
}

/* One instance of the kernels for each type and instruction set. */

#define REAL float
#define INTEGER int
#define LANES 4
#define EACH_LANE LANES_4
#define TARGET
#define NAME(f) f##_float_baseline
#include "substitution.inc.h"

#define REAL double
#define INTEGER long long
#define LANES 2
#define EACH_LANE LANES_2
#define TARGET
#define NAME(f) f##_double_baseline
#include "substitution.inc.h"

#if defined(__x86_64__)
#define HAVE_X86_VERSIONS

#define REAL float
#define INTEGER int
#define LANES 8
#define EACH_LANE LANES_8
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) f##_float_avx2
#include "substitution.inc.h"

#define REAL double
#define INTEGER long long
#define LANES 4
#define EACH_LANE LANES_4
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) f##_double_avx2
#include "substitution.inc.h"

#define REAL float
#define INTEGER int
#define LANES 16
#define EACH_LANE LANES_16
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define NAME(f) f##_float_avx512
#include "substitution.inc.h"

#define REAL double
#define INTEGER long long
#define LANES 8
#define EACH_LANE LANES_8
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define NAME(f) f##_double_avx512
#include "substitution.inc.h"
#endif

typedef struct {
    int bytes;                          /* of a vector register */
    tile_kernel *solve_tile[2];         /* for float, for double */
    image_kernel *solve_image[2];
} version;

static const version versions[] = {
#define VERSION(bytes, name)                                                                                 \
    {bytes, {solve_tile_float_##name, solve_tile_double_##name}, {solve_image_float_##name, solve_image_double_##name}}
    VERSION(16, baseline),
#ifdef HAVE_X86_VERSIONS
    VERSION(32, avx2),
    VERSION(64, avx512),
#endif
#undef VERSION
};

const char *const *ar_instruction_sets(void)
{
    /* Every set contains the ones before it, so the known ones are a prefix of the table. */
    static const char *const names[][4] = {{"baseline"}, {"baseline", "avx2"}, {"baseline", "avx2", "avx512"}};
    int best = 0;
#ifdef HAVE_X86_VERSIONS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        best = __builtin_cpu_supports("avx512f") ? 2 : 1;
#endif
    return names[best];
}

static void *allocate(size_t size)
{
    return aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

/* Cut the output channels into panels of at most max_size units of `unit` channels, and sort the matrices' entries for
   them. Channels past the last, in the last unit, get zero weights. Returns whether there was memory. */
static int make_panels(panels *all, const ar_plan *plan, int unit, int max_size, const char *matrices)
{
    const size_t real_size = plan->real_size;
    const int num_channels = plan->num_channels;
    all->total = (num_channels + unit - 1) / unit;
    all->count = (all->total + max_size - 1) / max_size;
    all->list = malloc(all->count * sizeof *all->list);
    all->weights = allocate((size_t)all->total * unit * plan->num_taps * num_channels * real_size);
    if (!all->list || !all->weights)
        return 0;

    char *weight = all->weights;
    const int size = all->total / all->count, longer = all->total % all->count;
    for (int p = 0, first = 0; p < all->count; p++) {
        panel *here = &all->list[plan->direction == AR_LOWER ? all->count - 1 - p : p];
        here->first = first;
        here->size = size + (p < longer);
        const int begin = first * unit, end = (first + here->size) * unit;
        here->centre = plan->direction == AR_LOWER ? (range){0, end < num_channels ? end : num_channels}
                                                   : (range){begin, num_channels};
        for (int t = 0; t < plan->num_taps; t++)
            for (int in = 0; in < num_channels; in++)
                for (int out = begin; out < end; out++, weight += real_size) {
                    const size_t entry = ((size_t)t * num_channels + out) * num_channels + in;
                    if (out < num_channels)
                        memcpy(weight, matrices + entry * real_size, real_size);
                    else
                        memset(weight, 0, real_size);
                }
        first += here->size;
    }
    return 1;
}

/* Join the taps that read neighbouring columns into runs, and find the columns that all of them fit. */
static void make_runs(ar_plan *plan, const int *offsets)
{
    plan->interior = (range){0, plan->width};
    for (int t = 0; t < plan->num_taps; t++) {
        const int row = offsets[2 * t], column = offsets[2 * t + 1];
        tap_run *last = t > 1 ? &plan->runs[plan->num_runs - 1] : NULL;
        if (last && row == last->row && column == last->column + last->num_taps)
            last->num_taps++;
        else
            plan->runs[plan->num_runs++] = (tap_run){row, column, t, 1};
        if (plan->interior.begin < -column)
            plan->interior.begin = -column;
        if (plan->interior.end > plan->width - column)
            plan->interior.end = plan->width - column;
    }
}

ar_plan *ar_plan_create(int instruction_set, size_t real_size, int direction, int num_channels, int height, int width,
                        int num_taps, const int *offsets, const void *matrices)
{
    ar_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return NULL;
    const version *kernels = &versions[instruction_set];
    const int is_double = real_size == sizeof(double);
    plan->direction = direction;
    plan->num_channels = num_channels;
    plan->height = height;
    plan->width = width;
    plan->num_taps = num_taps;
    plan->lanes = kernels->bytes / (int)real_size;
    plan->real_size = real_size;
    plan->solve_tile = kernels->solve_tile[is_double];
    plan->solve_image = kernels->solve_image[is_double];
    plan->runs = malloc(num_taps * sizeof *plan->runs);
    if (!plan->runs || !make_panels(&plan->tile, plan, 1, MAX_ROWS, matrices)
        || !make_panels(&plan->image, plan, plan->lanes, MAX_VECTORS, matrices)) {
        ar_plan_free(plan);
        return NULL;
    }
    make_runs(plan, offsets);
    return plan;
}

void ar_plan_free(ar_plan *plan)
{
    if (!plan)
        return;
    free(plan->tile.list);
    free(plan->tile.weights);
    free(plan->image.list);
    free(plan->image.weights);
    free(plan->runs);
    free(plan);
}

/* One call of ar_solve: tiles first, then single images, taken by the threads one after the other. */
typedef struct {
    const ar_plan *plan;
    const char *z;
    char *x;
    ptrdiff_t num_images, num_tiles, num_tasks, next_task;
    int layout;
    ptrdiff_t result;           /* the first image that is not finite, or AR_NO_MEMORY, which is less than any */
} job;

static void report(job *job, ptrdiff_t result)
{
#pragma omp critical(autoregressive_report)
    if (result < job->result)
        job->result = result;
}

static void work(job *job)
{
    const ar_plan *plan = job->plan;
    const int lanes = plan->lanes;
    const size_t num_pixels = (size_t)plan->height * plan->width;
    const size_t image_bytes = num_pixels * plan->num_channels * plan->real_size;
    const size_t tile_map = image_bytes * lanes, image_map = num_pixels * plan->image.total * lanes * plan->real_size;
    const ptrdiff_t num_tiled = job->num_tiles * lanes;

    void *workspace = allocate(job->num_tiles && tile_map > image_map ? tile_map : image_map);
    term *terms = malloc(plan->num_runs * sizeof *terms);
    if (!workspace || !terms)
        report(job, AR_NO_MEMORY);
    while (workspace && terms) {
        ptrdiff_t task;
#pragma omp atomic capture
        task = job->next_task++;
        if (task >= job->num_tasks)
            break;
        const int is_tile = task < job->num_tiles;
        const ptrdiff_t first = is_tile ? task * lanes : num_tiled + task - job->num_tiles;
        const ptrdiff_t left = job->num_images - first;
        const char *z = job->z + first * image_bytes;
        char *x = job->x + first * image_bytes;
        const ptrdiff_t bad =
            is_tile ? plan->solve_tile(plan, z, x, left < lanes ? (int)left : lanes, job->layout, workspace, terms)
                    : plan->solve_image(plan, z, x, job->layout, workspace, terms);
        if (bad != AR_SOLVED)
            report(job, first + bad);
    }
    free(workspace);
    free(terms);
}

ptrdiff_t ar_solve(const ar_plan *plan, const void *z, void *x, ptrdiff_t num_images, int layout, int num_threads)
{
    /* Half a tile costs about what its images cost one by one. */
    const ptrdiff_t rest = num_images % plan->lanes;
    const ptrdiff_t num_tiles = num_images / plan->lanes + (2 * rest > plan->lanes);
    const ptrdiff_t num_singles = 2 * rest > plan->lanes ? 0 : rest;
    job job = {plan, z, x, num_images, num_tiles, num_tiles + num_singles, 0, layout, num_images};

    const double multiplications = (double)num_images * plan->height * plan->width * plan->num_taps
                                 * plan->num_channels * plan->num_channels;
    if (num_threads > 1 + multiplications / WORK_PER_THREAD)
        num_threads = 1 + (int)(multiplications / WORK_PER_THREAD);
    if (num_threads > job.num_tasks)
        num_threads = (int)job.num_tasks;

    /* Alone, without OpenMP's runtime: that costs time, and does not survive a fork. */
    if (num_threads > 1) {
#pragma omp parallel num_threads(num_threads)
        work(&job);
    } else {
        work(&job);
    }
    return job.result == num_images ? AR_SOLVED : job.result;
}
