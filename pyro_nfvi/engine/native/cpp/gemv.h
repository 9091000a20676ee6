// Products of a matrix and a vector whose sizes are known, the matrix read once as it lies.

// The sum of the numbers in a vector.
template <class T, int BYTES>
static inline __attribute__((always_inline)) T lanes(typename Vec<T, BYTES>::type x) {
  constexpr int W = BYTES / sizeof(T);
  T part[W];
  *(typename Vec<T, BYTES>::type*)part = x;
#pragma GCC unroll 4
  for (int step = W / 2; step > 0; step /= 2)
#pragma GCC unroll 8
    for (int j = 0; j < step; j++) part[j] += part[j + step];
  return part[0];
}

// R rows: c[i] = sum over k of a[i, k] x[k]; ``end`` holds the last numbers of x behind zeros.
template <class T, int BYTES, int R, int K, int LDA>
static inline __attribute__((always_inline)) void dots(
    const T* a, const T* x, const T* end, T* c) {
  typedef typename Vec<T, BYTES>::type V;
  constexpr int W = BYTES / sizeof(T), FULL = K / W * W, REST = K - FULL;
  V acc[R];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) acc[i] = V{};
#pragma GCC unroll 2
  for (int k = 0; k < FULL; k += W) {
    const V v = *(const V*)(x + k);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) acc[i] += *(const V*)(a + (int64_t)i * LDA + k) * v;
  }
  if constexpr (REST > 0) {
    // Those of the last vector that were added before are taken out, not multiplied by zero: an
    // infinite one must not become NaN.
    const V v = *(const V*)end;
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      V row = *(const V*)(a + (int64_t)i * LDA + K - W);
#pragma GCC unroll 16
      for (int j = 0; j < W - REST; j++) row[j] = 0;
      acc[i] += row * v;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) c[i] = lanes<T, BYTES>(acc[i]);
}

// c[i] = sum over k of a[i, k] x[k], for rows of a that are dense.
template <class T, int N, int K, int LDA>
static __attribute__((noinline)) void dot_gemv(const T* a, const T* x, T* c) {
  constexpr int BYTES = nfvi_bytes<T, K>();
  if constexpr (BYTES == 0) {
#pragma omp simd
    for (int i = 0; i < N; i++) {
      T sum = 0;
      for (int k = 0; k < K; k++) sum += a[(int64_t)i * LDA + k] * x[k];
      c[i] = sum;
    }
  } else {
    constexpr int W = BYTES / sizeof(T), REST = K % W, R = 8;
    T end[W];
    for (int j = 0; j < W; j++) end[j] = j < W - REST ? (T)0 : x[K - W + j];
    int i = 0;
    for (; i + R <= N; i += R) dots<T, BYTES, R, K, LDA>(a + (int64_t)i * LDA, x, end, c + i);
    for (; i < N; i++) dots<T, BYTES, 1, K, LDA>(a + (int64_t)i * LDA, x, end, c + i);
  }
}

// NV vectors of columns: c[j] = sum over k of x[k] b[k, j]; U sums run beside one another, or each
// addition would wait for the last.
template <class T, int BYTES, int NV, int K, int LDB>
static inline __attribute__((always_inline)) void columns(const T* b, const T* x, T* c) {
  typedef typename Vec<T, BYTES>::type V;
  constexpr int W = BYTES / sizeof(T), U = NV == 1 ? 8 : NV == 2 ? 4 : NV <= 4 ? 2 : 1;
  V acc[U][NV];
#pragma GCC unroll 8
  for (int u = 0; u < U; u++)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) acc[u][j] = V{};
  int k = 0;
  for (; k + U <= K; k += U)
#pragma GCC unroll 8
    for (int u = 0; u < U; u++)
#pragma GCC unroll 8
      for (int j = 0; j < NV; j++)
        acc[u][j] += x[k + u] * *(const V*)(b + (int64_t)(k + u) * LDB + W * j);
  for (; k < K; k++)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) acc[0][j] += x[k] * *(const V*)(b + (int64_t)k * LDB + W * j);
#pragma GCC unroll 8
  for (int u = 1; u < U; u++)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) acc[0][j] += acc[u][j];
#pragma GCC unroll 8
  for (int j = 0; j < NV; j++) *(V*)(c + W * j) = acc[0][j];
}

// c[j] = sum over k of x[k] b[k, j], for rows of b that are dense.
template <class T, int N, int K, int LDB>
static __attribute__((noinline)) void row_gemv(const T* b, const T* x, T* c) {
  constexpr int BYTES = nfvi_bytes<T, N>();
  if constexpr (BYTES == 0) {
    T acc[N] = {};
    for (int k = 0; k < K; k++)
      for (int j = 0; j < N; j++) acc[j] += x[k] * b[(int64_t)k * LDB + j];
    for (int j = 0; j < N; j++) c[j] = acc[j];
  } else {
    constexpr int W = BYTES / sizeof(T), EIGHT = N / (8 * W) * (8 * W);
    constexpr int FOUR = N / (4 * W) * (4 * W), TWO = N / (2 * W) * (2 * W), ONE = N / W * W;
    for (int j = 0; j < EIGHT; j += 8 * W) columns<T, BYTES, 8, K, LDB>(b + j, x, c + j);
    if constexpr (FOUR > EIGHT) columns<T, BYTES, 4, K, LDB>(b + EIGHT, x, c + EIGHT);
    if constexpr (TWO > FOUR) columns<T, BYTES, 2, K, LDB>(b + FOUR, x, c + FOUR);
    if constexpr (ONE > TWO) columns<T, BYTES, 1, K, LDB>(b + TWO, x, c + TWO);
    // The last columns with some of those before them, which come out the same again.
    if constexpr (N > ONE) columns<T, BYTES, 1, K, LDB>(b + N - W, x, c + N - W);
  }
}
