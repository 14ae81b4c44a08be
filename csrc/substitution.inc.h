/* Substitution for one type and one instruction set. Included once for each pair, after defining

       REAL       float or double
       LANES      how many of them one vector register holds, a power of two
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

/* dst[e * step], lane l  =  src[l * lane_stride + e * element_stride], for e < n and l < lanes; further lanes hold
   copies, so that they are finite and may be computed with. *bad becomes NaN in the lanes where src is not finite. */
TARGET static void NAME(pack)(NAME(vec) *restrict dst, ptrdiff_t step, const REAL *restrict src, int lanes,
                              ptrdiff_t lane_stride, ptrdiff_t element_stride, ptrdiff_t n, NAME(vec) *bad)
{
    const REAL *lane[LANES];
    NAME(vec) nan_if_bad = *bad;
    for (int l = 0; l < LANES; l++)
        lane[l] = src + (l < lanes ? l : lanes - 1) * lane_stride;
    for (ptrdiff_t e = 0; e < n; e++) {
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
    for (ptrdiff_t e = 0; e < n; e++)
        for (int l = 0; l < lanes; l++)
            dst[l * lane_stride + e * element_stride] = src[e * step][l];
}

/* rows output channels of one pixel of a tile. With a constant for rows the accumulators are registers. */
TARGET static inline ALWAYS_INLINE void NAME(tile_rows)(const int rows, NAME(vec) *map, NAME(vec) *out,
                                                        const REAL *restrict weights, int num_channels,
                                                        const term *terms, int num_terms, range centre)
{
    NAME(vec) sum[MAX_ROWS] = {{0}};
    for (int n = 0; n < num_terms; n++) {
        const NAME(vec) *value = map + terms[n].pixel * num_channels;
        const REAL *weight = weights + (ptrdiff_t)terms[n].tap * num_channels * rows;
        const range channels = n == 0 ? centre : (range){0, num_channels};
        for (int c = channels.begin; c < channels.end; c++)
            UNROLL for (int r = 0; r < rows; r++)
                sum[r] += weight[c * rows + r] * value[c];
    }
    UNROLL for (int r = 0; r < rows; r++)
        out[r] = sum[r];
}

/* width vectors of LANES output channels of one pixel of an image. Several chains of sums run side by side, split over
   the input channels, because one chain would wait for the latency of each addition. */
TARGET static inline ALWAYS_INLINE void NAME(image_vectors)(const int width, const int chains, REAL *map, NAME(vec) *out,
                                                            const NAME(vec) *restrict weights, int num_channels,
                                                            int pixel_size, const term *terms, int num_terms,
                                                            range centre)
{
    NAME(vec) sum[MAX_SUMS] = {{0}};
    for (int n = 0; n < num_terms; n++) {
        const REAL *value = map + terms[n].pixel * pixel_size;
        const NAME(vec) *weight = weights + (ptrdiff_t)terms[n].tap * num_channels * width;
        const range channels = n == 0 ? centre : (range){0, num_channels};
        int c = channels.begin;
        for (; c + chains <= channels.end; c += chains)
            UNROLL for (int s = 0; s < chains; s++)
                UNROLL for (int v = 0; v < width; v++)
                    sum[s * width + v] += weight[(c + s) * width + v] * value[c + s];
        for (; c < channels.end; c++)
            UNROLL for (int v = 0; v < width; v++)
                sum[v] += weight[c * width + v] * value[c];
    }
    UNROLL for (int v = 0; v < width; v++) {
        UNROLL for (int s = 1; s < chains; s++)
            sum[v] += sum[s * width + v];
        out[v] = sum[v];
    }
}

TARGET static ptrdiff_t NAME(solve_tile)(const ar_plan *plan, const void *z, void *x, int num_images, int layout,
                                         void *workspace, term *terms)
{
    const int num_channels = plan->num_channels;
    const ptrdiff_t num_pixels = (ptrdiff_t)plan->height * plan->width, image_size = num_channels * num_pixels;
    NAME(vec) *map = workspace, bad = {0};

    /* Channels last, an image is one run in the order of the map; channels first, each channel is a run. */
    const int runs = layout == AR_CHANNELS_FIRST ? num_channels : 1;
    const ptrdiff_t length = image_size / runs;
    for (int c = 0; c < runs; c++)
        NAME(pack)(map + c, runs, (const REAL *)z + c * length, num_images, image_size, 1, length, &bad);

    for (ptrdiff_t step = 0; step < num_pixels; step++) {
        const ptrdiff_t pixel = plan->direction == AR_LOWER ? num_pixels - 1 - step : step;
        const int num_terms = find_terms(plan, pixel, terms);
        for (int p = 0; p < plan->tile.count; p++) {
            const panel rows = nth_panel(&plan->tile, plan->direction, p);
            const range centre = centre_range(plan, rows.first, rows.first + rows.size);
            const REAL *weights = (const REAL *)plan->tile.weights + rows.first * plan->num_taps * num_channels;
            NAME(vec) *out = map + pixel * num_channels + rows.first;
#define ROWS(n) case n: NAME(tile_rows)(n, map, out, weights, num_channels, terms, num_terms, centre); break;
            switch (rows.size) {
                ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
            }
#undef ROWS
        }
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
    const ptrdiff_t num_pixels = (ptrdiff_t)plan->height * plan->width;
    const ptrdiff_t channel_stride = layout == AR_CHANNELS_FIRST ? num_pixels : 1;
    const ptrdiff_t pixel_stride = layout == AR_CHANNELS_FIRST ? 1 : num_channels;
    NAME(vec) *map = workspace, bad = {0};

    for (int g = 0, first = 0; g < num_groups; g++, first += LANES)
        NAME(pack)(map + g, num_groups, (const REAL *)z + first * channel_stride, num_channels - first, channel_stride,
                   pixel_stride, num_pixels, &bad);

    for (ptrdiff_t step = 0; step < num_pixels; step++) {
        const ptrdiff_t pixel = plan->direction == AR_LOWER ? num_pixels - 1 - step : step;
        const int num_terms = find_terms(plan, pixel, terms);
        for (int p = 0; p < plan->image.count; p++) {
            const panel groups = nth_panel(&plan->image, plan->direction, p);
            const range centre = centre_range(plan, groups.first * LANES, (groups.first + groups.size) * LANES);
            const NAME(vec) *weights =
                (const NAME(vec) *)plan->image.weights + (ptrdiff_t)groups.first * plan->num_taps * num_channels;
            NAME(vec) *out = map + pixel * num_groups + groups.first;
#define VECTORS(n, chains)                                                                                   \
    case n:                                                                                                  \
        NAME(image_vectors)(n, chains, (REAL *)map, out, weights, num_channels, num_groups * LANES, terms,   \
                            num_terms, centre);                                                              \
        break;
            switch (groups.size) {
                VECTORS(1, 8) VECTORS(2, 4) VECTORS(3, 4) VECTORS(4, 3) VECTORS(5, 2) VECTORS(6, 2)
            }
#undef VECTORS
        }
    }

    for (int g = 0, first = 0; g < num_groups; g++, first += LANES) {
        const int lanes = num_channels - first < LANES ? num_channels - first : LANES;
        NAME(unpack)((REAL *)x + first * channel_stride, map + g, num_groups, lanes, channel_stride, pixel_stride,
                     num_pixels);
    }
    for (int l = 0; l < LANES; l++)
        if (bad[l] != bad[l])
            return 0;
    return AR_SOLVED;
}

#undef REAL
#undef LANES
#undef TARGET
#undef NAME
