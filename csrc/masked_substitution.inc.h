/* Substitution through a masked network for one type and one instruction set. Included once for each pair, after
   defining

       REAL     float or double
       EXP      its exponential function
       TANH     its hyperbolic tangent
       LANES    how many of them one vector register holds
       TARGET   the function attribute that turns the instruction set on
       NAME(f)  the name of f in this instance

   The lanes of a vector are hidden units, or outputs. Up to MAX_SITES independent pixels are solved at a time, so that
   a vector of weights, once loaded, serves all of them. */

typedef REAL NAME(vec) __attribute__((vector_size(LANES * sizeof(REAL))));

/* For `size` vectors of sums at each site: sums += weights^T values, over n inputs. The sums are registers. */
TARGET static inline ALWAYS_INLINE void NAME(add_block)(const int sites, const int size, void *const *sums,
                                                        ptrdiff_t first, void *const *values, ptrdiff_t from,
                                                        const NAME(vec) *weights, ptrdiff_t row, ptrdiff_t n)
{
    NAME(vec) sum[MAX_SUMS];
    UNROLL for (int s = 0; s < sites; s++)
        UNROLL for (int v = 0; v < size; v++)
            sum[s * size + v] = ((const NAME(vec) *)sums[s])[first + v];
    for (ptrdiff_t k = 0; k < n; k++)
        UNROLL for (int v = 0; v < size; v++)
            UNROLL for (int s = 0; s < sites; s++)
                sum[s * size + v] += weights[k * row + first + v] * ((const REAL *)values[s])[from + k];
    UNROLL for (int s = 0; s < sites; s++)
        UNROLL for (int v = 0; v < size; v++)
            ((NAME(vec) *)sums[s])[first + v] = sum[s * size + v];
}

/* For all sums from output `output` on, in blocks that fill the registers. */
TARGET static inline ALWAYS_INLINE void NAME(add_blocks)(const int sites, void *const *sums, ptrdiff_t output,
                                                         void *const *values, ptrdiff_t from, const NAME(vec) *weights,
                                                         ptrdiff_t row, ptrdiff_t n)
{
    const int size = MAX_SUMS / sites;
    ptrdiff_t v = output / LANES;
    for (; v + size <= row; v += size)
        NAME(add_block)(sites, size, sums, v, values, from, weights, row, n);
    for (; v < row; v++)
        NAME(add_block)(sites, 1, sums, v, values, from, weights, row, n);
}

/* Pass n values, from the index `from` on, to all sums from output `output` on. `weights` points to their first row. */
TARGET static void NAME(pass_on)(int sites, void *const *sums, ptrdiff_t output, void *const *values, ptrdiff_t from,
                                 const REAL *weights, ptrdiff_t num_outputs, ptrdiff_t n)
{
#define CASE(sites)                                                                                          \
    case sites:                                                                                              \
        NAME(add_blocks)(sites, sums, output, values, from, (const NAME(vec) *)weights, num_outputs / LANES, n); break;
    switch (sites) { CASE(1) CASE(2) CASE(3) CASE(4) }
#undef CASE
}

TARGET static inline void NAME(rectify)(int sites, void *const *units, int begin, int end)
{
    for (int s = 0; s < sites; s++)
        for (int u = begin; u < end; u++) {
            REAL *unit = (REAL *)units[s] + u;
            *unit = *unit > 0 ? *unit : 0;
        }
}

/* x from z and the network's outputs mu and h. */
TARGET static inline ALWAYS_INLINE REAL NAME(undo)(const mar_plan *plan, REAL z, REAL mu, REAL h)
{
    const REAL m = (REAL)plan->max_log_scale, M = (REAL)plan->max_shift;
    const REAL shift = M > 0 ? M * TANH(mu / M) : mu;
    return (z - shift) * (m > 0 ? EXP(-m * TANH(h / m)) : 1 + EXP(-(h + (REAL)plan->offset)));
}

/* Solve one pixel at each site. */
TARGET static void NAME(solve)(const mar_plan *plan, const site_list *at)
{
    const int sites = at->count;
    const ptrdiff_t channels = plan->num_channels, hidden = plan->hidden_stride, outputs = plan->output_stride;
    const ptrdiff_t above = -(plan->map_width + 1), left = -1;
    const REAL *first = plan->first, *second = plan->second, *last = plan->last;
    const REAL B = (REAL)plan->max_input;
    for (int s = 0; s < sites; s++) {
        memcpy(at->hidden1[s], first, hidden * sizeof(REAL));
        memcpy(at->hidden2[s], second, hidden * sizeof(REAL));
        memcpy(at->outputs[s], last, outputs * sizeof(REAL));
    }
    first += hidden;
    second += hidden;
    last += outputs;

    /* The three pixels above are neighbours in memory; the pixel on the left follows in the weights. */
    NAME(pass_on)(sites, at->hidden1, 0, at->x, above * channels, first, hidden, 3 * channels);
    NAME(pass_on)(sites, at->hidden1, 0, at->x, left * channels, first + 3 * channels * hidden, hidden, channels);
    NAME(pass_on)(sites, at->outputs, 0, at->hidden2, above * hidden, last, outputs, 3 * hidden);
    NAME(pass_on)(sites, at->outputs, 0, at->hidden2, left * hidden, last + 3 * hidden * outputs, outputs, hidden);
    first += 4 * channels * hidden;
    last += 4 * hidden * outputs;

    for (int c = 0; c < channels; c++) {
        const int begin = plan->first_units[c], end = plan->first_units[c + 1];
        NAME(rectify)(sites, at->hidden1, begin, end);
        NAME(pass_on)(sites, at->hidden2, begin, at->hidden1, begin, second + begin * hidden, hidden, end - begin);
        NAME(rectify)(sites, at->hidden2, begin, end);
        NAME(pass_on)(sites, at->outputs, 2 * c, at->hidden2, begin, last + begin * outputs, outputs, end - begin);
        for (int s = 0; s < sites; s++) {
            const REAL *output = (const REAL *)at->outputs[s] + 2 * c;
            const ptrdiff_t place = c * plan->channel_step;
            const REAL z = ((const REAL *)at->z[s])[place];
            const REAL x = NAME(undo)(plan, z, output[0], output[1]);
            ((REAL *)at->x[s])[c] = B > 0 ? B * TANH(x / B) : x;
            ((REAL *)at->result[s])[place] = x;
            *(REAL *)at->bad[s] += z * 0;
        }
        NAME(pass_on)(sites, at->hidden1, end, at->x, c, first + c * hidden, hidden, 1);
    }
}

#undef REAL
#undef EXP
#undef TANH
#undef LANES
#undef TARGET
#undef NAME
