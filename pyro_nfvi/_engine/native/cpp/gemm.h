// Products of matrices whose sizes are known: C[M,N] = A[M,K] B[K,N] (+ D), B, C, D with dense rows.
// ``ints`` are as many whole numbers of the same size: what chooses lanes.
template <class T, int B> struct Vec;
#define NFVI_VEC(T, I, B) \
  template <> struct Vec<T, B> { \
    typedef T type __attribute__((vector_size(B), aligned(sizeof(T)), may_alias)); \
    typedef I ints __attribute__((vector_size(B))); \
  };
NFVI_VEC(float, int32_t, 64) NFVI_VEC(float, int32_t, 32) NFVI_VEC(float, int32_t, 16)
NFVI_VEC(double, int64_t, 64) NFVI_VEC(double, int64_t, 32) NFVI_VEC(double, int64_t, 16)

#ifdef __AVX512F__
#define NFVI_BYTES 64
#define NFVI_ROWS 8
#else
#define NFVI_BYTES 32
#define NFVI_ROWS 4
#endif

// One tile: MR rows, NV vectors of W numbers. LDD: -1 nothing is added, -2 a number for each row.
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
      if constexpr (LDD == -1) acc[i][j] = V{};
      else if constexpr (LDD == -2) acc[i][j] = V{} + d[i];
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

// The longest vector that N numbers fill.
template <class T, int N> constexpr int nfvi_bytes() {
  return N * (int)sizeof(T) >= NFVI_BYTES ? NFVI_BYTES
      : N * (int)sizeof(T) >= 32 ? 32
      : N * (int)sizeof(T) >= 16 ? 16 : 0;
}

template <class T, int MR, int N, int K, int SA0, int SA1, int LDB, int LDC, int LDD>
static inline __attribute__((always_inline)) void strip(
    const T* a, const T* b, const T* d, T* c) {
  constexpr int BYTES = nfvi_bytes<T, N>();
  if constexpr (BYTES > 0) {
    constexpr int W = BYTES / sizeof(T), two = N / (2 * W) * (2 * W), one = N / W * W;
    for (int j = 0; j < two; j += 2 * W)
      tile<T, BYTES, MR, 2, K, SA0, SA1, LDB, LDC, LDD>(a, b + j, LDD < 0 ? d : d + j, c + j);
    if constexpr (one > two)
      tile<T, BYTES, MR, 1, K, SA0, SA1, LDB, LDC, LDD>(
          a, b + two, LDD < 0 ? d : d + two, c + two);
    if constexpr (N > one) {
      // The last columns with some of those before them: the sums start afresh, so nothing is
      // added twice.
      constexpr int part = N - one, wide = part * (int)sizeof(T);
      constexpr int bytes = wide > 32 && BYTES == 64 ? 64 : wide > 16 && BYTES >= 32 ? 32 : 16;
      constexpr int last = N - bytes / (int)sizeof(T);
      tile<T, bytes, MR, 1, K, SA0, SA1, LDB, LDC, LDD>(
          a, b + last, LDD < 0 ? d : d + last, c + last);
    }
  } else {
    T acc[MR][N];
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < N; j++) acc[i][j] = LDD == -1 ? (T)0 : LDD == -2 ? d[i] : d[(int64_t)i * LDD + j];
    for (int k = 0; k < K; k++)
      for (int i = 0; i < MR; i++)
        for (int j = 0; j < N; j++)
          acc[i][j] += a[(int64_t)i * SA0 + (int64_t)k * SA1] * b[(int64_t)k * LDB + j];
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < N; j++) c[(int64_t)i * LDC + j] = acc[i][j];
  }
}

template <int LDD, class T> static inline const T* nfvi_row(const T* d, int64_t i) {
  return LDD == -1 ? d : LDD == -2 ? d + i : d + i * LDD;
}

// Whether all numbers of a matrix are zero; another one ends it.
template <class T>
static bool nfvi_nothing(int64_t m, int64_t n, const T* x, int64_t x0, int64_t x1) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++)
      if (!(x[i * x0 + j * x1] == 0)) return false;
  return true;
}
// Whether none is infinite or NaN.
template <class T>
static bool nfvi_finite_matrix(int64_t m, int64_t n, const T* x, int64_t x0, int64_t x1) {
  T sum = 0;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) sum += 0 * x[i * x0 + j * x1];
  return sum == 0;
}

template <class T, int M, int N, int K, int SA0, int SA1, int LDB, int LDC, int LDD>
static __attribute__((noinline)) void small_gemm(const T* a, const T* b, const T* d, T* c) {
  // Products that count where a matrix is not finite have nothing to count, as a rule.
  if constexpr (LDD == -1 && (int64_t)M * N * K >= 1 << 15) {
    if ((nfvi_nothing(M, K, a, SA0, SA1) && nfvi_finite_matrix(K, N, b, LDB, 1)) ||
        (nfvi_nothing(K, N, b, LDB, 1) && nfvi_finite_matrix(M, K, a, SA0, SA1))) {
      for (int64_t i = 0; i < M; i++)
        for (int64_t j = 0; j < N; j++) c[i * LDC + j] = 0;
      return;
    }
  }
  constexpr int MR = M < NFVI_ROWS ? M : NFVI_ROWS, FULL = M / MR * MR, REST = M % MR;
  for (int i = 0; i < FULL; i += MR)
    strip<T, MR, N, K, SA0, SA1, LDB, LDC, LDD>(
        a + (int64_t)i * SA0, b, nfvi_row<LDD>(d, i), c + (int64_t)i * LDC);
  if constexpr (REST != 0)
    strip<T, REST, N, K, SA0, SA1, LDB, LDC, LDD>(a + (int64_t)FULL * SA0, b,
        nfvi_row<LDD>(d, FULL), c + (int64_t)FULL * LDC);
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
