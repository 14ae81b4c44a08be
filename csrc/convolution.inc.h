/* Convolutions for one type and one instruction set. Included once for each pair, after defining

       REAL       float or double
       INTEGER    an integer of the same size
       LANES      how many of them one vector register holds, a power of two
       TARGET     the function attribute that turns the instruction set on
       NAME(f)    the name of f in this instance

   A vector holds LANES output channels of one pixel. A value of the input is broadcast and multiplied by vectors of
   weights; the sums of a few pixels and vectors stay in registers over all taps and input channels. The gradient of the
   filter is the same with pixels and input channels exchanged. A filter is packed as [panel][tap][input channel][vector
   of the panel], its output channels filled up with zeros. Lanes beyond the last channel compute what nobody reads. */

typedef REAL NAME(vec) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL))));
typedef INTEGER NAME(mask) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL))));

/* Sums of `pixels` neighbouring pixels, `size` vectors each: what is added, if it is, and the taps. */
TARGET static inline ALWAYS_INLINE void NAME(sum_pixels)(const int pixels, const int size, NAME(vec) *result,
                                                         const REAL *x, ptrdiff_t in, const ptrdiff_t *taps,
                                                         int num_taps, const NAME(vec) *weight, const REAL *added,
                                                         ptrdiff_t added_step)
{
    NAME(vec) sum[MAX_SUMS];
    UNROLL for (int p = 0; p < pixels; p++)
        UNROLL for (int v = 0; v < size; v++)
            sum[p * size + v] =
                added ? *(const NAME(vec) *)(added + p * added_step + v * LANES) : (NAME(vec)){0};
    for (int t = 0; t < num_taps; t++) {
        const REAL *value = x + taps[t];
        for (ptrdiff_t c = 0; c < in; c++, weight += size)
            UNROLL for (int p = 0; p < pixels; p++)
                UNROLL for (int v = 0; v < size; v++)
                    sum[p * size + v] += weight[v] * value[p * in + c];
    }
    UNROLL for (int n = 0; n < pixels * size; n++)
        result[n] = sum[n];
}

/* One image: z, height x width x out, from a map of x. */
TARGET static void NAME(convolve)(const REAL *x, const map *from, const ptrdiff_t *taps, int num_taps,
                                  const NAME(vec) *filter, const REAL *added, ptrdiff_t added_step, int has_relu,
                                  REAL *z, int out, int height, int width)
{
    const ptrdiff_t in = from->channels;
    const int total = (out + LANES - 1) / LANES, in_last = out - (total - 1) * LANES;
    const REAL *z_end = z + (ptrdiff_t)height * width * out;
    for (int i = 0; i < height; i++) {
        const NAME(vec) *weight = filter;
        FOR_EACH_PANEL(first, size, total) {
            FOR_EACH_PART(j, pixels, width, MAX_SUMS / size) {
                NAME(vec) sum[MAX_SUMS];
                const ptrdiff_t pixel = (ptrdiff_t)i * width + j;
                const REAL *here = x + i * from->row + j * in;
                const REAL *more = added ? added + pixel * added_step + first * LANES : NULL;
#define CASE(p, v)                                                                                           \
    case (v) * 16 + (p): NAME(sum_pixels)(p, v, sum, here, in, taps, num_taps, weight, more, added_step); break;
                switch (size * 16 + pixels) { EACH_BLOCK(CASE) }
#undef CASE
                if (has_relu)
                    for (int n = 0; n < pixels * size; n++) /* NaN stays NaN */
                        sum[n] = (NAME(vec))((NAME(mask))sum[n] & ~(sum[n] < 0));
                for (int p = 0; p < pixels; p++)
                    for (int v = 0; v < size; v++) {
                        REAL *to = z + (pixel + p) * out + (first + v) * LANES;
                        /* Lanes beyond the last channel may spill over pixels that are stored later. */
                        if (first + v < total - 1 || in_last == LANES || (first == 0 && to + LANES <= z_end))
                            *(NAME(vec) *)to = sum[p * size + v];
                        else
                            memcpy(to, &sum[p * size + v], in_last * sizeof(REAL));
                    }
            }
            weight += (ptrdiff_t)num_taps * in * size;
        }
    }
}

/* Add the products of `channels` channels of x and `size` vectors of the gradient of z, over all pixels. */
TARGET static inline ALWAYS_INLINE void NAME(sum_products)(const int channels, const int size, NAME(vec) *of_weight,
                                                           const REAL *x, const map *of_x, const REAL *z,
                                                           const map *of_z)
{
    NAME(vec) sum[MAX_SUMS];
    UNROLL for (int n = 0; n < channels * size; n++)
        sum[n] = of_weight[n];
    for (int i = 0; i < of_z->height; i++) {
        const REAL *value = x + i * of_x->row, *gradient = z + i * of_z->row;
        for (int j = 0; j < of_z->width; j++, value += of_x->channels, gradient += of_z->channels)
            UNROLL for (int c = 0; c < channels; c++)
                UNROLL for (int v = 0; v < size; v++)
                    sum[c * size + v] += *(const NAME(vec) *)(gradient + v * LANES) * value[c];
    }
    UNROLL for (int n = 0; n < channels * size; n++)
        of_weight[n] = sum[n];
}

/* Add one image's gradient of the filter. */
TARGET static void NAME(correlate)(const problem *p, NAME(vec) *of_filter, const REAL *x, const REAL *z)
{
    const int in = p->x.channels, total = (p->z.channels + LANES - 1) / LANES;
    FOR_EACH_PANEL(first, size, total) {
        FOR_EACH_PART(c, channels, in, MAX_SUMS / size)
            for (int t = 0; t < p->num_taps; t++) {
                NAME(vec) *sums = of_filter + ((ptrdiff_t)t * in + c) * size;
                const REAL *value = x + p->x_taps[t] + c, *gradient = z + p->z.start + first * LANES;
#define CASE(n, v)                                                                                           \
    case (v) * 16 + (n): NAME(sum_products)(n, v, sums, value, &p->x, gradient, &p->z); break;
                switch (size * 16 + channels) { EACH_BLOCK(CASE) }
#undef CASE
            }
        of_filter += (ptrdiff_t)p->num_taps * in * size;
    }
}

/* Pack a filter, or the one that takes gradients back: channels exchanged, taps in the reverse order. */
TARGET static void NAME(pack)(const problem *p, int is_transposed, void *filter, const void *weight)
{
    const ptrdiff_t in = is_transposed ? p->z.channels : p->x.channels, num_taps = p->num_taps;
    const int out = is_transposed ? p->x.channels : p->z.channels;
    const REAL *from = weight;
    REAL *to = filter;
    FOR_EACH_PANEL(first, size, (out + LANES - 1) / LANES) {
        const ptrdiff_t begin = first * LANES, step = size * LANES, filled = begin + step < out ? step : out - begin;
        if (filled < step)
            memset(to, 0, num_taps * in * step * sizeof(REAL));
        for (ptrdiff_t t = 0; t < num_taps; t++, to += in * step)
            if (is_transposed)
                for (ptrdiff_t i = 0; i < in; i++)
                    memcpy(to + i * step, from + (i * num_taps + num_taps - 1 - t) * out + begin, filled * sizeof(REAL));
            else
                for (ptrdiff_t o = 0; o < filled; o++)
                    for (ptrdiff_t i = 0; i < in; i++)
                        to[i * step + o] = from[((begin + o) * num_taps + t) * in + i];
    }
}

static void NAME(unpack)(const problem *p, void *weight, const void *filter)
{
    const ptrdiff_t in = p->x.channels, out = p->z.channels, num_taps = p->num_taps;
    const REAL *from = filter;
    REAL *to = weight;
    FOR_EACH_PANEL(first, size, (int)(out + LANES - 1) / LANES) {
        const ptrdiff_t begin = first * LANES, step = size * LANES, filled = begin + step < out ? step : out - begin;
        for (ptrdiff_t t = 0; t < num_taps; t++, from += in * step)
            for (ptrdiff_t o = 0; o < filled; o++)
                for (ptrdiff_t i = 0; i < in; i++)
                    to[((begin + o) * num_taps + t) * in + i] = from[i * step + o];
    }
}

/* Add another job's sums to the first one's. */
TARGET static void NAME(join)(const problem *p, const job *first, const job *other)
{
    if (first->of_filter)
        for (ptrdiff_t n = filter_size(p, p->x.channels, p->z.channels, LANES); n--;)
            ((REAL *)first->of_filter)[n] += ((const REAL *)other->of_filter)[n];
    if (first->of_added)
        for (ptrdiff_t n = p->added_size; n--;)
            ((REAL *)first->of_added)[n] += ((const REAL *)other->of_added)[n];
}

/* Let the image in a map go on beyond its border. */
TARGET static void NAME(wrap)(const map *m, REAL *to)
{
    const ptrdiff_t pixel = m->channels * sizeof(REAL);
    REAL *image = to + m->start;
    for (int i = 0; i < m->height; i++)
        for (int j = -m->left; j < m->width + m->right; j++) {
            REAL *row = image + i * m->row;
            if (j < 0 || j >= m->width)
                memcpy(row + (ptrdiff_t)j * m->channels, row + (ptrdiff_t)wrapped(j, m->width) * m->channels, pixel);
        }
    image -= (ptrdiff_t)m->left * m->channels;
    for (int i = -m->top; i < m->height + m->bottom; i++)
        if (i < 0 || i >= m->height)
            memcpy(image + i * m->row, image + wrapped(i, m->height) * m->row, m->row * sizeof(REAL));
}

/* Copy an image of x into its map. */
TARGET static const REAL *NAME(lay_out)(const problem *p, REAL *x_map, const REAL *x)
{
    const ptrdiff_t row = (ptrdiff_t)p->x.width * p->x.channels;
    for (int i = 0; i < p->x.height; i++, x += row)
        memcpy(x_map + p->x.start + i * p->x.row, x, row * sizeof(REAL));
    if (p->shape.wraps)
        NAME(wrap)(&p->x, x_map);
    return x;
}

TARGET static void NAME(forward)(const problem *p, const job *job)
{
    const ptrdiff_t z_size = (ptrdiff_t)p->z.height * p->z.width * p->z.channels;
    const REAL *x = job->x;
    REAL *z = job->to, *x_map = job->x_map;
    memset(x_map, 0, p->x.size * sizeof(REAL));
    for (ptrdiff_t n = 0; n < job->num_images; n++, z += z_size) {
        x = NAME(lay_out)(p, x_map, x);
        NAME(convolve)(x_map, &p->x, p->x_taps, p->num_taps, job->filter, job->added, p->added_step,
                       p->shape.has_relu, z, p->z.channels, p->z.height, p->z.width);
    }
}

TARGET static void NAME(backward)(const problem *p, const job *job)
{
    const ptrdiff_t x_row = (ptrdiff_t)p->x.width * p->x.channels, z_row = (ptrdiff_t)p->z.width * p->z.channels;
    const REAL *x = job->x, *z = job->z, *of_z = job->of_z;
    REAL *of_x = job->to, *of_added = job->of_added, *x_map = job->x_map, *z_map = job->z_map;
    memset(x_map, 0, p->x.size * sizeof(REAL));
    memset(z_map, 0, p->z.size * sizeof(REAL));
    if (of_added)
        memset(of_added, 0, p->added_size * sizeof(REAL));
    if (job->of_filter)
        memset(job->of_filter, 0, filter_size(p, p->x.channels, p->z.channels, LANES) * sizeof(REAL));
    for (ptrdiff_t n = 0; n < job->num_images; n++) {
        for (int i = 0; i < p->z.height; i++, of_z += z_row) {
            REAL *row = z_map + p->z.start + i * p->z.row;
            memcpy(row, of_z, z_row * sizeof(REAL));
            if (p->shape.has_relu) {
                for (ptrdiff_t e = 0; e < z_row; e++)
                    row[e] = z[e] <= 0 ? 0 : row[e];
                z += z_row;
            }
            if (of_added && p->added_step)
                for (ptrdiff_t e = 0; e < z_row; e++)
                    of_added[i * z_row + e] += row[e];
            else if (of_added)
                for (int j = 0; j < p->z.width; j++)
                    for (int o = 0; o < p->z.channels; o++)
                        of_added[o] += row[j * p->z.channels + o];
        }
        if (p->shape.wraps)
            NAME(wrap)(&p->z, z_map);
        if (of_x) {
            NAME(convolve)(z_map, &p->z, p->z_taps, p->num_taps, job->filter, NULL, 0, 0, of_x, p->x.channels,
                           p->x.height, p->x.width);
            of_x += p->x.height * x_row;
        }
        if (job->of_filter) {
            x = NAME(lay_out)(p, x_map, x);
            NAME(correlate)(p, job->of_filter, x_map, z_map);
        }
    }
}

#undef REAL
#undef INTEGER
#undef LANES
#undef TARGET
#undef NAME
