// Products with weights that have blocks of zeros, which a table leaves out (native/holes.py): for
// each strip of NFVI_STRIP rows the runs of columns that hold anything. What is skipped is zero
// times a number; where one of these is not finite, nothing is skipped.
#define NFVI_STRIP 8

template <class T> static bool nfvi_finite(const T* x, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i] * 0;
  return sum == 0;
}

// R rows from a: adds to acc the products of columns [begin, end) with x.
template <class T, int BYTES, int R, int LDA>
static inline __attribute__((always_inline)) void dots_run(
    const T* a, const T* x, int begin, int end, typename Vec<T, BYTES>::type* acc, T* rest) {
  typedef typename Vec<T, BYTES>::type V;
  constexpr int W = BYTES / sizeof(T);
  int k = begin;
  for (; k + W <= end; k += W) {
    const V v = *(const V*)(x + k);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) acc[i] += *(const V*)(a + (int64_t)i * LDA + k) * v;
  }
  for (; k < end; k++)
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) rest[i] += a[(int64_t)i * LDA + k] * x[k];
}

// c[i] = sum over k of a[i, k] x[k]
template <class T, int N, int K>
static __attribute__((noinline)) void dot_gemv_holes(
    const T* a, const T* x, T* c, const int32_t* table) {
  constexpr int BYTES = NFVI_BYTES, R = NFVI_STRIP;
  typedef typename Vec<T, BYTES>::type V;
  if (!nfvi_finite(x, K)) return plain_gemm<T>(N, 1, K, a, K, 1, x, 1, 1, false, c, 1);
  const int32_t* runs = table + (N + R - 1) / R + 1;
  for (int s = 0; s * R < N; s++) {
    V acc[R];
    T rest[R] = {};
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) acc[i] = V{};
    const T* from = a + (int64_t)s * R * K;
    if (s * R + R <= N) {
      for (int q = table[s]; q < table[s + 1]; q++)
        dots_run<T, BYTES, R, K>(from, x, runs[2 * q], runs[2 * q + 1], acc, rest);
      sums<T, BYTES, R>(acc, c + s * R);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) c[s * R + i] += rest[i];
    } else {
      for (int i = 0; s * R + i < N; i++) {
        for (int q = table[s]; q < table[s + 1]; q++)
          dots_run<T, BYTES, 1, K>(
              from + (int64_t)i * K, x, runs[2 * q], runs[2 * q + 1], acc + i, rest + i);
        c[s * R + i] = lanes<T, BYTES>(acc[i]) + rest[i];
      }
    }
  }
}

// c[j] = sum over k of x[k] b[k, j]; the strips are of rows k.
template <class T, int N, int K>
static __attribute__((noinline)) void row_gemv_holes(
    const T* b, const T* x, T* c, const int32_t* table) {
  constexpr int R = NFVI_STRIP;
  if (!nfvi_finite(x, K)) return plain_gemm<T>(1, N, K, x, K, 1, b, N, 1, false, c, N);
  const int32_t* runs = table + (K + R - 1) / R + 1;
  for (int j = 0; j < N; j++) c[j] = 0;
  for (int s = 0; s * R < K; s++) {
    const int count = K - s * R < R ? K - s * R : R;
    const T *y = x + s * R, *from = b + (int64_t)s * R * N;
    for (int q = table[s]; q < table[s + 1]; q++) {
      const int begin = runs[2 * q], end = runs[2 * q + 1];
      if (count == R) {
#pragma omp simd
        for (int j = begin; j < end; j++) {
          const T *p = from + j;
          c[j] += ((y[0] * p[0] + y[1] * p[N]) + (y[2] * p[2 * N] + y[3] * p[3 * N])) +
              ((y[4] * p[4 * N] + y[5] * p[5 * N]) + (y[6] * p[6 * N] + y[7] * p[7 * N]));
        }
      } else {
        for (int i = 0; i < count; i++)
#pragma omp simd
          for (int j = begin; j < end; j++) c[j] += y[i] * from[i * N + j];
      }
    }
  }
}

// A number that is not finite in what is skipped is seen all the same: the norm gets a NaN.
template <class T>
static void nfvi_poison(const T* t, int64_t m, const T* x, int64_t n, T* c, int ldc,
    const int32_t* table, int strips) {
  if (nfvi_finite(t, m) && nfvi_finite(x, n)) return;
  for (int s = 0; s < strips; s++)
    if (table[s] < table[s + 1]) {
      c[(int64_t)s * NFVI_STRIP * ldc + table[strips + 1 + 2 * table[s]]] =
          std::numeric_limits<T>::quiet_NaN();
      return;
    }
}

// c[i, j] = t[i] x[j] mask[i, j]: the gradient of weights by one particle. Blocks within the runs
// may be full in all rows but the last and first few, which alone look at the mask.
template <class T, int M, int N>
static __attribute__((noinline)) void outer_holes(
    const T* t, const T* x, const T* mask, T* c, const int32_t* table, const int32_t* full) {
  constexpr int R = NFVI_STRIP, STRIPS = (M + R - 1) / R;
  const int32_t *runs = table + STRIPS + 1, *inner = full + STRIPS + 1;
  for (int s = 0; s < STRIPS; s++)
    for (int i = s * R; i < M && i < s * R + R; i++) {
      const int64_t from = (int64_t)i * N;
      const T f = t[i];
      int in = full[s];
      for (int q = table[s]; q < table[s + 1]; q++) {
        int j = runs[2 * q];
        const int end = runs[2 * q + 1];
        while (j < end) {
          const bool some = in < full[s + 1] && inner[2 * in] < end;
          const int begin = some ? inner[2 * in] : end;
#pragma omp simd
          for (int k = j; k < begin; k++) c[from + k] = f * x[k] * mask[from + k];
          j = begin;
          if (!some) continue;
          const int stop = inner[2 * in + 1];
#pragma omp simd
          for (int k = j; k < stop; k++) c[from + k] = f * x[k];
          j = stop;
          in++;
        }
      }
    }
  nfvi_poison(t, M, x, N, c, N, table, STRIPS);
}

// R rows of c = a b for NV vectors of columns; a's columns are those of the runs.
template <class T, int BYTES, int R, int NV, int SA0, int SA1, int LDB, int LDC, int LDD>
static inline __attribute__((always_inline)) void tile_holes(const T* a, const T* b, const T* d,
    T* c, const int32_t* runs, int first, int last) {
  typedef typename Vec<T, BYTES>::type V;
  constexpr int W = BYTES / sizeof(T);
  V acc[R][NV];
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++)
      if constexpr (LDD == -1) acc[i][j] = V{};
      else if constexpr (LDD == -2) acc[i][j] = V{} + d[i];
      else acc[i][j] = *(const V*)(d + (int64_t)i * LDD + W * j);
  for (int q = first; q < last; q++)
#pragma GCC unroll 1
    for (int k = runs[2 * q]; k < runs[2 * q + 1]; k++) {
      V row[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) row[j] = *(const V*)(b + (int64_t)k * LDB + W * j);
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        T s = a[(int64_t)i * SA0 + (int64_t)k * SA1];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) acc[i][j] += s * row[j];
      }
    }
#pragma GCC unroll 8
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) *(V*)(c + (int64_t)i * LDC + W * j) = acc[i][j];
}

// C[M,N] = A[M,K] B[K,N] (+ D), holes in A, N numbers fill whole vectors; the table is of A's rows.
template <class T, int M, int N, int K, int SA0, int SA1, int LDB, int LDC, int LDD>
static __attribute__((noinline)) void gemm_holes(
    const T* a, const T* b, const T* d, T* c, const int32_t* table) {
  constexpr int BYTES = nfvi_bytes<T, N>(), W = BYTES / sizeof(T), R = NFVI_STRIP;
  static_assert(N % W == 0, "whole vectors");
  constexpr int REST = M % R, FULL = M / R, NV = N % (2 * W) == 0 ? 2 : 1;
  const int32_t* runs = table + (M + R - 1) / R + 1;
  bool fine = true;
  for (int k = 0; k < K; k++) fine = fine && nfvi_finite(b + (int64_t)k * LDB, N);
  if (!fine) {
    if (LDD != -1)
      for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++)
          c[(int64_t)i * LDC + j] = LDD == -2 ? d[i] : d[(int64_t)i * LDD + j];
    return plain_gemm<T>(M, N, K, a, SA0, SA1, b, LDB, 1, LDD != -1, c, LDC);
  }
  for (int s = 0; s < FULL; s++)
    for (int j = 0; j < N; j += NV * W)
      tile_holes<T, BYTES, R, NV, SA0, SA1, LDB, LDC, LDD>(a + (int64_t)s * R * SA0, b + j,
          LDD < 0 ? nfvi_row<LDD>(d, s * R) : nfvi_row<LDD>(d, s * R) + j,
          c + (int64_t)s * R * LDC + j, runs, table[s], table[s + 1]);
  if constexpr (REST != 0)
    for (int j = 0; j < N; j += NV * W)
      tile_holes<T, BYTES, REST, NV, SA0, SA1, LDB, LDC, LDD>(a + (int64_t)FULL * R * SA0, b + j,
          LDD < 0 ? nfvi_row<LDD>(d, FULL * R) : nfvi_row<LDD>(d, FULL * R) + j,
          c + (int64_t)FULL * R * LDC + j, runs, table[FULL], table[FULL + 1]);
}

// C[M,N] = (A[M,K] B[K,N]) * mask where the table of C's rows has runs: the gradient of weights.
template <class T, int M, int N, int K, int SA0, int SA1, int LDB>
static __attribute__((noinline)) void gradient_holes(
    const T* a, const T* b, const T* mask, T* c, const int32_t* table) {
  constexpr int BYTES = NFVI_BYTES, W = BYTES / sizeof(T), R = NFVI_STRIP;
  typedef typename Vec<T, BYTES>::type V;
  constexpr int STRIPS = (M + R - 1) / R;
  const int32_t* runs = table + STRIPS + 1;
  T room[R * 2 * W];
  for (int s = 0; s < STRIPS; s++) {
    const T* left = a + (int64_t)s * R * SA0;
    const int count = M - s * R < R ? M - s * R : R;
    for (int q = table[s]; q < table[s + 1]; q++) {
      const int end = runs[2 * q + 1];
      int j = runs[2 * q];
      if (count == R) {
        for (; j + 2 * W <= end; j += 2 * W) {
          tile<T, BYTES, R, 2, K, SA0, SA1, LDB, 2 * W, -1>(left, b + j, nullptr, room);
#pragma GCC unroll 8
          for (int i = 0; i < R; i++) {
            const int64_t at = (int64_t)(s * R + i) * N + j;
#pragma GCC unroll 2
            for (int v = 0; v < 2 * W; v += W)
              *(V*)(c + at + v) = *(const V*)(room + i * 2 * W + v) * *(const V*)(mask + at + v);
          }
        }
      }
      for (; j < end; j += W) {
        const int wide = end - j < W ? end - j : W;
        for (int i = 0; i < count; i++) {
          T sum[W] = {};
          for (int k = 0; k < K; k++)
#pragma omp simd
            for (int v = 0; v < wide; v++)
              sum[v] += left[(int64_t)i * SA0 + (int64_t)k * SA1] * b[(int64_t)k * LDB + j + v];
          const int64_t at = (int64_t)(s * R + i) * N + j;
          for (int v = 0; v < wide; v++) c[at + v] = sum[v] * mask[at + v];
        }
      }
    }
  }
  for (int k = 0; k < K; k++)
    nfvi_poison(b + (int64_t)k * LDB, N, b + (int64_t)k * LDB, N, c, N, table, STRIPS);
  if (SA0 == 1 || SA1 == 1)
    for (int k = 0; k < (SA0 == 1 ? K : M); k++) {
      const T* row = a + (int64_t)k * (SA0 == 1 ? SA1 : SA0);
      nfvi_poison(row, SA0 == 1 ? M : K, row, 0, c, N, table, STRIPS);
    }
}
