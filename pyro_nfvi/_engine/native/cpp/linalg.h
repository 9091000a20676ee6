// Factorisations of small dense matrices, row-major, one page after the other.

// A = L L^T in place of L; what is not positive definite becomes NaN. Upper: the transpose.
template <class T> static void cholesky(int64_t n, T* l, bool upper) {
  bool good = true;
  if (upper)
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < i; j++) l[i * n + j] = l[j * n + i];
  for (int64_t i = 0; i < n && good; i++) {
    T* row = l + i * n;
    for (int64_t j = 0; j <= i; j++) {
      const T* other = l + j * n;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = 0; k < j; k++) sum += row[k] * other[k];
      if (j < i) {
        row[j] = (row[j] - sum) / other[j];
      } else {
        const T rest = row[i] - sum;
        good = rest > 0;
        row[i] = m_sqrt(rest);
      }
    }
  }
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = i + 1; j < n; j++) l[i * n + j] = 0;
  if (!good)
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j <= i; j++) l[i * n + j] = std::numeric_limits<T>::quiet_NaN();
  if (upper)
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < i; j++) l[j * n + i] = l[i * n + j], l[i * n + j] = 0;
}

// A X = B in place of B, whose rows are x0 apart and whose columns x1.
template <class T>
static void solve_triangular(int64_t n, int64_t m, const T* a, int64_t a0, int64_t a1, bool upper,
    bool unit, T* x, int64_t x0, int64_t x1) {
  for (int64_t step = 0; step < n; step++) {
    const int64_t i = upper ? n - 1 - step : step;
    T* row = x + i * x0;
    const int64_t begin = upper ? i + 1 : 0, end = upper ? n : i;
    if (m == 1 && a1 == 1 && x0 == 1) {
      T sum = 0;
      const T* from = a + i * a0;
#pragma omp simd reduction(+ : sum)
      for (int64_t k = begin; k < end; k++) sum += from[k] * x[k];
      row[0] -= sum;
    } else {
      int64_t k = begin;
      if (x1 == 1)
        for (; k + 4 <= end; k += 4) {
          const T* of = a + i * a0 + k * a1;
          const T s = of[0], t = of[a1], u = of[2 * a1], v = of[3 * a1];
          const T *p = x + k * x0, *q = p + x0, *r = q + x0, *w = r + x0;
#pragma omp simd
          for (int64_t j = 0; j < m; j++) row[j] -= (s * p[j] + t * q[j]) + (u * r[j] + v * w[j]);
        }
      for (; k < end; k++) {
        const T s = a[i * a0 + k * a1];
        const T* other = x + k * x0;
        if (x1 == 1) {
#pragma omp simd
          for (int64_t j = 0; j < m; j++) row[j] -= s * other[j];
        } else {
          for (int64_t j = 0; j < m; j++) row[j * x1] -= s * other[j * x1];
        }
      }
    }
    if (!unit) {
      const T d = a[i * a0 + i * a1];
      for (int64_t j = 0; j < m; j++) row[j * x1] /= d;
    }
  }
}

// P A = L U in place, with LAPACK's pivots (from 1); returns the sign of the permutation.
template <class T> static T lu_factor(int64_t n, T* a, int32_t* pivots) {
  T sign = 1;
  for (int64_t k = 0; k < n; k++) {
    int64_t p = k;
    for (int64_t i = k + 1; i < n; i++)
      if (m_abs(a[i * n + k]) > m_abs(a[p * n + k])) p = i;
    pivots[k] = (int32_t)(p + 1);
    if (p != k) {
      sign = -sign;
      for (int64_t j = 0; j < n; j++) {
        const T held = a[k * n + j];
        a[k * n + j] = a[p * n + j];
        a[p * n + j] = held;
      }
    }
    for (int64_t i = k + 1; i < n; i++) {
      const T s = a[i * n + k] /= a[k * n + k];
#pragma omp simd
      for (int64_t j = k + 1; j < n; j++) a[i * n + j] -= s * a[k * n + j];
    }
  }
  return sign;
}

// A X = B (or A^T X = B) from the factors, in place of B.
template <class T>
static void lu_solve(int64_t n, int64_t m, const T* lu, const int32_t* pivots, bool adjoint, T* x,
    int64_t x0, int64_t x1) {
  auto swap = [&](int64_t k) {
    const int64_t p = pivots[k] - 1;
    if (p != k)
      for (int64_t j = 0; j < m; j++) {
        const T held = x[k * x0 + j * x1];
        x[k * x0 + j * x1] = x[p * x0 + j * x1];
        x[p * x0 + j * x1] = held;
      }
  };
  if (!adjoint) {
    for (int64_t k = 0; k < n; k++) swap(k);
    solve_triangular<T>(n, m, lu, n, 1, false, true, x, x0, x1);
    solve_triangular<T>(n, m, lu, n, 1, true, false, x, x0, x1);
  } else {
    solve_triangular<T>(n, m, lu, 1, n, false, false, x, x0, x1);
    solve_triangular<T>(n, m, lu, 1, n, true, true, x, x0, x1);
    for (int64_t k = n - 1; k >= 0; k--) swap(k);
  }
}

// A = Q R by Householder reflections, with LAPACK's signs. A (n, k) is used up; q has m columns.
template <class T>
static void qr(int64_t n, int64_t k, int64_t m, T* a, T* tau, T* q, T* r, int64_t rows) {
  const int64_t steps = n < k ? n : k;
  for (int64_t j = 0; j < steps; j++) {
    T square = 0;
    for (int64_t i = j + 1; i < n; i++) square += a[i * k + j] * a[i * k + j];
    const T alpha = a[j * k + j];
    if (square == 0) {
      tau[j] = 0;
      continue;
    }
    const T length = m_sqrt(alpha * alpha + square), beta = alpha > 0 ? -length : length;
    tau[j] = (beta - alpha) / beta;
    for (int64_t i = j + 1; i < n; i++) a[i * k + j] /= alpha - beta;
    a[j * k + j] = beta;
    for (int64_t c = j + 1; c < k; c++) {
      T dot = a[j * k + c];
      for (int64_t i = j + 1; i < n; i++) dot += a[i * k + j] * a[i * k + c];
      dot *= tau[j];
      a[j * k + c] -= dot;
      for (int64_t i = j + 1; i < n; i++) a[i * k + c] -= dot * a[i * k + j];
    }
  }
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < k; j++) r[i * k + j] = i <= j ? a[i * k + j] : (T)0;
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < m; j++) q[i * m + j] = i == j ? 1 : 0;
  for (int64_t j = steps - 1; j >= 0; j--)
    for (int64_t c = j; c < m; c++) {
      T dot = q[j * m + c];
      for (int64_t i = j + 1; i < n; i++) dot += a[i * k + j] * q[i * m + c];
      dot *= tau[j];
      q[j * m + c] -= dot;
      for (int64_t i = j + 1; i < n; i++) q[i * m + c] -= dot * a[i * k + j];
    }
}
