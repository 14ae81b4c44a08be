/* What a mapped convolution does to filters, for one type. Included once for each, after defining REAL and NAME(f). */

/* V, (out, taps, in), and the log-determinant of one pixel. */
static double NAME(mask_filter)(const conv_shape *s, const conv_mapping *m, const REAL *weight, const REAL *mask, REAL *v)
{
    const ptrdiff_t in = s->in_channels, num_taps = s->kernel_height * s->kernel_width;
    for (ptrdiff_t o = 0; o < s->out_channels; o++)
        for (ptrdiff_t c = 0; c < in; c++)
            for (ptrdiff_t t = 0; t < num_taps; t++, weight++)
                v[(o * num_taps + t) * in + c] = mask ? *weight * *mask++ : *weight;
    double log_det = 0;
    for (ptrdiff_t c = 0; c < in && m->diagonal_tap >= 0; c++) {
        REAL *entry = &v[(c * num_taps + m->diagonal_tap) * in + c];
        log_det += m->is_exponential ? *entry : log(fabs(*entry));
        if (m->is_exponential)
            *entry = (REAL)exp(*entry);
    }
    return log_det;
}

/* Its gradient, from that of V and of the log-determinant of one pixel. */
static void NAME(mask_gradient)(const conv_shape *s, const conv_mapping *m, const REAL *mask, const REAL *v, REAL *of_v,
                                double of_log_det, REAL *of_weight)
{
    const ptrdiff_t in = s->in_channels, num_taps = s->kernel_height * s->kernel_width;
    for (ptrdiff_t c = 0; c < in && m->diagonal_tap >= 0; c++) {
        const ptrdiff_t entry = (c * num_taps + m->diagonal_tap) * in + c;
        of_v[entry] = (REAL)(m->is_exponential ? of_v[entry] * v[entry] + of_log_det : of_v[entry] + of_log_det / v[entry]);
    }
    for (ptrdiff_t o = 0; o < s->out_channels; o++)
        for (ptrdiff_t c = 0; c < in; c++)
            for (ptrdiff_t t = 0; t < num_taps; t++) {
                const REAL gradient = of_v[(o * num_taps + t) * in + c];
                *of_weight++ = mask ? gradient * *mask++ : gradient;
            }
}

/* V s for each tap, (taps, out); to it, or from it, what is added at each pixel, (H', W', out). */
static void NAME(shift_taps)(const conv_shape *s, const REAL *v, const REAL *shift, REAL *of_taps)
{
    const ptrdiff_t in = s->in_channels, out = s->out_channels, num_taps = s->kernel_height * s->kernel_width;
    for (ptrdiff_t o = 0; o < out; o++)
        for (ptrdiff_t t = 0; t < num_taps; t++) {
            REAL sum = 0;
            for (ptrdiff_t c = 0; c < in; c++)
                sum += *v++ * shift[c];
            of_taps[t * out + o] = sum;
        }
}

static void NAME(add_taps)(const conv_shape *s, const REAL *bias, const REAL *taps, REAL *added)
{
    const ptrdiff_t out = s->out_channels;
    FOR_EACH_PIXEL(s, i, j) {
        for (ptrdiff_t o = 0; o < out; o++)
            added[o] = bias ? bias[o] : 0;
        FOR_EACH_TAP_ON_IMAGE(s, i, j, t)
            for (ptrdiff_t o = 0; o < out; o++)
                added[o] += taps[t * out + o];
        added += out;
    }
}

static void NAME(sum_added)(const conv_shape *s, const REAL *of_added, REAL *of_bias, REAL *of_taps)
{
    const ptrdiff_t out = s->out_channels;
    FOR_EACH_PIXEL(s, i, j) {
        for (ptrdiff_t o = 0; o < out && of_bias; o++)
            of_bias[o] += of_added[o];
        FOR_EACH_TAP_ON_IMAGE(s, i, j, t)
            for (ptrdiff_t o = 0; o < out; o++)
                of_taps[t * out + o] += of_added[o];
        of_added += out;
    }
}

/* The gradients of the shift and, added to what it has already, of V. */
static void NAME(shift_gradient)(const conv_shape *s, const REAL *v, const REAL *shift, const REAL *of_taps, REAL *of_v,
                                 REAL *of_shift)
{
    const ptrdiff_t in = s->in_channels, out = s->out_channels, num_taps = s->kernel_height * s->kernel_width;
    memset(of_shift, 0, in * sizeof(REAL));
    for (ptrdiff_t o = 0; o < out; o++)
        for (ptrdiff_t t = 0; t < num_taps; t++, v += in, of_v += in)
            for (ptrdiff_t c = 0; c < in; c++) {
                of_v[c] += of_taps[t * out + o] * shift[c];
                of_shift[c] += of_taps[t * out + o] * v[c];
            }
}

/* V diag(scale), and its gradients. */
static void NAME(scale)(ptrdiff_t rows, ptrdiff_t in, const REAL *v, const REAL *scale, REAL *to)
{
    for (ptrdiff_t n = 0; n < rows; n++)
        for (ptrdiff_t c = 0; c < in; c++)
            *to++ = *v++ * scale[c];
}

static void NAME(scale_gradient)(ptrdiff_t rows, ptrdiff_t in, const REAL *v, const REAL *gradient, REAL *of_scale)
{
    memset(of_scale, 0, in * sizeof(REAL));
    for (ptrdiff_t n = 0; n < rows; n++)
        for (ptrdiff_t c = 0; c < in; c++)
            of_scale[c] += *v++ * *gradient++;
}

static void NAME(fill)(ptrdiff_t length, double value, REAL *to)
{
    for (ptrdiff_t n = 0; n < length; n++)
        to[n] = (REAL)value;
}

static double NAME(sum)(ptrdiff_t length, const REAL *from)
{
    double sum = 0;
    for (ptrdiff_t n = 0; n < length; n++)
        sum += from[n];
    return sum;
}

static int NAME(forward)(int instruction_set, const conv_shape *s, const conv_mapping *m, ptrdiff_t num_images,
                         const REAL *x, const REAL *weight, const REAL *mask, const REAL *bias, const REAL *matrix,
                         const REAL *shift, const REAL *of_pixel, REAL *kept, REAL *z, REAL *log_det, int num_threads)
{
    const sizes n = sizes_of(s);
    REAL *v = kept, *taps = kept + (m->matrix_dims ? n.filter : 0);
    REAL *of_taps = malloc((n.num_taps + n.num_pixels) * s->out_channels * sizeof(REAL));
    if (!of_taps)
        return CONV_NO_MEMORY;
    const double of_tap = NAME(mask_filter)(s, m, weight, mask, v);
    if (log_det)
        NAME(fill)(num_images, (of_tap + (of_pixel ? *of_pixel : 0)) * s->height * s->width, log_det);

    conv_shape shape = *s;
    const REAL *added = bias;
    shape.has_relu = 0;
    shape.is_added_everywhere = !shift;
    if (shift) {
        REAL *everywhere = of_taps + n.num_taps * s->out_channels;
        NAME(shift_taps)(s, v, shift, of_taps);
        NAME(add_taps)(s, bias, of_taps, everywhere);
        added = everywhere;
    }
    int result = CONV_DONE;
    if (m->matrix_dims == 1)
        NAME(scale)(n.rows, s->in_channels, v, matrix, taps);
    else if (m->matrix_dims == 2) /* what the matrix, as a 1x1 convolution, takes back from the rows of V */
        result = conv_backward(instruction_set, sizeof(REAL), &n.of_matrix, 1, NULL, matrix, NULL, v, taps, NULL, NULL, 1);
    if (result == CONV_DONE)
        result = conv_forward(instruction_set, sizeof(REAL), &shape, num_images, x, taps, added, z, num_threads);
    free(of_taps);
    return result;
}

static int NAME(backward)(int instruction_set, const conv_shape *s, const conv_mapping *m, ptrdiff_t num_images,
                          const REAL *x, const REAL *mask, const REAL *matrix, const REAL *shift, const REAL *kept,
                          const REAL *of_z, const REAL *of_log_det, REAL *of_x, REAL *of_weight, REAL *of_bias,
                          REAL *of_matrix, REAL *of_shift, REAL *of_of_pixel, int num_threads)
{
    const sizes n = sizes_of(s);
    const REAL *v = kept, *taps = kept + (m->matrix_dims ? n.filter : 0);
    REAL *of_filter = calloc(2 * n.filter + (n.num_taps + n.num_pixels) * s->out_channels, sizeof(REAL));
    if (!of_filter)
        return CONV_NO_MEMORY;
    REAL *of_v = m->matrix_dims ? of_filter + n.filter : of_filter;
    REAL *of_taps = of_filter + 2 * n.filter, *of_added = of_taps + n.num_taps * s->out_channels;

    conv_shape shape = *s;
    shape.has_relu = 0;
    shape.is_added_everywhere = !shift;
    int result = conv_backward(instruction_set, sizeof(REAL), &shape, num_images, x, taps, NULL, of_z, of_x, of_filter,
                               shift ? of_added : of_bias, num_threads);
    if (m->matrix_dims == 1) {
        NAME(scale)(n.rows, s->in_channels, of_filter, matrix, of_v);
        NAME(scale_gradient)(n.rows, s->in_channels, v, of_filter, of_matrix);
    } else if (m->matrix_dims == 2 && result == CONV_DONE) {
        result = conv_forward(instruction_set, sizeof(REAL), &n.of_matrix, 1, of_filter, matrix, NULL, of_v, 1);
        if (result == CONV_DONE)
            result = conv_backward(instruction_set, sizeof(REAL), &n.of_matrix, 1, of_filter, matrix, NULL, v, NULL,
                                   of_matrix, NULL, 1);
    }
    if (shift) {
        if (of_bias)
            memset(of_bias, 0, s->out_channels * sizeof(REAL));
        NAME(sum_added)(s, of_added, of_bias, of_taps);
        NAME(shift_gradient)(s, v, shift, of_taps, of_v, of_shift);
    }
    const double of_each = of_log_det ? NAME(sum)(num_images, of_log_det) * s->height * s->width : 0;
    NAME(mask_gradient)(s, m, mask, v, of_v, of_each, of_weight);
    if (of_of_pixel)
        *of_of_pixel = (REAL)of_each;
    free(of_filter);
    return result;
}

#undef REAL
#undef NAME
