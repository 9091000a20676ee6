// The triangular system of an autoregressive layer's score (pyro_nfvi/masked_solve.py), from the
// last input to the first, R rows at a time. firstT (D, H), last (D n, H), skip (D n, D).
template <class T, int R>
static void solve_masked_rows(int64_t dim, int64_t n, int64_t hidden, const T* firstT,
    const T* last, const T* skip, const T* slope, const T* target, const T* dx, const T* dparams,
    const T* extra, bool reverse, T* u, T* acc, T* beside) {
  for (int64_t k = 0; k < R * hidden; k++) acc[k] = 0;
  for (int64_t k = 0; k < R * dim; k++) beside[k] = 0;
  for (int64_t step = 0; step < dim; step++) {
    const int64_t i = reverse ? step : dim - 1 - step;
    const T* column = firstT + i * hidden;
    T dot[R];
    for (int q = 0; q < R; q++) {
      const T* a = acc + q * hidden;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t h = 0; h < hidden; h++) sum += a[h] * column[h];
      dot[q] = sum;
    }
    for (int q = 0; q < R; q++) {
      const int64_t at = q * dim + i;
      u[at] = (target[at] - dot[q] - beside[at]) / dx[at];
    }
    // What is still to come: inputs before i in the order of the masks.
    const int64_t begin = reverse ? i + 1 : 0, end = reverse ? dim : i;
    for (int64_t k = 0; k < n; k++) {
      const T* row = last + (i * n + k) * hidden;
      const T* side = skip + (i * n + k) * dim;
      T w[R];
      for (int q = 0; q < R; q++) {
        const int64_t at = q * dim + i;
        w[q] = extra[at * n + k] + dparams[at * n + k] * u[at];
      }
      for (int q = 0; q < R; q++) {
        T* a = acc + q * hidden;
        const T* s = slope + q * hidden;
#pragma omp simd
        for (int64_t h = 0; h < hidden; h++) a[h] += w[q] * s[h] * row[h];
        T* b = beside + q * dim;
#pragma omp simd
        for (int64_t j = begin; j < end; j++) b[j] += w[q] * side[j];
      }
    }
  }
}

template <class T>
static void solve_masked(int64_t rows, int64_t dim, int64_t n, int64_t hidden, const T* firstT,
    const T* last, const T* skip, const T* slope, const T* target, const T* dx, const T* dparams,
    const T* extra, bool reverse, T* u, T* work) {
  constexpr int R = 4;
  T *acc = work, *beside = work + R * hidden;
  int64_t p = 0;
  for (; p + R <= rows; p += R)
    solve_masked_rows<T, R>(dim, n, hidden, firstT, last, skip, slope + p * hidden,
        target + p * dim, dx + p * dim, dparams + p * dim * n, extra + p * dim * n, reverse,
        u + p * dim, acc, beside);
  for (; p < rows; p++)
    solve_masked_rows<T, 1>(dim, n, hidden, firstT, last, skip, slope + p * hidden,
        target + p * dim, dx + p * dim, dparams + p * dim * n, extra + p * dim * n, reverse,
        u + p * dim, acc, beside);
}

// The same for particles that lie side by side in memory, as many at a time as fill NV vectors.
// slope (H, P), target and dx (D, P), dparams and extra (D, n, P), with steps of `rows` numbers.
template <class T, int BYTES, int NV>
static void solve_masked_block(int64_t rows, int64_t dim, int64_t n, int64_t hidden,
    const T* firstT, const T* last, const T* skip, const T* slope, const T* target, const T* dx,
    const T* dparams, const T* extra, bool reverse, T* u, T* work) {
  typedef typename Vec<T, BYTES>::type V;
  constexpr int W = BYTES / sizeof(T);
  V *acc = (V*)work, *beside = acc + NV * hidden, *w = beside + NV * dim;
  for (int64_t k = 0; k < NV * (hidden + dim); k++) acc[k] = V{};
  for (int64_t step = 0; step < dim; step++) {
    const int64_t i = reverse ? step : dim - 1 - step;
    const T* column = firstT + i * hidden;
    V dot[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) dot[v] = beside[i * NV + v];
    for (int64_t h = 0; h < hidden; h++)
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) dot[v] += column[h] * acc[h * NV + v];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) {
      const int64_t at = i * rows + W * v;
      const V found = (*(const V*)(target + at) - dot[v]) / *(const V*)(dx + at);
      *(V*)(u + at) = found;
      for (int64_t k = 0; k < n; k++) {
        const int64_t one = (i * n + k) * rows + W * v;
        w[k * NV + v] = *(const V*)(extra + one) + *(const V*)(dparams + one) * found;
      }
    }
    const T* row = last + i * n * hidden;
    for (int64_t h = 0; h < hidden; h++) {
      V sum[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) sum[v] = w[v] * row[h];
      for (int64_t k = 1; k < n; k++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sum[v] += w[k * NV + v] * row[k * hidden + h];
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++)
        acc[h * NV + v] += *(const V*)(slope + h * rows + W * v) * sum[v];
    }
    const T* side = skip + i * n * dim;
    const int64_t begin = reverse ? i + 1 : 0, end = reverse ? dim : i;
    for (int64_t j = begin; j < end; j++)
      for (int64_t k = 0; k < n; k++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) beside[j * NV + v] += w[k * NV + v] * side[k * dim + j];
  }
}

template <class T, int P>
static void solve_masked_wide(int64_t dim, int64_t n, int64_t hidden, const T* firstT,
    const T* last, const T* skip, const T* slope, const T* target, const T* dx, const T* dparams,
    const T* extra, bool reverse, T* u, T* work) {
  constexpr int bytes = P * (int)sizeof(T);
  constexpr int BYTES = bytes % NFVI_BYTES == 0 ? NFVI_BYTES : 32;
  constexpr int NV = bytes % (2 * BYTES) == 0 ? 2 : 1;
  for (int64_t p = 0; p < P; p += NV * BYTES / sizeof(T))
    solve_masked_block<T, BYTES, NV>(P, dim, n, hidden, firstT, last, skip, slope + p, target + p,
        dx + p, dparams + p, extra + p, reverse, u + p, work);
}
