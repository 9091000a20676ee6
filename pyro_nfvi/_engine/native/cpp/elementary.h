// exp, log, log1p and tanh without branches and calls, so that loops over them become vectors on
// any processor and equal ones are computed once. Errors are below 1 unit in the last place, those
// of tanh below 3. NaN goes through, and so do infinite, subnormal and signed numbers as in the C
// library. Reductions of the argument: Cody and Waite (1980); polynomials: Chebyshev fits of the
// remainder, whose error is below a tenth of a unit.
#include <limits>
#include <stdint.h>

static inline uint64_t nfvi_bits(double x) {
  uint64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
static inline uint32_t nfvi_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
static inline double nfvi_number(uint64_t bits) {
  double x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
static inline float nfvi_number(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// r = y - k log(2) with k = round(y / log(2)), |r| <= log(2) / 2, and exp(r) - 1. Adding 1.5 2^52
// rounds to an integer, which the last bits hold: t is k with that added.
struct nfvi_parts_double { double t, rest; };
struct nfvi_parts_float { float t, rest; };
static inline nfvi_parts_double nfvi_exp_parts(double y) {
  const double t = y * 1.4426950408889634 + 0x1.8p52, k = t - 0x1.8p52;
  const double r = (y - k * 0.6931471803691238) - k * 1.9082149292705877e-10;
  const double r2 = r * r, r4 = r2 * r2;
  const double c0 = 0.5 + r * 0.16666666666666669;
  const double c2 = 0.04166666666662399 + r * 0.008333333333330051;
  const double c4 = 0.0013888888917281794 + r * 0.00019841269863105968;
  const double c6 = 2.480152119021773e-05 + r * 2.7557268378684192e-06;
  const double c8 = 2.7620138719733994e-07 + r * 2.5100424157005067e-08;
  return {t, r + r2 * ((c0 + r2 * c2) + r4 * ((c4 + r2 * c6) + r4 * c8))};
}
static inline nfvi_parts_float nfvi_exp_parts(float y) {
  const float t = y * 1.44269504f + 0x1.8p23f, k = t - 0x1.8p23f;
  const float r = (y - k * 0.693145751953125f) - k * 1.4286068203e-06f;
  const float r2 = r * r;
  const float c0 = 0.5f + r * 0.16666576846f, c2 = 0.04166655444f + r * 0.00836320297f;
  return {t, r + r2 * (c0 + r2 * (c2 + r2 * 0.00139262135f))};
}

// exp(x) = 2^k exp(r); 2^k is a product of two, since it may be too small or too large for one.
static inline double m_exp(double x) {
  double y = x > 710.0 ? 710.0 : x;
  y = y < -746.0 ? -746.0 : y;
  const auto [t, rest] = nfvi_exp_parts(y);
  const uint64_t first = nfvi_bits((t - 0x1.8p52) * 0.5 + 0x1.8p52);
  const uint64_t second = nfvi_bits(t) - first;
  return (1.0 + rest) * nfvi_number((first + 1023) << 52) * nfvi_number((second + 1023) << 52);
}
static inline float m_exp(float x) {
  float y = x > 89.0f ? 89.0f : x;
  y = y < -104.0f ? -104.0f : y;
  const auto [t, rest] = nfvi_exp_parts(y);
  const uint32_t first = nfvi_bits((t - 0x1.8p23f) * 0.5f + 0x1.8p23f);
  const uint32_t second = nfvi_bits(t) - first;
  return (1.0f + rest) * nfvi_number((first + 127) << 23) * nfvi_number((second + 127) << 23);
}

// tanh(x) = -e / (2 + e) with the sign of x and e = exp(-2 |x|) - 1 = 2^k (exp(r) - 1) + (2^k - 1),
// whose terms have one sign. Beyond the bound tanh is 1 to the last place.
static inline double m_tanh(double x) {
  double y = -2.0 * __builtin_fabs(x);
  y = y < -44.0 ? -44.0 : y;
  const auto [t, rest] = nfvi_exp_parts(y);
  const double power = nfvi_number((nfvi_bits(t) + 1023) << 52);
  const double e = power * rest + (power - 1.0);
  return __builtin_copysign(e / (2.0 + e), x);
}
static inline float m_tanh(float x) {
  float y = -2.0f * __builtin_fabsf(x);
  y = y < -20.0f ? -20.0f : y;
  const auto [t, rest] = nfvi_exp_parts(y);
  const float power = nfvi_number((nfvi_bits(t) + 127) << 23);
  const float e = power * rest + (power - 1.0f);
  return __builtin_copysignf(e / (2.0f + e), x);
}

// log(x) + rest; x = 2^k (1 + f), 1 + f within [sqrt(1/2), sqrt(2)), and log(1 + f) =
// 2 atanh(f / (2 + f)), its first terms f - f^2 / 2 apart, where they are exact or small.
static inline double nfvi_log(double x, double rest) {
  const bool small = x < 0x1p-1022;
  const uint64_t bits = nfvi_bits(small ? x * 0x1p54 : x);
  const uint64_t e = (bits + (0x3ff0000000000000 - 0x3fe6a09e667f3bcd)) >> 52;
  const double k = nfvi_number(e | 0x4330000000000000) - (small ? 0x1p52 + 1077.0 : 0x1p52 + 1023.0);
  const double f = nfvi_number(bits - (e << 52) + 0x3ff0000000000000) - 1.0;
  const double s = f / (2.0 + f), w = s * s, w2 = w * w;
  const double c0 = 0.666666666666667 + w * 0.39999999999898272;
  const double c2 = 0.28571428626533336 + w * 0.22222211043822488;
  const double c4 = 0.18182895746801428 + w * 0.1533150172120742;
  const double tail = w * ((c0 + w2 * c2) + (w2 * w2) * (c4 + w2 * 0.1461916477718642));
  const double square = 0.5 * f * f, low = s * (square + tail) + (k * 1.9082149292705877e-10 + rest);
  double value = k * 0.6931471803691238 - ((square - low) - f);
  value = x > 0 ? value : -std::numeric_limits<double>::infinity();
  value = x < 0 ? std::numeric_limits<double>::quiet_NaN() : value;
  return x <= std::numeric_limits<double>::max() ? value : x;
}
static inline float nfvi_log(float x, float rest) {
  const bool small = x < 0x1p-126f;
  const uint32_t bits = nfvi_bits(small ? x * 0x1p25f : x);
  const uint32_t e = (bits + (0x3f800000 - 0x3f3504f3)) >> 23;
  const float k = (float)(int32_t)e - (small ? 152.0f : 127.0f);
  const float f = nfvi_number(bits - (e << 23) + 0x3f800000) - 1.0f;
  const float s = f / (2.0f + f), w = s * s;
  const float tail = w * (0.66666685f + w * (0.39988735f + w * 0.29582023f));
  const float square = 0.5f * f * f, low = s * (square + tail) + (k * 1.4286068203e-06f + rest);
  float value = k * 0.693145751953125f - ((square - low) - f);
  value = x > 0 ? value : -std::numeric_limits<float>::infinity();
  value = x < 0 ? std::numeric_limits<float>::quiet_NaN() : value;
  return x <= std::numeric_limits<float>::max() ? value : x;
}
static inline double m_log(double x) { return nfvi_log(x, 0.0); }
static inline float m_log(float x) { return nfvi_log(x, 0.0f); }

// log(1 + x) for x in [0, 1].
static inline double nfvi_log1p_unit(double x) {
  const double s = x / (2.0 + x), w = s * s, w2 = w * w, w4 = w2 * w2;
  const double c0 = 0.3333333333333333 + w * 0.19999999999999762;
  const double c2 = 0.1428571428580005 + w * 0.11111111099118386;
  const double c4 = 0.09090909948981357 + w * 0.07692271982430275;
  const double c6 = 0.06667589315724629 + w * 0.05867139530651599;
  const double c8 = 0.05422589197440007 + w * 0.03746071897775383;
  const double high = (c4 + w2 * c6) + w4 * (c8 + w2 * 0.07815288900461426);
  return 2.0 * (s + s * w * ((c0 + w2 * c2) + w4 * high));
}
static inline float nfvi_log1p_unit(float x) {
  const float s = x / (2.0f + x), w = s * s, w2 = w * w;
  const float c0 = 0.33333334f + w * 0.19999853f, c2 = 0.14296179f + w * 0.108532879f;
  return 2.0f * (s + s * w * (c0 + w2 * (c2 + w2 * 0.11612165f)));
}

// log(1 + x), with what the sum 1 + x has lost.
template <class T> static inline T m_log1p(T x) {
  const T u = 1 + x, lost = (x - (u - 1)) / u;
  return nfvi_log(u, lost - lost == 0 ? lost : (T)0);
}
