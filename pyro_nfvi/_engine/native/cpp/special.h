// Special functions. In double inside; float arguments are widened, so that they lose nothing.

// (x)(x+1)...(x+7) by pairs, with u = x (x + 7).
static inline double nfvi_rising(double u) { return u * (u + 6) * (u + 10) * (u + 12); }

// Gamma function: shifted up by 8 where x is small, then Stirling's series (DLMF 5.11.1); below 0
// by reflection (DLMF 5.5.3). Without branches, so that it runs in vectors.
static inline double m_lgamma(double x) {
  const bool low = x <= 0;
  const double y = low ? 1 - x : x;
  const bool small = y < 8;
  const double z = small ? y + 8 : y, r = 1 / z, q = r * r;
  const double series = r * (1.0 / 12 - q * (1.0 / 360 - q * (1.0 / 1260 - q * (1.0 / 1680 -
      q * (1.0 / 1188 - q * (691.0 / 360360 - q * (1.0 / 156)))))));
  const double shift = small ? nfvi_rising(y * (y + 7)) : 1.0;
  double value = (z - 0.5) * m_log(z) - z + 0.91893853320467274178 + series - m_log(shift);
  value = z == std::numeric_limits<double>::infinity() ? z : value;
  const double away = x - m_rint(x);
  const double mirror = m_log(3.14159265358979323846 / m_abs(m_sin(3.14159265358979323846 * away)));
  return low ? mirror - value : value;
}
static inline float m_lgamma(float x) { return (float)m_lgamma((double)x); }

// DLMF 5.11.2 after the same shift; 5.5.4 below 0.
static inline double m_digamma(double x) {
  const bool low = x <= 0;
  const double y = low ? 1 - x : x;
  const bool small = y < 8;
  const double z = small ? y + 8 : y, r = 1 / z, q = r * r;
  const double series = q * (1.0 / 12 - q * (1.0 / 120 - q * (1.0 / 252 - q * (1.0 / 240 -
      q * (1.0 / 132 - q * (691.0 / 32760 - q * (1.0 / 12)))))));
  const double u = y * (y + 7), a = u + 6, b = u + 10, c = u + 12;
  const double sum = (2 * y + 7) * (a * b * c + u * (b * c + a * (b + c))) / (u * a * b * c);
  double value = m_log(z) - 0.5 * r - series - (small ? sum : 0.0);
  // The cotangent by the tangent: gcc joins a sine and a cosine to what it does not vectorise.
  const double away = x - m_rint(x);
  const double mirror = 3.14159265358979323846 / m_tan(3.14159265358979323846 * away);
  const double pole = -1 / x;  // of the sign that torch gives it
  value = low ? value - mirror : value;
  value = low & (away == 0) ? std::numeric_limits<double>::quiet_NaN() : value;
  return x == 0 ? pole : value;
}
static inline float m_digamma(float x) { return (float)m_digamma((double)x); }

// Hurwitz zeta function for s > 1 and a > 0 by Euler and Maclaurin (DLMF 25.11.28).
static inline double nfvi_zeta(double s, double a) {
  double sum = 0;
  for (int k = 0; k < 12; k++) sum += ::pow(a + k, -s);
  const double z = a + 12;
  sum += ::pow(z, 1 - s) / (s - 1) + 0.5 * ::pow(z, -s);
  static const double bernoulli[] = {1.0 / 6, -1.0 / 30, 1.0 / 42, -1.0 / 30, 5.0 / 66,
      -691.0 / 2730, 7.0 / 6, -3617.0 / 510};
  double factor = s * ::pow(z, -s - 1) / 2;
  for (int k = 0; k < 8; k++) {
    sum += bernoulli[k] * factor;
    factor *= (s + 2 * k + 1) * (s + 2 * k + 2) / (z * z * (2 * k + 3) * (2 * k + 4));
  }
  return sum;
}
static inline double m_trigamma(double x) {
  if (x > 0) return x == std::numeric_limits<double>::infinity() ? 0 : nfvi_zeta(2, x);
  const double s = ::sin(3.14159265358979323846 * (x - ::rint(x)));
  return 9.86960440108935861883 / (s * s) - nfvi_zeta(2, 1 - x);
}
static inline float m_trigamma(float x) { return (float)m_trigamma((double)x); }
static inline double m_polygamma(int n, double x) {
  double value = n % 2 ? 1 : -1;
  for (int k = 2; k <= n; k++) value *= k;
  return x > 0 ? value * nfvi_zeta(n + 1, x) : std::numeric_limits<double>::quiet_NaN();
}
static inline float m_polygamma(int n, float x) { return (float)m_polygamma(n, (double)x); }

// Quantile of the standard normal: Abramowitz and Stegun 26.2.23, then Halley steps.
static inline double m_ndtri(double p) {
  if (!(p > 0 && p < 1)) {
    if (p == 0) return -std::numeric_limits<double>::infinity();
    if (p == 1) return std::numeric_limits<double>::infinity();
    return std::numeric_limits<double>::quiet_NaN();
  }
  const double tail = p < 0.5 ? p : 1 - p;
  const double t = ::sqrt(-2 * ::log(tail));
  double x = (2.515517 + t * (0.802853 + t * 0.010328)) /
          (1 + t * (1.432788 + t * (0.189269 + t * 0.001308))) - t;
  for (int k = 0; k < 3; k++) {
    const double e = 0.5 * ::erfc(-x * 0.70710678118654752440) - tail;
    const double u = e * 2.50662827463100050242 * ::exp(0.5 * x * x);
    x -= u / (1 + 0.5 * x * u);
  }
  return p < 0.5 ? x : -x;
}
static inline float m_ndtri(float p) { return (float)m_ndtri((double)p); }

// From the quantile; near 0, where that loses digits, Newton steps on erf itself.
static inline double m_erfinv(double y) {
  if (!(y > -1 && y < 1)) {
    if (y == 1 || y == -1) return y * std::numeric_limits<double>::infinity();
    return std::numeric_limits<double>::quiet_NaN();
  }
  double x = m_ndtri(0.5 * (1 + y)) * 0.70710678118654752440;
  for (int k = 0; k < 2; k++)
    x -= (::erf(x) - y) * 0.88622692545275801365 * ::exp(x * x);
  return x;
}
static inline float m_erfinv(float y) { return (float)m_erfinv((double)y); }

static inline double m_log_ndtr(double x) {
  const double h = 0.70710678118654752440;
  if (x > 0) return ::log1p(-0.5 * ::erfc(x * h));
  if (x > -20) return ::log(0.5 * ::erfc(-x * h));
  const double q = 1 / (x * x);
  const double tail = 1 - q * (1 - 3 * q * (1 - 5 * q * (1 - 7 * q * (1 - 9 * q))));
  return -0.5 * x * x - ::log(-x) - 0.91893853320467274178 + ::log(tail);
}
static inline float m_log_ndtr(float x) { return (float)m_log_ndtr((double)x); }

// Modified Bessel functions times e^-|x|: power series (DLMF 10.25.2), for large x 10.40.1.
static inline double nfvi_bessel(int order, double x) {
  const double a = ::fabs(x);
  double value;
  if (a < 30) {
    double term = order ? 0.5 * a : 1, q = 0.25 * a * a;
    value = term;
    for (int k = 1; k < 200; k++) {
      term *= q / (k * (k + order));
      value += term;
      if (term < 1e-17 * value) break;
    }
    value *= ::exp(-a);
  } else {
    double term = 1, mu = 4.0 * order * order;
    value = 1;
    for (int k = 1; k < 20; k++) {
      term *= -(mu - (2 * k - 1) * (2 * k - 1)) / (8 * k * a);
      value += term;
    }
    value /= ::sqrt(6.28318530717958647693 * a);
  }
  return order && x < 0 ? -value : value;
}
#define NFVI_BESSEL(name, order, grow) \
  static inline double m_##name(double x) { return nfvi_bessel(order, x) grow; } \
  static inline float m_##name(float y) { double x = y; return (float)(nfvi_bessel(order, x) grow); }
NFVI_BESSEL(i0e, 0, ) NFVI_BESSEL(i1e, 1, )
NFVI_BESSEL(i0, 0, * ::exp(::fabs(x))) NFVI_BESSEL(i1, 1, * ::exp(::fabs(x)))
