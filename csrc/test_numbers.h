/* What the C tests are fed with: the same numbers from -1 to 1 in each run. */

static double random_number(void)
{
    static unsigned state = 1;
    state = state * 1664525u + 1013904223u;
    return (state >> 8) / (double)(1 << 23) - 1;
}
