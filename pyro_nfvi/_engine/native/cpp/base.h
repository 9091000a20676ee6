// What generated code stands on: types, and mathematics that the compiler can put into vectors.

// Mathematics of the C library, declared here: <cmath> takes longer to read than a step to parse.
// glibc has some of it in vectors; saying so lets loops be vectorised without -ffast-math.
#ifdef NFVI_LIBMVEC
#define NFVI_SIMD __attribute__((simd("notinbranch")))
#else
#define NFVI_SIMD
#endif
#define NFVI_DECLARE(name) \
  NFVI_SIMD double name(double) noexcept; \
  NFVI_SIMD float name##f(float) noexcept;
#define NFVI_SCALAR(name) \
  double name(double) noexcept; \
  float name##f(float) noexcept;
extern "C" {
NFVI_DECLARE(exp) NFVI_DECLARE(log) NFVI_DECLARE(sin) NFVI_DECLARE(cos) NFVI_DECLARE(tan)
NFVI_DECLARE(exp2) NFVI_DECLARE(log2) NFVI_DECLARE(log10) NFVI_DECLARE(expm1) NFVI_DECLARE(log1p)
NFVI_DECLARE(sinh) NFVI_DECLARE(cosh) NFVI_DECLARE(asin) NFVI_DECLARE(acos)
NFVI_DECLARE(atan) NFVI_DECLARE(asinh) NFVI_DECLARE(acosh) NFVI_DECLARE(atanh) NFVI_DECLARE(erf)
NFVI_DECLARE(erfc)
NFVI_SCALAR(sqrt) NFVI_SCALAR(fabs) NFVI_SCALAR(floor) NFVI_SCALAR(ceil) NFVI_SCALAR(trunc)
NFVI_SCALAR(rint)
NFVI_SIMD double pow(double, double) noexcept;
NFVI_SIMD float powf(float, float) noexcept;
NFVI_SIMD double atan2(double, double) noexcept;
NFVI_SIMD float atan2f(float, float) noexcept;
NFVI_SIMD double hypot(double, double) noexcept;
NFVI_SIMD float hypotf(float, float) noexcept;
double copysign(double, double) noexcept;
float copysignf(float, float) noexcept;
double fmod(double, double) noexcept;
float fmodf(float, float) noexcept;
}

#define NFVI_UNARY(name) \
  static inline double m_##name(double x) { return ::name(x); } \
  static inline float m_##name(float x) { return ::name##f(x); }
NFVI_UNARY(sin) NFVI_UNARY(cos) NFVI_UNARY(tan)
NFVI_UNARY(exp2) NFVI_UNARY(log2) NFVI_UNARY(log10) NFVI_UNARY(expm1)
NFVI_UNARY(sinh) NFVI_UNARY(cosh) NFVI_UNARY(asin) NFVI_UNARY(acos)
NFVI_UNARY(atan) NFVI_UNARY(asinh) NFVI_UNARY(acosh) NFVI_UNARY(atanh) NFVI_UNARY(erf)
NFVI_UNARY(erfc) NFVI_UNARY(sqrt)

#define NFVI_BINARY(name) \
  static inline double m_##name(double x, double y) { return ::name(x, y); } \
  static inline float m_##name(float x, float y) { return ::name##f(x, y); }
NFVI_BINARY(pow) NFVI_BINARY(atan2) NFVI_BINARY(hypot) NFVI_BINARY(copysign)

// Integers go through as they are.
#define NFVI_ROUND(name) \
  static inline double m_##name(double x) { return ::name(x); } \
  static inline float m_##name(float x) { return ::name##f(x); } \
  template <class T> static inline T m_##name(T x) { return x; }
NFVI_ROUND(floor) NFVI_ROUND(ceil) NFVI_ROUND(trunc) NFVI_ROUND(rint)

static inline double m_abs(double x) { return ::fabs(x); }
static inline float m_abs(float x) { return ::fabsf(x); }
template <class T> static inline T m_abs(T x) { return x < 0 ? (T)-x : x; }
template <class T> static inline T m_sq(T x) { return x * x; }
template <class T> static inline T m_cube(T x) { return x * x * x; }
template <class T> static inline T m_sign(T x) { return (T)((x > 0) - (x < 0)); }
template <class T> static inline T m_relu(T x) { return x < 0 ? (T)0 : x; }
// By the exponential of -|x|, which log(1 + exp(x)) takes too.
template <class T> static inline T m_sigmoid(T x) {
  const T e = m_exp(-m_abs(x));
  return (x < 0 ? e : (T)1) / (1 + e);
}

// NaN goes through the first two, and loses against a number in the others, as in torch.
template <class T> static inline T m_max(T a, T b) { return (a > b || a != a) ? a : b; }
template <class T> static inline T m_min(T a, T b) { return (a < b || a != a) ? a : b; }
template <class T> static inline T m_fmax(T a, T b) { return (a > b || b != b) ? a : b; }
template <class T> static inline T m_fmin(T a, T b) { return (a < b || b != b) ? a : b; }

template <class T> static inline bool m_isinf(T x) {
  return m_abs(x) == std::numeric_limits<T>::infinity();
}
template <class T> static inline bool m_isfinite(T x) {
  return m_abs(x) <= std::numeric_limits<T>::max();
}
template <class T> static inline T m_nan_to_num(T x, T nan, T top, T bottom) {
  return x != x ? nan : m_isinf(x) ? (x > 0 ? top : bottom) : x;
}

// Of the chain rule: an exact zero wins over what is not finite. Zeros are recognised by their bits,
// since gcc joins the conditions of a chain of products to what it does not vectorise.
static inline bool nfvi_zero(double x) {
  uint64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits << 1 == 0;
}
static inline bool nfvi_zero(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits << 1 == 0;
}
template <class T> static inline T m_product(T a, T b) {
  T value = a * b;
  value = nfvi_zero(a) ? (T)0 : value;
  return nfvi_zero(b) ? (T)0 : value;
}
template <class T> static inline T m_quotient(T a, T b) {
  T value = a / b;
  return nfvi_zero(a) ? (T)0 : value;
}
// The same with the inverse of b.
template <class T> static inline T m_part(T a, T inverse) {
  T value = a * inverse;
  return nfvi_zero(a) ? (T)0 : value;
}

template <class T> static inline T m_softplus_all(T x) {
  return m_max(x, (T)0) + nfvi_log1p_unit(m_exp(-m_abs(x)));
}
template <class T> static inline T m_log_sigmoid(T x) {
  return m_min(x, (T)0) - nfvi_log1p_unit(m_exp(-m_abs(x)));
}
template <class T> static inline T m_softplus(T x, T beta, T threshold) {
  T z = x * beta;
  return z > threshold ? x : m_softplus_all(z) / beta;
}
template <class T> static inline T m_softplus_backward(T g, T x, T beta, T threshold) {
  T z = x * beta;
  T share = m_sigmoid(z);
  return z > threshold ? g : g * share;
}
template <class T> static inline T m_logaddexp(T a, T b) {
  T gap = m_abs(a - b), top = m_max(a, b);
  return a == b ? a + (T)0.693147180559945309417 : top + nfvi_log1p_unit(m_exp(-gap));
}
template <class T> static inline T m_xlogy(T x, T y) {
  T value = x * m_log(y);
  return y != y ? y : (x == 0 ? (T)0 : value);
}
template <class T> static inline T m_xlog1py(T x, T y) {
  T value = x * m_log1p(y);
  return y != y ? y : (x == 0 ? (T)0 : value);
}

// Quotients and remainders in torch's sense (the sign of the divisor).
static inline int64_t m_div_floor(int64_t a, int64_t b) {
  int64_t q = a / b;
  return q - ((a % b != 0) && ((a < 0) != (b < 0)));
}
template <class T> static inline T m_div_floor(T a, T b) { return m_floor(a / b); }
template <class T> static inline T m_div_trunc(T a, T b) { return m_trunc((T)(a / b)); }
static inline int64_t m_remainder(int64_t a, int64_t b) { return a - b * m_div_floor(a, b); }
static inline float m_remainder(float a, float b) {
  float r = ::fmodf(a, b);
  return (r != 0 && ((b < 0) != (r < 0))) ? r + b : r;
}
static inline double m_remainder(double a, double b) {
  double r = ::fmod(a, b);
  return (r != 0 && ((b < 0) != (r < 0))) ? r + b : r;
}
static inline int64_t m_fmod(int64_t a, int64_t b) { return a % b; }
static inline float m_fmod(float a, float b) { return ::fmodf(a, b); }
static inline double m_fmod(double a, double b) { return ::fmod(a, b); }
static inline int64_t m_pow(int64_t a, int64_t b) {
  int64_t r = 1;
  for (int64_t k = 0; k < b; k++) r *= a;
  return r;
}
static inline int64_t m_wrap(int64_t i, int64_t n) { return i < 0 ? i + n : i; }

// Product of matrices by BLAS, column-major as it wants them.
typedef void (*nfvi_sgemm)(const char*, const char*, const int*, const int*, const int*,
    const float*, const float*, const int*, const float*, const int*, const float*, float*,
    const int*);
typedef void (*nfvi_dgemm)(const char*, const char*, const int*, const int*, const int*,
    const double*, const double*, const int*, const double*, const int*, const double*, double*,
    const int*);

// An operation that PyTorch computes: its number, and addresses of arguments and results.
typedef void (*nfvi_eager)(int64_t, void* const*);

// A log density with its gradient, compiled apart. All that its callers know is the first member:
// rows z (n, D), an address for each stream; log_p (n) and score (n, D) are written.
struct NfviTarget;
typedef void (*NfviTargetCall)(NfviTarget* self, const void* z, const void* const* streams,
    int64_t n, void* log_p, void* score);

struct Ctx {
  const void** in;
  void** out;
  const void** data;
  void* work;
  nfvi_sgemm sgemm;
  nfvi_dgemm dgemm;
  nfvi_eager eager;
  NfviTarget* target;
};

#define NFVI_API extern "C" __attribute__((visibility("default")))
