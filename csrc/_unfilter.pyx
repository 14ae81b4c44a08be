# cython: language_level=3, boundscheck=False, wraparound=False
"""PNG's row filters undone: the pixels behind what a PNG's zlib stream holds."""


def unfilter(const unsigned char[:, ::1] rows, unsigned char[:, ::1] pixels, Py_ssize_t step):
    """Undo the filters of ``rows``, uint8 ``(H, 1 + W)``: of each row the kind of its filter, and its bytes.

    Args:
        pixels: gets the bytes, uint8 ``(1 + H, step + W)``; the row above and the pixels to the left, which the
            filters read, are cleared.
        step: bytes of a pixel.

    Raises:
        ValueError: a filter of an unknown kind, or shapes that do not belong together.

    Reference: *Portable Network Graphics (PNG) Specification*, third edition, section 9.
    """
    cdef Py_ssize_t height = rows.shape[0], width = rows.shape[1] - 1, i, j
    cdef int left, above, corner, to_left, to_above, to_corner, nearer
    if step < 1 or width < 0 or pixels.shape[0] != 1 + height or pixels.shape[1] != step + width:
        raise ValueError("the shapes do not belong together")  # every index below is in range where they do
    pixels[0, :] = 0
    pixels[:, :step] = 0
    for i in range(height):
        if rows[i, 0] == 0:
            for j in range(width):
                pixels[i + 1, j + step] = rows[i, j + 1]
        elif rows[i, 0] == 1:
            for j in range(width):
                pixels[i + 1, j + step] = rows[i, j + 1] + pixels[i + 1, j]
        elif rows[i, 0] == 2:
            for j in range(width):
                pixels[i + 1, j + step] = rows[i, j + 1] + pixels[i, j + step]
        elif rows[i, 0] == 3:
            for j in range(width):
                left, above = pixels[i + 1, j], pixels[i, j + step]
                pixels[i + 1, j + step] = rows[i, j + 1] + ((left + above) >> 1)
        elif rows[i, 0] == 4:  # Paeth's: whichever of three neighbours is nearest to left + above - corner
            for j in range(width):
                left, above, corner = pixels[i + 1, j], pixels[i, j + step], pixels[i, j]
                to_left, to_above, to_corner = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
                nearer = above if to_above <= to_corner else corner
                nearer = left if to_left <= to_above and to_left <= to_corner else nearer
                pixels[i + 1, j + step] = rows[i, j + 1] + nearer
        else:
            raise ValueError(f"there is no filter {rows[i, 0]}")
