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

#ifndef __clang__
// Of p and then of q the sums of the first and the second half of each block of B lanes.
template <class T, int BYTES, int B>
static inline __attribute__((always_inline)) typename Vec<T, BYTES>::type halved(
    typename Vec<T, BYTES>::type p, typename Vec<T, BYTES>::type q) {
  constexpr int W = BYTES / sizeof(T);
  typename Vec<T, BYTES>::ints first, second;
#pragma GCC unroll 16
  for (int j = 0; j < W; j++) {
    const int lane = j % (W / 2);
    first[j] = j / (W / 2) * W + lane / (B / 2) * B + lane % (B / 2);
    second[j] = first[j] + B / 2;
  }
  return __builtin_shuffle(p, q, first) + __builtin_shuffle(p, q, second);
}
#endif

// c[i] = the sum of the numbers in acc[i], for R vectors: eight share their additions.
template <class T, int BYTES, int R>
static inline __attribute__((always_inline)) void sums(
    const typename Vec<T, BYTES>::type* acc, T* c) {
#ifndef __clang__
  constexpr int W = BYTES / sizeof(T);
  if constexpr (R == 8 && W >= 8) {
    typedef typename Vec<T, BYTES>::type V;
    V four[4], two[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) four[i] = halved<T, BYTES, W>(acc[2 * i], acc[2 * i + 1]);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) two[i] = halved<T, BYTES, W / 2>(four[2 * i], four[2 * i + 1]);
    V one = halved<T, BYTES, W / 4>(two[0], two[1]);
    if constexpr (W == 16) one = halved<T, BYTES, 2>(one, one);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) c[i] = one[i];
    return;
  }
#endif
#pragma GCC unroll 8
  for (int i = 0; i < R; i++) c[i] = lanes<T, BYTES>(acc[i]);
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
    typename Vec<T, BYTES>::ints fresh;
#pragma GCC unroll 16
    for (int j = 0; j < W; j++) fresh[j] = j < W - REST ? 0 : -1;
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
      const V row = *(const V*)(a + (int64_t)i * LDA + K - W);
      acc[i] += (fresh ? row : V{}) * v;
    }
  }
  sums<T, BYTES, R>(acc, c);
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

// NV vectors of columns, none beyond LAST: c[j] = sum over k of x[k] b[k, j]; U sums run beside one
// another, or each addition would wait for the last.
template <class T, int BYTES, int NV, int K, int LDB, int LAST>
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
        acc[u][j] += x[k + u] * *(const V*)(b + (int64_t)(k + u) * LDB + (W * j < LAST ? W * j : LAST));
  for (; k < K; k++)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++)
      acc[0][j] += x[k] * *(const V*)(b + (int64_t)k * LDB + (W * j < LAST ? W * j : LAST));
#pragma GCC unroll 8
  for (int u = 1; u < U; u++)
#pragma GCC unroll 8
    for (int j = 0; j < NV; j++) acc[0][j] += acc[u][j];
#pragma GCC unroll 8
  for (int j = 0; j < NV; j++) *(V*)(c + (W * j < LAST ? W * j : LAST)) = acc[0][j];
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
    // The last vector of columns holds some of those before, which come out the same again.
    constexpr int W = BYTES / sizeof(T), ALL = (N + W - 1) / W, EIGHT = ALL / 8 * 8;
    constexpr int FOUR = ALL / 4 * 4, TWO = ALL / 2 * 2, LAST = N - W;
    constexpr int E = (EIGHT - 8) * W, F = EIGHT * W, S = FOUR * W;
    constexpr int O = TWO * W < LAST ? TWO * W : LAST;
    for (int j = 0; j < E; j += 8 * W) columns<T, BYTES, 8, K, LDB, 8 * W>(b + j, x, c + j);
    if constexpr (EIGHT > 0) columns<T, BYTES, 8, K, LDB, LAST - E>(b + E, x, c + E);
    if constexpr (FOUR > EIGHT) columns<T, BYTES, 4, K, LDB, LAST - F>(b + F, x, c + F);
    if constexpr (TWO > FOUR) columns<T, BYTES, 2, K, LDB, LAST - S>(b + S, x, c + S);
    if constexpr (ALL > TWO) columns<T, BYTES, 1, K, LDB, 0>(b + O, x, c + O);
  }
}
