/* Substitution for one type and one instruction set. Included once for each pair, after defining

       REAL       float or double
       INTEGER    an integer of the same size
       LANES      how many of them one vector register holds, a power of two
       EACH_LANE  the list of F(l, s) for every lane l, as LANES_4(F, s) is
       TARGET     the function attribute that turns the instruction set on
       NAME(f)    the name of f in this instance

   There are two kernels, which differ in what fills the lanes of a vector:

       tile    the same number of LANES images. A weight is broadcast, a value of all images is one vector, and the
               accumulators of up to MAX_ROWS output channels stay in registers.
       image   LANES output channels of one image, for batches too small to fill a tile. A value is broadcast, the
               weights are vectors.

   Both run over a map of vectors, [pixel][channel] or [pixel][group of LANES channels], that holds z before and x
   after: a pixel is overwritten in place. That is safe within a pixel, too, if the panels of output channels are
   taken from the end of the triangle where most inputs are read: no panel reads what an earlier one has overwritten. */

typedef REAL NAME(vec) __attribute__((vector_size(LANES * sizeof(REAL))));

typedef REAL NAME(unaligned_vec) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL))));
typedef INTEGER NAME(index_vec) __attribute__((vector_size(LANES * sizeof(REAL))));

/* Transpose a LANES x LANES matrix: for each power of two s, swap the s x s blocks next to the diagonal's blocks. */
TARGET static inline ALWAYS_INLINE void NAME(transpose)(NAME(vec) row[LANES])
{
#define UPPER_LANE(l, s) ((l) & (s) ? LANES + (l) - (s) : (l))
#define LOWER_LANE(l, s) ((l) & (s) ? LANES + (l) : ((l) + (s)) % (2 * LANES))
#define SWAP_BLOCKS(s)                                                                                       \
    if (s < LANES) UNROLL for (int i = 0; i < LANES; i++)                                                    \
        if (!(i & s)) {                                                                                      \
            const NAME(vec) upper = row[i], lower = row[i + s];                                              \
            row[i] = SHUFFLE(NAME(index_vec), upper, lower, EACH_LANE(UPPER_LANE, s));                       \
            row[i + s] = SHUFFLE(NAME(index_vec), upper, lower, EACH_LANE(LOWER_LANE, s));                   \
        }
    SWAP_BLOCKS(8) SWAP_BLOCKS(4) SWAP_BLOCKS(2) SWAP_BLOCKS(1)
#undef SWAP_BLOCKS
#undef LOWER_LANE
#undef UPPER_LANE
}

/* dst[e * step], lane l  =  src[l * lane_stride + e * element_stride], for e < n and l < lanes; any further lanes
   hold copies, so that they may be computed with. *bad becomes NaN in the lanes where src is not finite. */
TARGET static void NAME(pack)(NAME(vec) *restrict dst, ptrdiff_t step, const REAL *restrict src, int lanes,
                              ptrdiff_t lane_stride, ptrdiff_t element_stride, ptrdiff_t n, NAME(vec) *bad)
{
    const REAL *lane[LANES];
    NAME(vec) nan_if_bad = *bad;
    ptrdiff_t e = 0;
    for (int l = 0; l < LANES; l++)
        lane[l] = src + (l < lanes ? l : lanes - 1) * lane_stride;
    if (element_stride == 1)
        for (; e + LANES <= n; e += LANES) {
            NAME(vec) row[LANES];
            UNROLL for (int l = 0; l < LANES; l++)
                row[l] = *(const NAME(unaligned_vec) *)(lane[l] + e);
            NAME(transpose)(row);
            UNROLL for (int l = 0; l < LANES; l++) {
                dst[(e + l) * step] = row[l];
                nan_if_bad += row[l] * (REAL)0;
            }
        }
    for (; e < n; e++) {
        NAME(vec) value;
        for (int l = 0; l < LANES; l++)
            value[l] = lane[l][e * element_stride];
        dst[e * step] = value;
        nan_if_bad += value * (REAL)0;
    }
    *bad = nan_if_bad;
}

/* The way back: dst[l * lane_stride + e * element_stride]  =  src[e * step], lane l. */
TARGET static void NAME(unpack)(REAL *restrict dst, const NAME(vec) *restrict src, ptrdiff_t step, int lanes,
                                ptrdiff_t lane_stride, ptrdiff_t element_stride, ptrdiff_t n)
{
    ptrdiff_t e = 0;
    if (element_stride == 1)
        for (; e + LANES <= n; e += LANES) {
            NAME(vec) row[LANES];
            UNROLL for (int l = 0; l < LANES; l++)
                row[l] = src[(e + l) * step];
            NAME(transpose)(row);
            UNROLL for (int l = 0; l < LANES; l++)
                if (l < lanes)
                    *(NAME(unaligned_vec) *)(dst + l * lane_stride + e) = row[l];
        }
    for (; e < n; e++)
        for (int l = 0; l < LANES && l < lanes; l++)
            dst[l * lane_stride + e * element_stride] = src[e * step][l];
}

/* One panel of a pixel of a tile. With a constant for size the sums are registers. */
TARGET static inline ALWAYS_INLINE void NAME(tile_rows)(const int size, NAME(vec) *here, const panel *panel,
                                                        const REAL *weights, ptrdiff_t num_channels, const term *terms,
                                                        int num_terms)
{
    NAME(vec) sum[MAX_SUMS] = {{0}};
    for (int n = 0; n < num_terms; n++) {
        const NAME(vec) *value = here + terms[n].pixel * num_channels;
        const REAL *weight = weights + terms[n].tap * num_channels * size;
        const range inputs = n == 0 ? panel->centre : (range){0, terms[n].num_taps * num_channels};
        for (ptrdiff_t c = inputs.begin; c < inputs.end; c++)
            UNROLL for (int r = 0; r < size; r++)
                sum[r] += weight[c * size + r] * value[c];
    }
    UNROLL for (int r = 0; r < size; r++)
        here[panel->first + r] = sum[r];
}

/* One panel of a pixel of an image. Several chains of sums run side by side, split over the input channels, because one
   chain would wait for the latency of each addition. */
TARGET static inline ALWAYS_INLINE void NAME(image_vectors)(const int size, const int chains, NAME(vec) *here,
                                                            const panel *panel, const NAME(vec) *weights,
                                                            ptrdiff_t num_channels, ptrdiff_t num_groups,
                                                            const term *terms, int num_terms)
{
    NAME(vec) sum[MAX_SUMS] = {{0}};
    for (int n = 0; n < num_terms; n++) {
        const NAME(vec) *weight = weights + terms[n].tap * num_channels * size;
        const range inputs = n == 0 ? panel->centre : (range){0, num_channels};
        for (int t = 0; t < terms[n].num_taps; t++, weight += num_channels * size) {
            const REAL *value = (const REAL *)(here + (terms[n].pixel + t) * num_groups);
            ptrdiff_t c = inputs.begin;
            for (; c + chains <= inputs.end; c += chains)
                UNROLL for (int s = 0; s < chains; s++)
                    UNROLL for (int v = 0; v < size; v++)
                        sum[s * size + v] += weight[(c + s) * size + v] * value[c + s];
            for (; c < inputs.end; c++)
                UNROLL for (int v = 0; v < size; v++)
                    sum[v] += weight[c * size + v] * value[c];
        }
    }
    UNROLL for (int v = 0; v < size; v++) {
        UNROLL for (int s = 1; s < chains; s++)
            sum[v] += sum[s * size + v];
        here[panel->first + v] = sum[v];
    }
}

/* Solve one pixel of a tile: here are its channels, terms what it reads. */
TARGET static inline void NAME(tile_pixel)(const ar_plan *plan, NAME(vec) *here, const term *terms, int num_terms)
{
    const ptrdiff_t num_channels = plan->num_channels;
    for (const panel *p = plan->tile.list; p < plan->tile.list + plan->tile.count; p++) {
        const REAL *weights = (const REAL *)plan->tile.weights + p->first * plan->num_taps * num_channels;
#define CASE(size) case size: NAME(tile_rows)(size, here, p, weights, num_channels, terms, num_terms); break;
        switch (p->size) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
        }
#undef CASE
    }
}

/* Solve one pixel of an image. */
TARGET static inline void NAME(image_pixel)(const ar_plan *plan, NAME(vec) *here, const term *terms, int num_terms)
{
    const ptrdiff_t num_channels = plan->num_channels, num_groups = plan->image.total;
    for (const panel *p = plan->image.list; p < plan->image.list + plan->image.count; p++) {
        const NAME(vec) *weights = (const NAME(vec) *)plan->image.weights + p->first * plan->num_taps * num_channels;
#define CASE(size, chains)                                                                                   \
    case size: NAME(image_vectors)(size, chains, here, p, weights, num_channels, num_groups, terms, num_terms); break;
        switch (p->size) {
            CASE(1, 8) CASE(2, 4) CASE(3, 4) CASE(4, 3) CASE(5, 2) CASE(6, 2)
        }
#undef CASE
    }
}

TARGET static ptrdiff_t NAME(solve_tile)(const ar_plan *plan, const void *z, void *x, int num_images, int layout,
                                         void *workspace, term *terms)
{
    const ptrdiff_t width = plan->width, num_pixels = plan->height * width;
    const ptrdiff_t image_size = plan->num_channels * num_pixels;
    NAME(vec) *map = workspace, bad = {0};
    int num_terms = 0;

    /* Channels last, an image is one run in the order of the map; channels first, each channel is a run. */
    const int runs = layout == AR_CHANNELS_FIRST ? plan->num_channels : 1;
    const ptrdiff_t length = image_size / runs;
    for (int c = 0; c < runs; c++)
        NAME(pack)(map + c, runs, (const REAL *)z + c * length, num_images, image_size, 1, length, &bad);
    FOR_EACH_PIXEL(plan, i, j) {
        num_terms = find_terms(plan, i, j, terms, num_terms);
        NAME(tile_pixel)(plan, map + (i * width + j) * plan->num_channels, terms, num_terms);
    }
    for (int c = 0; c < runs; c++)
        NAME(unpack)((REAL *)x + c * length, map + c, runs, num_images, image_size, 1, length);

    for (int l = 0; l < num_images; l++)
        if (bad[l] != bad[l])
            return l;
    return AR_SOLVED;
}

TARGET static ptrdiff_t NAME(solve_image)(const ar_plan *plan, const void *z, void *x, int layout, void *workspace,
                                          term *terms)
{
    const int num_channels = plan->num_channels, num_groups = plan->image.total;
    const ptrdiff_t width = plan->width, num_pixels = plan->height * width;
    const ptrdiff_t channel_stride = layout == AR_CHANNELS_FIRST ? num_pixels : 1;
    const ptrdiff_t pixel_stride = layout == AR_CHANNELS_FIRST ? 1 : num_channels;
    NAME(vec) *map = workspace, bad = {0};
    int num_terms = 0;

    for (int g = 0, first = 0; g < num_groups; g++, first += LANES)
        NAME(pack)(map + g, num_groups, (const REAL *)z + first * channel_stride, num_channels - first, channel_stride,
                   pixel_stride, num_pixels, &bad);
    FOR_EACH_PIXEL(plan, i, j) {
        num_terms = find_terms(plan, i, j, terms, num_terms);
        NAME(image_pixel)(plan, map + (i * width + j) * num_groups, terms, num_terms);
    }
    for (int g = 0, first = 0; g < num_groups; g++, first += LANES)
        NAME(unpack)((REAL *)x + first * channel_stride, map + g, num_groups, num_channels - first, channel_stride,
                     pixel_stride, num_pixels);

    for (int l = 0; l < LANES; l++)
        if (bad[l] != bad[l])
            return 0;
    return AR_SOLVED;
}

#undef REAL
#undef INTEGER
#undef LANES
#undef EACH_LANE
#undef TARGET
#undef NAME
