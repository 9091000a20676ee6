// What the fit costs at least: eight schools, sixteen planar layers, total gradient, clipping, Adam,
// written by hand for this one model. P particles are a constant; their axis is innermost.
#include <cmath>

#ifndef P
#define P 1
#endif
constexpr int D = 10, K = 16, J = 8;
// v, u (K x D), b (K), shift and free scale (D): theta, gradient, Adam's moments, of this size.
constexpr int V = 0, U = K * D, B = 2 * K * D, LOC = B + K, RAW = LOC + D, SIZE = RAW + D;

static float tape_z[K + 1][D][P], tape_t[K][P];

static inline float log1pexp(float x) { return x > 0 ? x + log1pf(expf(-x)) : log1pf(expf(x)); }

extern "C" int size() { return SIZE; }

// One estimate of the negative bound and its gradient, from noise eps (P, D).
extern "C" float gradient(const float* theta, const float* eps, const float* y, const float* sigma,
                          float* grad) {
  const float inv = 1.0f / P;
  float w[K][D], uhat[K][D], a1[K], norm2[K], alpha[K];
  for (int i = 0; i < SIZE; i++) grad[i] = 0;
  for (int k = 0; k < K; k++) {
    const float *v = theta + V + k * D, *u = theta + U + k * D;
    float n2 = 1e-12f, vu = 0;
    for (int d = 0; d < D; d++) n2 += v[d] * v[d], vu += v[d] * u[d];
    const float slope = log1pexp(vu + 0.5413248546f);  // 1 + w.uhat > 0, 1 at u = 0
    for (int d = 0; d < D; d++) w[k][d] = v[d], uhat[k][d] = u[d] + (slope - 1 - vu) / n2 * v[d];
    a1[k] = slope, norm2[k] = n2, alpha[k] = vu;
  }
  float loss[P];
  for (int p = 0; p < P; p++) loss[p] = 0;
  for (int d = 0; d < D; d++)
    for (int p = 0; p < P; p++) {
      const float e = eps[p * D + d];
      tape_z[0][d][p] = e;
      loss[p] -= 0.5f * e * e;
    }
  for (int k = 0; k < K; k++) {
    float s[P];
    for (int p = 0; p < P; p++) s[p] = theta[B + k];
    for (int d = 0; d < D; d++)
      for (int p = 0; p < P; p++) s[p] += w[k][d] * tape_z[k][d][p];
    for (int p = 0; p < P; p++) {
      const float t = tanhf(s[p]);
      tape_t[k][p] = t;
      loss[p] -= logf(1 + (a1[k] - 1) * (1 - t * t));
    }
    for (int d = 0; d < D; d++)
      for (int p = 0; p < P; p++)
        tape_z[k + 1][d][p] = tape_z[k][d][p] + uhat[k][d] * tape_t[k][p];
  }
  // The diagonal map outside, and the model: mu, log tau, eta.
  float z[D][P], back[D][P], scale[D];
  for (int d = 0; d < D; d++) {
    scale[d] = expf(theta[RAW + d]);
    for (int p = 0; p < P; p++) {
      z[d][p] = theta[LOC + d] + scale[d] * tape_z[K][d][p];
      loss[p] -= theta[RAW + d];
    }
  }
  for (int p = 0; p < P; p++) {
    const float mu = z[0][p], tau = expf(z[1][p]), q = tau * tau / 25;
    float log_p = -mu * mu / 50 + z[1][p] - log1pf(q), dmu = mu / 25, dtau = -1 + 2 * q / (1 + q);
    for (int j = 0; j < J; j++) {
      const float eta = z[2 + j][p], r = (y[j] - mu - tau * eta) / (sigma[j] * sigma[j]);
      log_p -= 0.5f * eta * eta + 0.5f * r * (y[j] - mu - tau * eta);
      dmu -= r, dtau -= r * tau * eta;
      back[2 + j][p] = (eta - r * tau) * inv;
    }
    back[0][p] = dmu * inv, back[1][p] = dtau * inv;
    loss[p] -= log_p;
  }
  for (int d = 0; d < D; d++) {
    float shift = 0, raw = -1;
    for (int p = 0; p < P; p++) {
      shift += back[d][p], raw += back[d][p] * scale[d] * tape_z[K][d][p];
      back[d][p] *= scale[d];
    }
    grad[LOC + d] = shift, grad[RAW + d] = raw;
  }
  for (int k = K - 1; k >= 0; k--) {
    float dt[P], da1 = 0, duhat[D], dw[D];
    for (int p = 0; p < P; p++) {
      const float t = tape_t[k][p], h = 1 - t * t, det = 1 + (a1[k] - 1) * h;
      da1 -= h / det * inv;
      dt[p] = 2 * t * (a1[k] - 1) / det * inv;
    }
    for (int d = 0; d < D; d++) {
      float sum = 0;
      for (int p = 0; p < P; p++)
        sum += back[d][p] * tape_t[k][p], dt[p] += back[d][p] * uhat[k][d];
      duhat[d] = sum;
    }
    float db = 0;
    for (int p = 0; p < P; p++) dt[p] *= 1 - tape_t[k][p] * tape_t[k][p], db += dt[p];
    grad[B + k] = db;
    for (int d = 0; d < D; d++) {
      float sum = 0;
      for (int p = 0; p < P; p++)
        sum += dt[p] * tape_z[k][d][p], back[d][p] += dt[p] * w[k][d];
      dw[d] = sum;
    }
    // Through uhat = u + c v with c = (slope(v.u) - 1 - v.u) / |v|^2.
    const float *v = theta + V + k * D, *u = theta + U + k * D;
    float dc = 0;
    for (int d = 0; d < D; d++) dc += duhat[d] * v[d];
    const float c = (a1[k] - 1 - alpha[k]) / norm2[k];
    const float slope = 1 / (1 + expf(-(alpha[k] + 0.5413248546f)));
    const float dalpha = dc * (slope - 1) / norm2[k] + da1 * slope, dn2 = -dc * c / norm2[k];
    for (int d = 0; d < D; d++) {
      grad[V + k * D + d] = dw[d] + c * duhat[d] + dalpha * u[d] + 2 * dn2 * v[d];
      grad[U + k * D + d] = duhat[d] + dalpha * v[d];
    }
  }
  float total = 0;
  for (int p = 0; p < P; p++) total += loss[p];
  return total * inv;
}

extern "C" void steps(int count, int first, float rate, float* theta, float* m, float* v,
                      const float* eps, const float* y, const float* sigma, float* losses) {
  float grad[SIZE];
  for (int i = 0; i < count; i++) {
    losses[i] = gradient(theta, eps + i * P * D, y, sigma, grad);
    float square = 0;
    for (int k = 0; k < SIZE; k++) square += grad[k] * grad[k];
    const float clip = square > 1e4f ? 100 / sqrtf(square) : 1;
    const float one = 1 - powf(0.9f, first + i + 1), two = 1 - powf(0.999f, first + i + 1);
    for (int k = 0; k < SIZE; k++) {
      const float g = grad[k] * clip;
      m[k] += 0.1f * (g - m[k]);
      v[k] += 0.001f * (g * g - v[k]);
      theta[k] -= rate * (m[k] / one) / (sqrtf(v[k] / two) + 1e-8f);
    }
  }
}
