/* The kernel for one instruction set. Included once for each, after defining

       LANES      the number of doubles that one vector register holds
       TARGET     the function attribute that turns the instruction set on
       NAME(f)    the name of f in this instance

   A vector holds the same entry of LANES matrices, one of each frequency. */

typedef double NAME(vec) __attribute__((vector_size(LANES * sizeof(double))));
typedef long long NAME(mask) __attribute__((vector_size(LANES * sizeof(double))));
typedef struct { NAME(vec) re, im; } NAME(number);

TARGET static inline ALWAYS_INLINE NAME(vec) NAME(select)(NAME(mask) where, NAME(vec) yes, NAME(vec) no)
{
    return (NAME(vec))((where & (NAME(mask))yes) | (~where & (NAME(mask))no));
}

/* Exchange lane l of two numbers. */
TARGET static inline ALWAYS_INLINE void NAME(swap)(NAME(number) *a, NAME(number) *b, int l)
{
    const double re = a->re[l], im = a->im[l];
    a->re[l] = b->re[l], a->im[l] = b->im[l];
    b->re[l] = re, b->im[l] = im;
}

/* Subtract multiples of one row, n numbers, from some others: rows[r] -= factors[r] * from. */
TARGET static inline ALWAYS_INLINE void NAME(subtract)(const int count, int n, NAME(number) *const *rows,
                                                       const NAME(number) *factors, const NAME(number) *from)
{
    for (int j = 0; j < n; j++) {
        const NAME(number) entry = from[j];
        UNROLL for (int r = 0; r < count; r++) {
            NAME(number) to = rows[r][j];
            to.re -= factors[r].re * entry.re;
            to.im -= factors[r].re * entry.im;
            to.re += factors[r].im * entry.im;
            to.im -= factors[r].im * entry.re;
            rows[r][j] = to;
        }
    }
}

/* Gauss-Jordan elimination with partial pivoting: the inverses take the matrices' place. Without `invert` only what the
   determinants need is computed. log_abs_det is added to. */
TARGET static void NAME(eliminate)(int n, NAME(number) *a, int invert, int (*pivots)[LANES], double *log_abs_det)
{
    int is_singular = 0;
    NAME(vec) squares = (NAME(vec)){0} + 1;     /* product of the squares of pivots whose logarithm is still to be taken */
    for (int k = 0; k < n; k++) {
        NAME(number) *pivot_row = a + (ptrdiff_t)k * n;
        NAME(vec) best = {0}, place = (NAME(vec)){0} + k;
        for (int i = k; i < n; i++) {
            const NAME(number) *entry = &a[(ptrdiff_t)i * n + k];
            const NAME(vec) size = entry->re * entry->re + entry->im * entry->im;
            const NAME(mask) is_larger = size > best;
            best = NAME(select)(is_larger, size, best);
            place = NAME(select)(is_larger, (NAME(vec)){0} + i, place);
        }
        for (int l = 0; l < LANES; l++) {
            pivots[k][l] = (int)place[l];
            if (pivots[k][l] != k)
                for (int j = invert ? 0 : k; j < n; j++)
                    NAME(swap)(&pivot_row[j], &a[(ptrdiff_t)pivots[k][l] * n + j], l);
        }

        squares *= best;
        for (int l = 0; l < LANES; l++)
            if (best[l] == 0) /* what is computed from here on is not finite */
                is_singular |= 1 << l;
            else if (k == n - 1 || !(squares[l] > SMALL && squares[l] < LARGE)) {
                log_abs_det[l] += 0.5 * log(squares[l]);
                squares[l] = 1;
            }

        const NAME(number) pivot = pivot_row[k], inverse = {pivot.re / best, -pivot.im / best};
        const int first = invert ? 0 : k + 1;
        pivot_row[k] = (NAME(number)){(NAME(vec)){0} + 1, {0}};
        for (int j = first; j < n; j++) {
            const NAME(number) entry = pivot_row[j];
            pivot_row[j].re = entry.re * inverse.re - entry.im * inverse.im;
            pivot_row[j].im = entry.re * inverse.im + entry.im * inverse.re;
        }
        NAME(number) *rows[ROWS], factors[ROWS];
        for (int i = first, count = 0; i < n; i++) {
            if (i != k) {
                rows[count] = a + (ptrdiff_t)i * n;
                factors[count] = rows[count][k];
                rows[count][k] = (NAME(number)){{0}, {0}};
                rows[count++] += first;
            }
            if (count == ROWS || (count && i == n - 1)) {
                if (count == ROWS)
                    NAME(subtract)(ROWS, n - first, rows, factors, pivot_row + first);
                else
                    for (int r = 0; r < count; r++)
                        NAME(subtract)(1, n - first, rows + r, factors + r, pivot_row + first);
                count = 0;
            }
        }
    }
    for (int l = 0; l < LANES; l++)
        if (is_singular >> l & 1)
            log_abs_det[l] = -INFINITY;
    for (int k = n; invert && k--;)
        for (int l = 0; l < LANES; l++)
            if (pivots[k][l] != k)
                for (int i = 0; i < n; i++)
                    NAME(swap)(&a[(ptrdiff_t)i * n + k], &a[(ptrdiff_t)i * n + pivots[k][l]], l);
}

/* Some neighbouring entries of the matrices: sums over taps. */
TARGET static inline ALWAYS_INLINE void NAME(sum_taps)(const int count, int num_taps, const NAME(number) *wave,
                                                       const double *filter, NAME(number) *entries)
{
    NAME(number) sums[ENTRIES] = {0};
    for (int t = 0; t < num_taps; t++)
        UNROLL for (int e = 0; e < count; e++) {
            sums[e].re += wave[t].re * filter[e * num_taps + t];
            sums[e].im += wave[t].im * filter[e * num_taps + t];
        }
    UNROLL for (int e = 0; e < count; e++)
        entries[e] = sums[e];
}

/* Add the gradients of one tap; those of lane l are factors[l] times (re, im) of the inverse, in a plane of their own. */
TARGET static void NAME(add_gradient)(ptrdiff_t entries, const double (*factors)[2], const double *planes, double *to)
{
    for (ptrdiff_t e = 0; e < entries; e++) {
        double sum = to[e];
        UNROLL for (int l = 0; l < LANES; l++)
            sum += factors[l][0] * planes[2 * l * entries + e] - factors[l][1] * planes[(2 * l + 1) * entries + e];
        to[e] = sum;
    }
}

/* Frequencies from job->begin to job->end, LANES at a time. */
TARGET static void NAME(run)(const problem *p, job *job)
{
    const int n = p->num_channels, num_taps = p->num_taps;
    const ptrdiff_t entries = (ptrdiff_t)n * n;
    NAME(number) *a = job->matrices, *wave = job->waves;
    double *planes = job->planes;
    if (p->gradient)
        memset(job->of_filter, 0, entries * num_taps * sizeof(double));
    for (ptrdiff_t f = job->begin; f < job->end; f += LANES) {
        double multiplicity[LANES], log_abs_det[LANES] = {0};
        for (int l = 0; l < LANES; l++) { /* lanes beyond the last repeat it, and count as nothing */
            const ptrdiff_t here = f + l < job->end ? f + l : job->end - 1;
            multiplicity[l] = f + l < job->end ? p->multiplicity[here] : 0;
            for (int t = 0; t < num_taps; t++) {
                wave[t].re[l] = p->waves[2 * (here * num_taps + t)];
                wave[t].im[l] = p->waves[2 * (here * num_taps + t) + 1];
            }
        }
        ptrdiff_t e = 0;
        for (; e + ENTRIES <= entries; e += ENTRIES)
            NAME(sum_taps)(ENTRIES, num_taps, wave, p->filter + e * num_taps, a + e);
        for (; e < entries; e++)
            NAME(sum_taps)(1, num_taps, wave, p->filter + e * num_taps, a + e);
        NAME(eliminate)(n, a, p->gradient, job->pivots, log_abs_det);
        for (int l = 0; l < LANES && f + l < job->end; l++)
            job->log_abs_det += multiplicity[l] * log_abs_det[l];
        if (!p->gradient)
            continue;
        for (e = 0; e < entries; e++)
            for (int l = 0; l < LANES; l++) {
                planes[2 * l * entries + e] = a[e].re[l];
                planes[(2 * l + 1) * entries + e] = a[e].im[l];
            }
        for (int t = 0; t < num_taps; t++) {
            double factors[LANES][2];
            for (int l = 0; l < LANES; l++) {
                factors[l][0] = multiplicity[l] * wave[t].re[l];
                factors[l][1] = multiplicity[l] * wave[t].im[l];
            }
            NAME(add_gradient)(entries, factors, planes, job->of_filter + t * entries);
        }
    }
}

#undef LANES
#undef TARGET
#undef NAME
