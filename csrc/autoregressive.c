#include "autoregressive.h"

#include <stdlib.h>
#include <string.h>

#define ALWAYS_INLINE __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Waking a thread takes some microseconds, in which one core does about so many multiplications. */
static const double WORK_PER_THREAD = 3e5;

/* With 16 vector registers, 12 sums leave room for a value, a weight and a product. */
enum { MAX_ROWS = 12, MAX_SUMS = 12, MAX_VECTORS = 6, ALIGNMENT = 64 };

typedef struct { int begin, end; } range;
typedef struct { int first, size; } panel;
typedef struct { ptrdiff_t pixel; int tap; } term;      /* an existing neighbour of the pixel being solved */

/* Output channels (or groups of LANES of them) cut into count panels of nearly equal size; the weights of a panel
   are one run of memory, [tap][input channel][output channel of the panel]. */
typedef struct {
    int total, count;
    void *weights;
} panels;

typedef ptrdiff_t tile_kernel(const ar_plan *, const void *z, void *x, int num_images, int layout, void *, term *);
typedef ptrdiff_t image_kernel(const ar_plan *, const void *z, void *x, int layout, void *, term *);

struct ar_plan {
    int direction, num_channels, height, width, num_taps, lanes;
    size_t real_size;
    int *offsets;
    panels tile, image;
    tile_kernel *solve_tile;
    image_kernel *solve_image;
};

static panel nth_panel_in_order(int total, int count, int n)
{
    const int size = total / count, longer = total % count;
    return (panel){n * size + (n < longer ? n : longer), size + (n < longer)};
}

/* The order in which a pixel may be overwritten in place: first the panels that read most of the centre tap's inputs. */
static panel nth_panel(const panels *all, int direction, int n)
{
    return nth_panel_in_order(all->total, all->count, direction == AR_LOWER ? all->count - 1 - n : n);
}

/* The input channels that output channels begin <= c < end read through the triangular centre tap. */
static range centre_range(const ar_plan *plan, int begin, int end)
{
    if (plan->direction == AR_UPPER)
        return (range){begin, plan->num_channels};
    return (range){0, end < plan->num_channels ? end : plan->num_channels};
}

/* List the pixel itself and those of its neighbours that lie inside the image. */
static int find_terms(const ar_plan *plan, ptrdiff_t pixel, term *terms)
{
    const int row = (int)(pixel / plan->width), column = (int)(pixel % plan->width);
    int num_terms = 0;
    for (int t = 0; t < plan->num_taps; t++) {
        const int i = row + plan->offsets[2 * t], j = column + plan->offsets[2 * t + 1];
        if (0 <= i && i < plan->height && 0 <= j && j < plan->width)
            terms[num_terms++] = (term){(ptrdiff_t)i * plan->width + j, t};
    }
    return num_terms;
}

/* One instance of the kernels for each type and instruction set. */

#define REAL float
#define LANES 4
#define TARGET
#define NAME(f) f##_float_baseline
#include "substitution.inc.h"

#define REAL double
#define LANES 2
#define TARGET
#define NAME(f) f##_double_baseline
#include "substitution.inc.h"

#if defined(__x86_64__)
#define HAVE_X86_VERSIONS

#define REAL float
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) f##_float_avx2
#include "substitution.inc.h"

#define REAL double
#define LANES 4
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) f##_double_avx2
#include "substitution.inc.h"

#define REAL float
#define LANES 16
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define NAME(f) f##_float_avx512
#include "substitution.inc.h"

#define REAL double
#define LANES 8
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
    {16, {solve_tile_float_baseline, solve_tile_double_baseline}, {solve_image_float_baseline, solve_image_double_baseline}},
#ifdef HAVE_X86_VERSIONS
    {32, {solve_tile_float_avx2, solve_tile_double_avx2}, {solve_image_float_avx2, solve_image_double_avx2}},
    {64, {solve_tile_float_avx512, solve_tile_double_avx512}, {solve_image_float_avx512, solve_image_double_avx512}},
#endif
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

/* Fill all->weights from the matrices; a panel's unit is `unit` output channels, those past the last have zero weights. */
static int pack_weights(const ar_plan *plan, panels *all, int num_channels, int unit, int max_panel, const char *matrices)
{
    const size_t real_size = plan->real_size;
    all->total = (num_channels + unit - 1) / unit;
    all->count = (all->total + max_panel - 1) / max_panel;
    all->weights = allocate((size_t)all->total * unit * plan->num_taps * num_channels * real_size);
    if (!all->weights)
        return 0;
    char *weight = all->weights;
    for (int p = 0; p < all->count; p++) {
        const panel rows = nth_panel_in_order(all->total, all->count, p);
        for (int t = 0; t < plan->num_taps; t++)
            for (int in = 0; in < num_channels; in++)
                for (int out = rows.first * unit; out < (rows.first + rows.size) * unit; out++, weight += real_size) {
                    const size_t entry = ((size_t)t * num_channels + out) * num_channels + in;
                    if (out < num_channels)
                        memcpy(weight, matrices + entry * real_size, real_size);
                    else
                        memset(weight, 0, real_size);
                }
    }
    return 1;
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
    plan->offsets = malloc(2 * (size_t)num_taps * sizeof *plan->offsets);
    if (!plan->offsets || !pack_weights(plan, &plan->tile, num_channels, 1, MAX_ROWS, matrices)
        || !pack_weights(plan, &plan->image, num_channels, plan->lanes, MAX_VECTORS, matrices)) {
        ar_plan_free(plan);
        return NULL;
    }
    memcpy(plan->offsets, offsets, 2 * (size_t)num_taps * sizeof *offsets);
    return plan;
}

void ar_plan_free(ar_plan *plan)
{
    if (!plan)
        return;
    free(plan->tile.weights);
    free(plan->image.weights);
    free(plan->offsets);
    free(plan);
}

ptrdiff_t ar_solve(const ar_plan *plan, const void *z, void *x, ptrdiff_t num_images, int layout, int num_threads)
{
    const size_t num_pixels = (size_t)plan->height * plan->width;
    const size_t image_bytes = plan->num_channels * num_pixels * plan->real_size;
    const int lanes = plan->lanes;

    const ptrdiff_t rest = num_images % lanes;
    const ptrdiff_t num_tiles = num_images / lanes + (2 * rest > lanes);   /* half a tile costs what its images cost */
    const ptrdiff_t tiled = num_tiles * lanes < num_images ? num_tiles * lanes : num_images;
    const ptrdiff_t num_tasks = num_tiles + num_images - tiled;

    const double work = (double)num_images * num_pixels * plan->num_taps * plan->num_channels * plan->num_channels;
    ptrdiff_t threads = 1 + (ptrdiff_t)(work / WORK_PER_THREAD);
    threads = threads < num_threads ? threads : num_threads;
    threads = threads < num_tasks ? threads : num_tasks;

    ptrdiff_t result = num_images;      /* the first image that is not finite, or AR_NO_MEMORY, which precedes all */
    const size_t tile_bytes = num_pixels * plan->num_channels * lanes * plan->real_size;
    const size_t single_bytes = num_pixels * plan->image.total * lanes * plan->real_size;
    const size_t workspace_bytes = num_tiles ? tile_bytes : single_bytes;
#pragma omp parallel num_threads((int)threads) if (threads > 1) reduction(min : result)
    {
        void *workspace = allocate(workspace_bytes > single_bytes ? workspace_bytes : single_bytes);
        term *terms = malloc(plan->num_taps * sizeof *terms);
#pragma omp for schedule(dynamic)
        for (ptrdiff_t task = 0; task < num_tasks; task++) {
            const int is_tile = task < num_tiles;
            const ptrdiff_t first = is_tile ? task * lanes : tiled + task - num_tiles;
            const int count = !is_tile ? 1 : num_images - first < lanes ? (int)(num_images - first) : lanes;
            const void *from = (const char *)z + first * image_bytes;
            void *to = (char *)x + first * image_bytes;
            ptrdiff_t bad = AR_NO_MEMORY;
            if (workspace && terms)
                bad = is_tile ? plan->solve_tile(plan, from, to, count, layout, workspace, terms)
                              : plan->solve_image(plan, from, to, layout, workspace, terms);
            if (bad == AR_NO_MEMORY)
                result = AR_NO_MEMORY;
            else if (bad != AR_SOLVED && first + bad < result)
                result = first + bad;
        }
        free(workspace);
        free(terms);
    }
    return result == num_images ? AR_SOLVED : result;
}
