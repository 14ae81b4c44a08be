# cython: language_level=3, boundscheck=False, wraparound=False
"""The kernels for Python, outside the GIL.

``Plan`` is the one of ``autoregressive.h``, ``MaskedPlan`` the one of ``masked_autoregressive.h``; ``convolve`` and
``convolve_backward`` are the functions of ``convolution.h``. Arrays come as tensors, and this file asks for their
addresses. That is cheaper than a buffer. In Python code that ``torch.compile`` splits an address may outlive its tensor;
here it cannot. The callers, :mod:`flows.kernels.convolution`, :mod:`flows.solvers.compiled` and
:mod:`flows.solvers.masked`, answer for sizes and types.
"""

from libc.stdlib cimport free, malloc


cdef extern from "autoregressive.h" nogil:
    ctypedef struct ar_plan:
        pass
    enum:
        AR_LOWER
        AR_UPPER
        AR_CHANNELS_FIRST
        AR_CHANNELS_LAST
        AR_SOLVED
        AR_NO_MEMORY
    const char *const *ar_instruction_sets()
    ar_plan *ar_plan_create(int instruction_set, size_t real_size, int direction, int num_channels, int height,
                            int width, int num_taps, const int *offsets, const void *matrices)
    void ar_plan_free(ar_plan *plan)
    ptrdiff_t ar_solve(const ar_plan *plan, const void *z, void *x, ptrdiff_t num_images, int layout, int num_threads)


cdef extern from "masked_autoregressive.h" nogil:
    ctypedef struct mar_plan:
        pass
    enum:
        MAR_NO_MEMORY
    mar_plan *mar_plan_create(int instruction_set, size_t real_size, int is_reversed, int num_channels, int num_hidden,
                              int height, int width, const int *first_units, double max_log_scale, double max_shift,
                              double max_input, double offset, const void *first, const void *second, const void *last)
    void mar_plan_free(mar_plan *plan)
    ptrdiff_t mar_solve(const mar_plan *plan, const void *z, void *x, ptrdiff_t num_images, int num_threads)


cdef extern from "convolution.h" nogil:
    ctypedef struct conv_shape:
        int in_channels, out_channels, height, width, kernel_height, kernel_width, dilation
        int left, right, top, bottom, wraps, is_added_everywhere, has_relu
    enum:
        CONV_NO_MEMORY
    int conv_forward(int instruction_set, size_t real_size, const conv_shape *shape, ptrdiff_t num_images,
                     const void *x, const void *weight, const void *added, void *z, int num_threads)
    int conv_backward(int instruction_set, size_t real_size, const conv_shape *shape, ptrdiff_t num_images,
                      const void *x, const void *weight, const void *z, const void *of_z, void *of_x, void *of_weight,
                      void *of_added, int num_threads)


cdef extern from "mapped_convolution.h" nogil:
    ctypedef struct conv_mapping:
        int matrix_dims, diagonal_tap, is_exponential
    int conv_mapped_forward(int instruction_set, size_t real_size, const conv_shape *shape, const conv_mapping *mapping,
                            ptrdiff_t num_images, const void *x, const void *weight, const void *mask,
                            const void *bias, const void *matrix, const void *shift, const void *of_pixel, void *kept,
                            void *z, void *log_det, int num_threads)
    int conv_mapped_backward(int instruction_set, size_t real_size, const conv_shape *shape,
                             const conv_mapping *mapping, ptrdiff_t num_images, const void *x, const void *mask,
                             const void *matrix, const void *shift, const void *kept, const void *of_z,
                             const void *of_log_det, void *of_x, void *of_weight, void *of_bias, void *of_matrix,
                             void *of_shift, void *of_of_pixel, int num_threads)


cdef extern from "spectrum.h" nogil:
    enum:
        SPECTRUM_NO_MEMORY
    int spectrum_log_abs_det(int instruction_set, int num_channels, int num_taps, ptrdiff_t num_frequencies,
                             const double *waves, const double *multiplicity, const double *filter, double *log_abs_det,
                             double *of_filter, int num_threads)


cdef void *address(tensor) except? NULL:
    return NULL if tensor is None else <void *><size_t>tensor.data_ptr()


def instruction_sets():
    """Names of the instruction sets that this build and this processor know, best last."""
    cdef const char *const *names = ar_instruction_sets()
    found = []
    while names[0] is not NULL:
        found.append(names[0].decode())
        names += 1
    return found


cdef class Plan:
    """One filter, arranged for one instruction set.

    Args:
        matrices: ``len(offsets)`` contiguous C x C matrices, float32 or float64: the inverse of the centre tap, then
            minus this inverse times each of the other taps.
        offsets: (rows, columns) of each tap, dilation included; the first is (0, 0).
        is_lower: the direction.
        instruction_set: a name in :func:`instruction_sets`.
    """

    cdef ar_plan *plan

    def __cinit__(self, matrices, list offsets, bint is_lower, int num_channels, int height, int width,
                  str instruction_set):
        cdef int num_taps = len(offsets), index = instruction_sets().index(instruction_set)
        cdef int *flat = <int *>malloc(2 * num_taps * sizeof(int))
        if flat is NULL:
            raise MemoryError
        for n, (rows, columns) in enumerate(offsets):
            flat[2 * n] = rows
            flat[2 * n + 1] = columns
        self.plan = ar_plan_create(index, matrices.element_size(), AR_LOWER if is_lower else AR_UPPER, num_channels,
                                   height, width, num_taps, flat, address(matrices))
        free(flat)
        if self.plan is NULL:
            raise MemoryError

    def __dealloc__(self):
        ar_plan_free(self.plan)

    def solve(self, z, x, bint channels_last, int num_threads):
        """Solve the images ``z`` into ``x``; return the number of the first that is not finite, or -1."""
        cdef int layout = AR_CHANNELS_LAST if channels_last else AR_CHANNELS_FIRST
        cdef const void *source = address(z)
        cdef void *target = address(x)
        cdef ptrdiff_t result, num_images = len(z)
        with nogil:
            result = ar_solve(self.plan, source, target, num_images, layout, num_threads)
        if result == AR_NO_MEMORY:
            raise MemoryError
        return result


cdef class MaskedPlan:
    """One masked network, arranged for one instruction set.

    Args:
        first, second, last: the contiguous weights with their biases above, see the header; float32 or float64.
        first_units: for each channel the first hidden unit of its degree, then the number of hidden units.
        max_log_scale, max_shift, max_input: bounds; 0 for none.
        offset: added to ``h`` if its scale has no bound.
        is_reversed: images are taken in the reverse order.
        instruction_set: a name in :func:`instruction_sets`.
    """

    cdef mar_plan *plan

    def __cinit__(self, first, second, last, tuple first_units, double max_log_scale, double max_shift,
                  double max_input, double offset, bint is_reversed, int height, int width, str instruction_set):
        cdef int num_channels = len(first_units) - 1, index = instruction_sets().index(instruction_set)
        cdef int *units = <int *>malloc((num_channels + 1) * sizeof(int))
        if units is NULL:
            raise MemoryError
        for c, unit in enumerate(first_units):
            units[c] = unit
        self.plan = mar_plan_create(index, first.element_size(), is_reversed, num_channels, units[num_channels],
                                    height, width, units, max_log_scale, max_shift, max_input, offset,
                                    address(first), address(second), address(last))
        free(units)
        if self.plan is NULL:
            raise MemoryError

    def __dealloc__(self):
        mar_plan_free(self.plan)

    def solve(self, z, x, int num_threads):
        """Solve the images ``z`` into ``x``; return the number of the first that is not finite, or -1."""
        cdef const void *source = address(z)
        cdef void *target = address(x)
        cdef ptrdiff_t result, num_images = len(z)
        with nogil:
            result = mar_solve(self.plan, source, target, num_images, num_threads)
        if result == MAR_NO_MEMORY:
            raise MemoryError
        return result


cdef int BEST = len(instruction_sets()) - 1


cdef conv_shape as_shape(tuple numbers) except *:
    cdef conv_shape shape
    (shape.in_channels, shape.out_channels, shape.height, shape.width, shape.kernel_height, shape.kernel_width,
     shape.dilation, shape.left, shape.right, shape.top, shape.bottom, shape.wraps, shape.is_added_everywhere,
     shape.has_relu) = numbers
    return shape


def convolve(tuple numbers, x, weight, added, z, int num_threads):
    """Convolve the images ``x`` into ``z``, all channels-last; ``numbers`` are those of ``conv_shape`` in turn."""
    cdef conv_shape shape = as_shape(numbers)
    cdef size_t real_size = x.element_size()
    cdef ptrdiff_t num_images = len(x)
    cdef void *px = address(x)
    cdef void *pweight = address(weight)
    cdef void *padded = address(added)
    cdef void *pz = address(z)
    cdef int result
    with nogil:
        result = conv_forward(BEST, real_size, &shape, num_images, px, pweight, padded, pz, num_threads)
    if result == CONV_NO_MEMORY:
        raise MemoryError


def convolve_backward(tuple numbers, x, weight, z, of_z, of_x, of_weight, of_added, int num_threads):
    """The gradients ``of_x``, ``of_weight`` and ``of_added``, each unless it is ``None``, from ``of_z``."""
    cdef conv_shape shape = as_shape(numbers)
    cdef size_t real_size = x.element_size()
    cdef ptrdiff_t num_images = len(x)
    cdef void *px = address(x)
    cdef void *pweight = address(weight)
    cdef void *pz = address(z)
    cdef void *pof_z = address(of_z)
    cdef void *pof_x = address(of_x)
    cdef void *pof_weight = address(of_weight)
    cdef void *pof_added = address(of_added)
    cdef int result
    with nogil:
        result = conv_backward(BEST, real_size, &shape, num_images, px, pweight, pz, pof_z, pof_x, pof_weight, pof_added,
                               num_threads)
    if result == CONV_NO_MEMORY:
        raise MemoryError


cdef conv_mapping as_mapping(tuple numbers) except *:
    cdef conv_mapping mapping
    mapping.matrix_dims, mapping.diagonal_tap, mapping.is_exponential = numbers
    return mapping


def convolve_mapped(tuple numbers, tuple mapping_numbers, x, weight, mask, bias, matrix, shift, of_pixel, kept, z,
                    log_det, int num_threads):
    """Convolve ``x`` into ``z``; ``mapping_numbers`` are those of ``conv_mapping`` in turn."""
    cdef conv_shape shape = as_shape(numbers)
    cdef conv_mapping mapping = as_mapping(mapping_numbers)
    cdef size_t real_size = x.element_size()
    cdef ptrdiff_t num_images = len(x)
    cdef void *px = address(x)
    cdef void *pweight = address(weight)
    cdef void *pmask = address(mask)
    cdef void *pbias = address(bias)
    cdef void *pmatrix = address(matrix)
    cdef void *pshift = address(shift)
    cdef void *pof_pixel = address(of_pixel)
    cdef void *pkept = address(kept)
    cdef void *pz = address(z)
    cdef void *plog_det = address(log_det)
    cdef int result
    with nogil:
        result = conv_mapped_forward(BEST, real_size, &shape, &mapping, num_images, px, pweight, pmask, pbias, pmatrix,
                                     pshift, pof_pixel, pkept, pz, plog_det, num_threads)
    if result == CONV_NO_MEMORY:
        raise MemoryError


def convolve_mapped_backward(tuple numbers, tuple mapping_numbers, x, mask, matrix, shift, kept, of_z, of_log_det, of_x,
                             of_weight, of_bias, of_matrix, of_shift, of_of_pixel, int num_threads):
    """The gradients, each unless it is ``None``, from ``of_z`` and ``of_log_det``."""
    cdef conv_shape shape = as_shape(numbers)
    cdef conv_mapping mapping = as_mapping(mapping_numbers)
    cdef size_t real_size = x.element_size()
    cdef ptrdiff_t num_images = len(x)
    cdef void *px = address(x)
    cdef void *pmask = address(mask)
    cdef void *pmatrix = address(matrix)
    cdef void *pshift = address(shift)
    cdef void *pkept = address(kept)
    cdef void *pof_z = address(of_z)
    cdef void *pof_log_det = address(of_log_det)
    cdef void *pof_x = address(of_x)
    cdef void *pof_weight = address(of_weight)
    cdef void *pof_bias = address(of_bias)
    cdef void *pof_matrix = address(of_matrix)
    cdef void *pof_shift = address(of_shift)
    cdef void *pof_of_pixel = address(of_of_pixel)
    cdef int result
    with nogil:
        result = conv_mapped_backward(BEST, real_size, &shape, &mapping, num_images, px, pmask, pmatrix, pshift, pkept,
                                      pof_z, pof_log_det, pof_x, pof_weight, pof_bias, pof_matrix, pof_shift,
                                      pof_of_pixel, num_threads)
    if result == CONV_NO_MEMORY:
        raise MemoryError


def log_abs_det_of_spectrum(filters, waves, multiplicity, of_filters, int num_threads):
    """``sum_f multiplicity_f log |det M_f|``; its gradient is written to ``of_filters``, unless that is ``None``.

    Args:
        filters: (C, C, taps), float64, like ``of_filters``.
        waves: (frequencies, taps), complex128.
        multiplicity: (frequencies,), float64.
    """
    cdef int num_channels = len(filters), num_taps = waves.shape[1]
    cdef ptrdiff_t num_frequencies = len(waves)
    cdef double *pfilters = <double *>address(filters)
    cdef double *pwaves = <double *>address(waves)
    cdef double *pmultiplicity = <double *>address(multiplicity)
    cdef double *pof_filters = <double *>address(of_filters)
    cdef double log_abs_det
    cdef int result
    with nogil:
        result = spectrum_log_abs_det(BEST, num_channels, num_taps, num_frequencies, pwaves, pmultiplicity, pfilters,
                                      &log_abs_det, pof_filters, num_threads)
    if result == SPECTRUM_NO_MEMORY:
        raise MemoryError
    return log_abs_det
