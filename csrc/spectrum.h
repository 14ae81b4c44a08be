/* The log-determinant of a convolution that the Fourier transform takes apart, and its gradient.

       L  =  sum over frequencies f of  multiplicity_f log |det M_f|,        M_f = sum over taps t of  wave_ft W_t,
       dL / dW_t  =  sum over f of  multiplicity_f Re(wave_ft M_f^-T)

   Libraries factorise one matrix after the other. With a dozen channels most of that is overhead; here each lane of a
   vector register has a matrix of its own. All numbers are double. */

#ifndef SPECTRUM_H
#define SPECTRUM_H

#include <stddef.h>

enum { SPECTRUM_DONE, SPECTRUM_NO_MEMORY };

/* filter is (num_channels, num_channels, num_taps), the W_t innermost; waves is (num_frequencies, num_taps, 2), real and
   imaginary parts. of_filter, like filter, may be NULL. If a matrix is singular, the log-determinant is minus infinity,
   and the gradient is not finite. instruction_set is an index into ar_instruction_sets(). */
int spectrum_log_abs_det(int instruction_set, int num_channels, int num_taps, ptrdiff_t num_frequencies,
                         const double *waves, const double *multiplicity, const double *filter, double *log_abs_det,
                         double *of_filter, int num_threads);

#endif
