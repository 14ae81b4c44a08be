#include "convolution.h"
#include "vectors.h"

#include <stdlib.h>
#include <string.h>

/* Waking a thread takes some microseconds, in which one core does about this number of multiplications. */
static const double WORK_PER_THREAD = 3e5;

/* With 16 vector registers, 12 sums leave room for weights and a value. */
enum { MAX_SUMS = 12, MAX_SIZE = 3, MAX_THREADS = 256, ALIGNMENT = 64 };

/* An image with what lies around it, in numbers: its rows are `row` long, and it begins at `start`. Behind its last
   number there is room for a vector. */
typedef struct { int channels, height, width, left, right, top, bottom; ptrdiff_t row, start, size; } map;

/* A shape, and what follows from it. */
typedef struct {
    conv_shape shape;
    int num_taps;
    map x, z;                                   /* z, or its gradient, as far around as the transposed filter reaches */
    ptrdiff_t *x_taps, *z_taps;                 /* from a pixel to those that its taps read, in the maps */
    ptrdiff_t added_step, added_size;           /* from pixel to pixel, and in all */
} problem;

/* What one thread works on. Sums of gradients over its images are its own. */
typedef struct {
    ptrdiff_t num_images;
    const void *x, *z, *of_z, *filter, *added;
    void *to;                                   /* z in the forward pass, the gradient of x in the backward pass */
    void *x_map, *z_map, *of_filter, *of_added;
} job;

/* Numbers in a filter whose output channels fill whole vectors. */
static ptrdiff_t filter_size(const problem *p, int in, int out, int lanes)
{
    return (ptrdiff_t)p->num_taps * in * ((out + lanes - 1) / lanes * lanes);
}

/* The output vectors that are summed together, out of `left` of them: two or three, one if it is the last. */
static inline int panel_size(int left) { return left == 1 ? 1 : left % 2 ? 3 : 2; }

#define FOR_EACH_PANEL(first, size, total)                                                                   \
    for (int first = 0, size; first < (total) && (size = panel_size((total) - first)); first += size)

/* Cut `length` into the fewest parts of at most `most`, of nearly equal size. */
#define FOR_EACH_PART(begin, part, length, most)                                                             \
    for (int begin = 0, parts = ((length) + (most) - 1) / (most), n = 0, part;                               \
         n < parts && (part = (length) / parts + (n < (length) % parts)); n++, begin += part)

/* Where an image of this length goes on. */
static inline int wrapped(int place, int length) { return (place % length + length) % length; }

/* Every size and number of sums that fit the registers, as constants. */
#define EACH_BLOCK(CASE)                                                                                     \
    CASE(1, 1) CASE(2, 1) CASE(3, 1) CASE(4, 1) CASE(5, 1) CASE(6, 1) CASE(7, 1) CASE(8, 1) CASE(9, 1)       \
    CASE(10, 1) CASE(11, 1) CASE(12, 1) CASE(1, 2) CASE(2, 2) CASE(3, 2) CASE(4, 2) CASE(5, 2) CASE(6, 2)    \
    CASE(1, 3) CASE(2, 3) CASE(3, 3) CASE(4, 3)

/* One instance of the kernels for each type and instruction set. */

#define REAL float
#define INTEGER int
#define LANES 4
#define TARGET
#define NAME(f) conv_##f##_float_baseline
#include "convolution.inc.h"

#define REAL double
#define INTEGER long long
#define LANES 2
#define TARGET
#define NAME(f) conv_##f##_double_baseline
#include "convolution.inc.h"

#if defined(__x86_64__)
#define HAVE_X86_VERSIONS

#define REAL float
#define INTEGER int
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) conv_##f##_float_avx2
#include "convolution.inc.h"

#define REAL double
#define INTEGER long long
#define LANES 4
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) conv_##f##_double_avx2
#include "convolution.inc.h"

#define REAL float
#define INTEGER int
#define LANES 16
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define NAME(f) conv_##f##_float_avx512
#include "convolution.inc.h"

#define REAL double
#define INTEGER long long
#define LANES 8
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#define NAME(f) conv_##f##_double_avx512
#include "convolution.inc.h"
#endif

typedef void job_kernel(const problem *, const job *);

/* In the order of ar_instruction_sets(). */
static const struct {
    int bytes;                                  /* of a vector register */
    job_kernel *forward[2], *backward[2];       /* for float, for double */
    void (*pack[2])(const problem *, int is_transposed, void *filter, const void *weight);
    void (*unpack[2])(const problem *, void *weight, const void *filter);
    void (*join[2])(const problem *, const job *first, const job *other);
} versions[] = {
#define VERSION(bytes, name)                                                                                 \
    {bytes,                                                                                                  \
     {conv_forward_float_##name, conv_forward_double_##name},                                                \
     {conv_backward_float_##name, conv_backward_double_##name},                                              \
     {conv_pack_float_##name, conv_pack_double_##name},                                                      \
     {conv_unpack_float_##name, conv_unpack_double_##name},                                                  \
     {conv_join_float_##name, conv_join_double_##name}},
    VERSION(16, baseline)
#ifdef HAVE_X86_VERSIONS
    VERSION(32, avx2)
    VERSION(64, avx512)
#endif
#undef VERSION
};

static map make_map(int channels, int height, int width, int left, int right, int top, int bottom, int lanes)
{
    const ptrdiff_t row = (ptrdiff_t)(left + width + right) * channels;
    return (map){channels, height, width, left, right, top, bottom, row, top * row + (ptrdiff_t)left * channels,
                 (top + height + bottom) * row + lanes};
}

static problem make_problem(const conv_shape *s, int lanes)
{
    const int rows = (s->kernel_height - 1) * s->dilation, columns = (s->kernel_width - 1) * s->dilation;
    const int height = s->top + s->height + s->bottom - rows, width = s->left + s->width + s->right - columns;
    problem p = {.shape = *s, .num_taps = s->kernel_height * s->kernel_width};
    p.x = make_map(s->in_channels, s->height, s->width, s->left, s->right, s->top, s->bottom, lanes);
    p.z = make_map(s->out_channels, height, width, columns - s->left, columns - s->right, rows - s->top,
                   rows - s->bottom, lanes);
    p.added_step = s->is_added_everywhere ? 0 : s->out_channels;
    p.added_size = s->is_added_everywhere ? s->out_channels : (ptrdiff_t)height * width * s->out_channels;
    return p;
}

static void find_taps(problem *p, ptrdiff_t *memory)
{
    const conv_shape *s = &p->shape;
    p->x_taps = memory;
    p->z_taps = memory + p->num_taps;
    for (int i = 0, t = 0; i < s->kernel_height; i++)
        for (int j = 0; j < s->kernel_width; j++, t++) {
            p->x_taps[t] = s->dilation * (i * p->x.row + (ptrdiff_t)j * s->in_channels);
            p->z_taps[t] = s->dilation * (i * p->z.row + (ptrdiff_t)j * s->out_channels);
        }
}

/* As many jobs as threads are worth waking. */
static int count_jobs(const problem *p, ptrdiff_t num_images, int num_threads)
{
    const double multiplications =
        (double)num_images * p->z.height * p->z.width * p->num_taps * p->x.channels * p->z.channels;
    double most = 1 + multiplications / WORK_PER_THREAD;
    most = most < num_images ? most : num_images;
    most = most < MAX_THREADS ? most : MAX_THREADS;
    return num_threads < most ? num_threads : (int)most;
}

static void run(job_kernel *kernel, const problem *p, const job *jobs, int num_jobs)
{
    /* Alone, without OpenMP's runtime: that costs time, and does not survive a fork. */
    if (num_jobs == 1) {
        kernel(p, jobs);
        return;
    }
#pragma omp parallel for schedule(static, 1) num_threads(num_jobs)
    for (int n = 0; n < num_jobs; n++)
        kernel(p, &jobs[n]);
}

/* Bytes, so that what follows is aligned again. */
static size_t room(ptrdiff_t count, size_t size) { return (count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* A piece of what is left at `*memory`. */
static void *take(char **memory, size_t bytes)
{
    char *piece = *memory;
    *memory += bytes;
    return piece;
}

static const void *offset(const void *array, ptrdiff_t index, size_t size)
{
    return array ? (const char *)array + index * size : NULL;
}

int conv_forward(int instruction_set, size_t real_size, const conv_shape *shape, ptrdiff_t num_images, const void *x,
                 const void *weight, const void *added, void *z, int num_threads)
{
    const int is_double = real_size == sizeof(double), lanes = versions[instruction_set].bytes / (int)real_size;
    problem p = make_problem(shape, lanes);
    const int num_jobs = count_jobs(&p, num_images, num_threads);
    const size_t of_taps = room(2 * p.num_taps, sizeof(ptrdiff_t)), of_map = room(p.x.size, real_size);
    const size_t of_filter = room(filter_size(&p, p.x.channels, p.z.channels, lanes), real_size);
    const size_t of_added = room(p.added_size + lanes, real_size);
    char *memory = aligned_alloc(ALIGNMENT, of_taps + of_filter + of_added + num_jobs * of_map);
    if (!memory)
        return CONV_NO_MEMORY;

    char *rest = memory;
    find_taps(&p, take(&rest, of_taps));
    void *filter = take(&rest, of_filter), *padded_added = take(&rest, of_added);
    versions[instruction_set].pack[is_double](&p, 0, filter, weight);
    memset(padded_added, 0, of_added);
    if (added)
        memcpy(padded_added, added, p.added_size * real_size);
    const ptrdiff_t x_size = (ptrdiff_t)p.x.height * p.x.width * p.x.channels;
    const ptrdiff_t z_size = (ptrdiff_t)p.z.height * p.z.width * p.z.channels;
    job jobs[MAX_THREADS];
    for (int n = 0; n < num_jobs; n++) {
        const ptrdiff_t begin = num_images * n / num_jobs, end = num_images * (n + 1) / num_jobs;
        jobs[n] = (job){.num_images = end - begin, .x = offset(x, begin * x_size, real_size), .filter = filter,
                        .added = added ? padded_added : NULL, .to = (void *)offset(z, begin * z_size, real_size),
                        .x_map = take(&rest, of_map)};
    }
    run(versions[instruction_set].forward[is_double], &p, jobs, num_jobs);
    free(memory);
    return CONV_DONE;
}

int conv_backward(int instruction_set, size_t real_size, const conv_shape *shape, ptrdiff_t num_images, const void *x,
                  const void *weight, const void *z, const void *of_z, void *of_x, void *of_weight, void *of_added,
                  int num_threads)
{
    const int is_double = real_size == sizeof(double), lanes = versions[instruction_set].bytes / (int)real_size;
    problem p = make_problem(shape, lanes);
    const int num_jobs = count_jobs(&p, num_images, num_threads);
    const ptrdiff_t filter_numbers = filter_size(&p, p.x.channels, p.z.channels, lanes);
    const size_t of_taps = room(2 * p.num_taps, sizeof(ptrdiff_t));
    const size_t of_transposed = room(filter_size(&p, p.z.channels, p.x.channels, lanes), real_size);
    const size_t of_filter = room(filter_numbers, real_size), of_sums = room(p.added_size, real_size);
    const size_t of_x_map = room(p.x.size, real_size), of_z_map = room(p.z.size, real_size);
    char *memory = aligned_alloc(ALIGNMENT, of_taps + of_transposed
                                                + num_jobs * (of_filter + of_sums + of_x_map + of_z_map));
    if (!memory)
        return CONV_NO_MEMORY;

    char *rest = memory;
    find_taps(&p, take(&rest, of_taps));
    void *transposed = take(&rest, of_transposed);
    versions[instruction_set].pack[is_double](&p, 1, transposed, weight);
    const ptrdiff_t x_size = (ptrdiff_t)p.x.height * p.x.width * p.x.channels;
    const ptrdiff_t z_size = (ptrdiff_t)p.z.height * p.z.width * p.z.channels;
    job jobs[MAX_THREADS];
    for (int n = 0; n < num_jobs; n++) {
        const ptrdiff_t begin = num_images * n / num_jobs, end = num_images * (n + 1) / num_jobs;
        jobs[n] = (job){.num_images = end - begin, .x = offset(x, begin * x_size, real_size),
                        .z = offset(z, begin * z_size, real_size), .of_z = offset(of_z, begin * z_size, real_size),
                        .filter = transposed, .to = (void *)offset(of_x, begin * x_size, real_size),
                        .of_filter = take(&rest, of_filter), .of_added = take(&rest, of_sums),
                        .x_map = take(&rest, of_x_map), .z_map = take(&rest, of_z_map)};
        if (!of_weight)
            jobs[n].of_filter = NULL;
        if (!of_added)
            jobs[n].of_added = NULL;
    }
    run(versions[instruction_set].backward[is_double], &p, jobs, num_jobs);
    for (int n = 1; n < num_jobs; n++)
        versions[instruction_set].join[is_double](&p, jobs, &jobs[n]);
    if (of_weight)
        versions[instruction_set].unpack[is_double](&p, of_weight, jobs[0].of_filter);
    if (of_added)
        memcpy(of_added, jobs[0].of_added, p.added_size * real_size);
    free(memory);
    return CONV_DONE;
}
