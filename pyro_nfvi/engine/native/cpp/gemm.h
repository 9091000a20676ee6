// Products of matrices whose sizes are known: C[M,N] = A[M,K] B[K,N] (+ D), B, C, D with dense rows.
template <class T, int B> struct Vec;
template <> struct Vec<float, 32> {
  typedef float type __attribute__((vector_size(32), aligned(4), may_alias));
};
template <> struct Vec<double, 32> {
  typedef double type __attribute__((vector_size(32), aligned(8), may_alias));
};
template <> struct Vec<float, 16> {
  typedef float type __attribute__((vector_size(16), aligned(4), may_alias));
};
template <> struct Vec<double, 16> {
  typedef double type __attribute__((vector_size(16), aligned(8), may_alias));
};

// One tile: MR rows, NV vectors of W numbers. LDD < 0: nothing is added.
template <class T, int BYTES, int MR, int NV, int K, int SA0, int SA1, int LDB, int LDC, int LDD>
static inline __attribute__((always_inline)) void tile(
    const T* a, const T* b, const T* d, T* c) {
  typedef typename Vec<T, BYTES>::type V;
  constexpr int W = BYTES / sizeof(T);
  V acc[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++)
      if constexpr (LDD < 0) acc[i][j] = V{};
      else acc[i][j] = *(const V*)(d + (int64_t)i * LDD + W * j);
#pragma GCC unroll 1
  for (int k = 0; k < K; k++) {
    V row[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) row[j] = *(const V*)(b + (int64_t)k * LDB + W * j);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {
      T s = a[(int64_t)i * SA0 + (int64_t)k * SA1];
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] += s * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) *(V*)(c + (int64_t)i * LDC + W * j) = acc[i][j];
}

template <class T, int MR, int N, int K, int SA0, int SA1, int LDB, int LDC, int LDD>
static inline __attribute__((always_inline)) void strip(
    const T* a, const T* b, const T* d, T* c) {
  constexpr int W = 32 / sizeof(T), H = W / 2;
  if constexpr (N >= W) {
    constexpr int two = N / (2 * W) * (2 * W);
    for (int j = 0; j < two; j += 2 * W)
      tile<T, 32, MR, 2, K, SA0, SA1, LDB, LDC, LDD>(a, b + j, d + j, c + j);
    if constexpr (N - two >= W)
      tile<T, 32, MR, 1, K, SA0, SA1, LDB, LDC, LDD>(a, b + two, d + two, c + two);
    // The last columns once more with those before them: the sums start afresh, so nothing is
    // added twice.
    constexpr int last = N - W;
    if constexpr (N % W != 0)
      tile<T, 32, MR, 1, K, SA0, SA1, LDB, LDC, LDD>(a, b + last, d + last, c + last);
  } else if constexpr (N >= H) {
    tile<T, 16, MR, 1, K, SA0, SA1, LDB, LDC, LDD>(a, b, d, c);
    constexpr int last = N - H;
    if constexpr (N > H)
      tile<T, 16, MR, 1, K, SA0, SA1, LDB, LDC, LDD>(a, b + last, d + last, c + last);
  } else {
    T acc[MR][N];
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < N; j++) acc[i][j] = LDD < 0 ? (T)0 : d[(int64_t)i * LDD + j];
    for (int k = 0; k < K; k++)
      for (int i = 0; i < MR; i++)
        for (int j = 0; j < N; j++)
          acc[i][j] += a[(int64_t)i * SA0 + (int64_t)k * SA1] * b[(int64_t)k * LDB + j];
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < N; j++) c[(int64_t)i * LDC + j] = acc[i][j];
  }
}

template <class T, int M, int N, int K, int SA0, int SA1, int LDB, int LDC, int LDD>
static __attribute__((noinline)) void small_gemm(const T* a, const T* b, const T* d, T* c) {
  constexpr int MR = 4;
  int i = 0;
  for (; i + MR <= M; i += MR)
    strip<T, MR, N, K, SA0, SA1, LDB, LDC, LDD>(
        a + (int64_t)i * SA0, b, LDD < 0 ? d : d + (int64_t)i * LDD, c + (int64_t)i * LDC);
  if constexpr (M % MR != 0)
    strip<T, M % MR, N, K, SA0, SA1, LDB, LDC, LDD>(
        a + (int64_t)i * SA0, b, LDD < 0 ? d : d + (int64_t)i * LDD, c + (int64_t)i * LDC);
}

template <class T>
static void plain_gemm(int m, int n, int k, const T* a, int64_t a0, int64_t a1, const T* b,
    int64_t b0, int64_t b1, bool add, T* c, int ldc) {
  for (int i = 0; i < m; i++) {
    T* row = c + (int64_t)i * ldc;
    if (!add)
      for (int j = 0; j < n; j++) row[j] = 0;
    for (int p = 0; p < k; p++) {
      const T s = a[i * a0 + p * a1];
      const T* from = b + p * b0;
      if (b1 == 1) {
#pragma omp simd
        for (int j = 0; j < n; j++) row[j] += s * from[j];
      } else {
        for (int j = 0; j < n; j++) row[j] += s * from[j * b1];
      }
    }
  }
}

// Row-major C = A B (+ C). A leading dimension belongs to the matrix as it lies in memory.
static void blas_gemm(const Ctx* cx, int m, int n, int k, const float* a, bool ta, int lda,
    const float* b, bool tb, int ldb, int beta, float* c, int ldc) {
  if (!cx->sgemm)
    return plain_gemm<float>(m, n, k, a, ta ? 1 : lda, ta ? lda : 1, b, tb ? 1 : ldb,
        tb ? ldb : 1, beta, c, ldc);
  const float one = 1, to = (float)beta;
  cx->sgemm(tb ? "T" : "N", ta ? "T" : "N", &n, &m, &k, &one, b, &ldb, a, &lda, &to, c, &ldc);
}
static void blas_gemm(const Ctx* cx, int m, int n, int k, const double* a, bool ta, int lda,
    const double* b, bool tb, int ldb, int beta, double* c, int ldc) {
  if (!cx->dgemm)
    return plain_gemm<double>(m, n, k, a, ta ? 1 : lda, ta ? lda : 1, b, tb ? 1 : ldb,
        tb ? ldb : 1, beta, c, ldc);
  const double one = 1, to = (double)beta;
  cx->dgemm(tb ? "T" : "N", ta ? "T" : "N", &n, &m, &k, &one, b, &ldb, a, &lda, &to, c, &ldc);
}
