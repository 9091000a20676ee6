// The loop over steps: clip, refuse what is not finite, update. No globals: all state is in Fit.
// A unit of its own, since it depends neither on the model nor on the guide.
enum Kind { ADAM, ADAMW, RMSPROP, SGD, ADAGRAD, CLIPPED };

struct Group {
  double beta1, beta2, eps, decay, momentum, dampening;
  int64_t nesterov, centered, maximize, amsgrad;
  int64_t begin, end;  // of the stretches of the flat vector
  double steps;        // taken by this group
};

// A gradient t x' * mask of which only column and row are there: t, then x, at its place.
struct Outer {
  int64_t at, rows, columns, group;  // at: of the flat vectors
  const void* mask;
  const int32_t *table, *full;  // native/holes.py
};

// A table of which each step sees some rows. They are gathered among the parameters, and moved where
// they stand by Adam with moments and a count of steps of each row.
struct Table {
  void *values, *mean, *square, *steps;  // of all rows
  const int64_t* rows;  // numbers of the rows of each step of a block of steps
  int64_t at;           // of the flat vectors: the rows of a step
  int64_t count, width, group;
  int64_t wide;         // 1 where steps are doubles, 0 where they are floats
};

struct Fit {
  void *par, *grd, *s1, *s2, *s3;  // flat vectors
  int64_t stretches, groups, particles;
  const int64_t* at;     // begin and end of each stretch that is in use, in whole vectors
  double clip;
  Group* group;
  Ctx* cx;
  int64_t streams;       // inputs that advance with each step, the noise first
  int64_t first_stream;  // number of the first of them among the inputs
  const int64_t* stride; // bytes that each advances
  void* bound;           // where a step leaves its bound, and its count of bad particles
  int64_t* bad;
  int64_t done;          // steps tried in this block
  int64_t outers;
  const Outer* outer;
  void (*step)(Ctx*);    // the unit of the step
  int64_t wide;          // 1 where the bound is a double, 0 where it is a float
  int64_t blocks;        // of particles, for each of which the unit is called
  void* sum;             // flat vector, where gradients of blocks are summed
  int64_t tables;
  const Table* table;
};

// The numbers of a group, without the holes of masked weights.
#define NFVI_EACH(g, at) \
  for (int64_t q = (g).begin; q < (g).end; q++) \
    for (int64_t i = (at)[2 * q], end = (at)[2 * q + 1]; i < end; i++)
#define NFVI_EACH_SIMD(g, at) \
  for (int64_t q = (g).begin; q < (g).end; q++) \
    _Pragma("omp simd") for (int64_t i = (at)[2 * q]; i < (at)[2 * q + 1]; i++)

template <class T>
static void adam(const Group& g, const int64_t* at, bool adamw, double rate, T scale, T* p, const T* grad, T* m, T* v,
    T* top) {
  const double c1 = 1 - ::pow(g.beta1, g.steps), c2 = 1 - ::pow(g.beta2, g.steps);
  const T b1 = (T)(1 - g.beta1), b2 = (T)g.beta2, b3 = (T)(1 - g.beta2);
  const T size = (T)(rate / c1), root = (T)(1 / ::sqrt(c2)), eps = (T)g.eps;
  const T decay = (T)(adamw ? 0 : g.decay), shrink = (T)(adamw ? 1 - rate * g.decay : 1);
  const T sign = g.maximize ? -scale : scale;
  if (g.amsgrad) {
    NFVI_EACH(g, at) {
      T x = p[i] * shrink, d = sign * grad[i] + decay * x;
      m[i] += b1 * (d - m[i]);
      v[i] = b2 * v[i] + b3 * d * d;
      top[i] = m_max(top[i], v[i]);
      p[i] = x - size * m[i] / (m_sqrt(top[i]) * root + eps);
    }
  } else if (decay == 0 && shrink == 1) {
    NFVI_EACH_SIMD(g, at) {
      T d = sign * grad[i];
      T a = m[i] + b1 * (d - m[i]), b = b2 * v[i] + b3 * d * d;
      m[i] = a;
      v[i] = b;
      p[i] -= size * a / (m_sqrt(b) * root + eps);
    }
  } else {
    NFVI_EACH_SIMD(g, at) {
      T x = p[i] * shrink, d = sign * grad[i] + decay * x;
      T a = m[i] + b1 * (d - m[i]), b = b2 * v[i] + b3 * d * d;
      m[i] = a;
      v[i] = b;
      p[i] = x - size * a / (m_sqrt(b) * root + eps);
    }
  }
}

template <class T>
static void rmsprop(const Group& g, const int64_t* at, double rate, T scale, T* p, const T* grad, T* v, T* mean,
    T* speed) {
  const T alpha = (T)g.beta2, rest = (T)(1 - g.beta2), eps = (T)g.eps, decay = (T)g.decay;
  const T sign = g.maximize ? -scale : scale, lr = (T)rate, mu = (T)g.momentum;
  NFVI_EACH(g, at) {
    T d = sign * grad[i] + decay * p[i];
    v[i] = alpha * v[i] + rest * d * d;
    T width = v[i];
    if (g.centered) {
      mean[i] += rest * (d - mean[i]);
      width -= mean[i] * mean[i];
    }
    T move = d / (m_sqrt(width) + eps);
    if (g.momentum > 0) {
      speed[i] = mu * speed[i] + move;
      move = speed[i];
    }
    p[i] -= lr * move;
  }
}

template <class T>
static void sgd(const Group& g, const int64_t* at, double rate, T scale, T* p, const T* grad, T* speed) {
  const T sign = g.maximize ? -scale : scale, lr = (T)rate, mu = (T)g.momentum;
  const T decay = (T)g.decay, share = g.steps > 1 ? (T)(1 - g.dampening) : (T)1;
  NFVI_EACH(g, at) {
    T d = sign * grad[i] + decay * p[i];
    if (g.momentum != 0) {
      speed[i] = mu * speed[i] + share * d;
      d = g.nesterov ? d + mu * speed[i] : speed[i];
    }
    p[i] -= lr * d;
  }
}

// beta1 holds the decay of the rate.
template <class T>
static void adagrad(const Group& g, const int64_t* at, double rate, T scale, T* p, const T* grad, T* total) {
  const T sign = g.maximize ? -scale : scale, eps = (T)g.eps, decay = (T)g.decay;
  const T lr = (T)(rate / (1 + (g.steps - 1) * g.beta1));
  NFVI_EACH(g, at) {
    T d = sign * grad[i] + decay * p[i];
    total[i] += d * d;
    p[i] -= lr * d / (m_sqrt(total[i]) + eps);
  }
}

// Pyro's Adam: momentum holds the largest size of a gradient's number, dampening the decay of the
// rate, which falls before it is used; eps stands beside the root without its correction.
template <class T>
static void clipped(const Group& g, const int64_t* at, double rate, T scale, T* p, const T* grad, T* m, T* v) {
  const double c1 = 1 - ::pow(g.beta1, g.steps), c2 = 1 - ::pow(g.beta2, g.steps);
  const T b1 = (T)g.beta1, a1 = (T)(1 - g.beta1), b2 = (T)g.beta2, a2 = (T)(1 - g.beta2);
  const T size = (T)(rate * g.dampening * ::sqrt(c2) / c1), eps = (T)g.eps, decay = (T)g.decay;
  const T most = (T)g.momentum, centre = g.centered ? (T)1 : (T)0;
  NFVI_EACH_SIMD(g, at) {
    T d = scale * grad[i];
    d = (d < -most ? -most : d > most ? most : d) + decay * p[i];
    const T a = b1 * m[i] + a1 * d, u = d - centre * a, b = b2 * v[i] + a2 * u * u;
    m[i] = a;
    v[i] = b;
    p[i] -= size * a / (m_sqrt(b) + eps);
  }
}

template <class T> static void gather(const Fit* f, int64_t s) {
  for (int64_t j = 0; j < f->tables; j++) {
    const Table& o = f->table[j];
    const int64_t* row = o.rows + s * o.count;
    const T* from = (const T*)o.values;
    T* to = (T*)f->par + o.at;
    for (int64_t r = 0; r < o.count; r++)
      for (int64_t c = 0; c < o.width; c++) to[r * o.width + c] = from[row[r] * o.width + c];
  }
}

template <class T, class S>
static void adam(const Group& g, const Table& o, int64_t s, double rate, T scale, const T* grad) {
  const T b1 = (T)(1 - g.beta1), b2 = (T)g.beta2, b3 = (T)(1 - g.beta2), eps = (T)g.eps;
  const int64_t* row = o.rows + s * o.count;
  S last = -1;
  T size = 0, shrink = 1;
  for (int64_t r = 0; r < o.count; r++) {
    const S steps = ((S*)o.steps)[row[r]] += 1;
    if (steps != last) {  // rows that were drawn equally often share it
      last = steps;
      size = (T)(rate / (1 - ::pow(g.beta1, (double)steps)));
      shrink = (T)::sqrt(1 - ::pow(g.beta2, (double)steps));
    }
    T *p = (T*)o.values + row[r] * o.width, *m = (T*)o.mean + row[r] * o.width;
    T* v = (T*)o.square + row[r] * o.width;
    const T* d = grad + o.at + r * o.width;
    for (int64_t c = 0; c < o.width; c++) {
      const T x = scale * d[c];
      const T a = m[c] + b1 * (x - m[c]), b = b2 * v[c] + b3 * x * x;
      m[c] = a;
      v[c] = b;
      p[c] -= size * a / (m_sqrt(b) / shrink + eps);
    }
  }
}

// Calls whole(i, begin, end) and part(i, begin, end) for the stretches of each row without zeros,
// and for those where the mask has to be asked.
template <class Whole, class Part>
static inline __attribute__((always_inline)) void nfvi_rows(
    const Outer& o, Whole whole, Part part) {
  constexpr int64_t R = NFVI_STRIP;
  const int64_t strips = (o.rows + R - 1) / R;
  const int32_t *runs = o.table + strips + 1, *inner = o.full + strips + 1;
  for (int64_t s = 0; s < strips; s++)
    for (int64_t i = s * R; i < o.rows && i < s * R + R; i++) {
      int in = o.full[s];
      for (int q = o.table[s]; q < o.table[s + 1]; q++) {
        int64_t j = runs[2 * q];
        const int64_t end = runs[2 * q + 1];
        while (j < end) {
          const bool some = in < o.full[s + 1] && inner[2 * in] < end;
          const int64_t begin = some ? inner[2 * in] : end;
          if (j < begin) part(i, j, begin);
          j = begin;
          if (!some) continue;
          whole(i, j, (int64_t)inner[2 * in + 1]);
          j = inner[2 * in + 1];
          in++;
        }
      }
    }
}

// Sum of squares, from sums of those of x from its start.
template <class T> static double norm(T* grad, const Outer& o) {
  const T *t = grad + o.at, *x = t + o.rows, *mask = (const T*)o.mask;
  const int64_t n = o.columns;
  if (!nfvi_finite(t, o.rows + n)) return std::numeric_limits<double>::quiet_NaN();
  double* upto = (double*)(grad + o.at + (o.rows + n + 15) / 16 * 16);  // there is room
  upto[0] = 0;
  for (int64_t j = 0; j < n; j++) upto[j + 1] = upto[j] + (double)x[j] * (double)x[j];
  double total = 0;
  nfvi_rows(
      o,
      [&](int64_t i, int64_t begin, int64_t end) {
        total += (double)t[i] * (double)t[i] * (upto[end] - upto[begin]);
      },
      [&](int64_t i, int64_t begin, int64_t end) {
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = begin; j < end; j++) sum += x[j] * x[j] * mask[i * n + j];
        total += (double)t[i] * (double)t[i] * (double)sum;
      });
  return total;
}

// Adam without decay; what comes next is asked for early, since rows are short and holes lie
// between them.
template <class T>
static void adam(const Group& g, const Outer& o, double rate, T scale, T* p, const T* grad, T* m,
    T* v) {
  const double c1 = 1 - ::pow(g.beta1, g.steps), c2 = 1 - ::pow(g.beta2, g.steps);
  const T b1 = (T)(1 - g.beta1), b2 = (T)g.beta2, b3 = (T)(1 - g.beta2);
  const T size = (T)(rate / c1), root = (T)(1 / ::sqrt(c2)), eps = (T)g.eps;
  const T sign = g.maximize ? -scale : scale;
  const T *t = grad + o.at, *x = t + o.rows, *mask = (const T*)o.mask;
  const int64_t n = o.columns;
  p += o.at;
  m += o.at;
  v += o.at;
  const int64_t size_of_all = o.rows * n, line = 64 / sizeof(T);
  const auto early = [&](int64_t i, int64_t begin, int64_t end) {
    const int64_t from = i * n + n, stop = from + end < size_of_all ? from + end : size_of_all;
    for (int64_t k = from + begin; k < stop; k += line) {
      __builtin_prefetch(p + k, 1);
      __builtin_prefetch(m + k, 1);
      __builtin_prefetch(v + k, 1);
    }
  };
  nfvi_rows(
      o,
      [&](int64_t i, int64_t begin, int64_t end) {
        early(i, begin, end);
        T *pi = p + i * n, *mi = m + i * n, *vi = v + i * n;
        const T f = sign * t[i];
#pragma omp simd
        for (int64_t k = begin; k < end; k++) {
          const T d = f * x[k];
          const T a = mi[k] + b1 * (d - mi[k]), b = b2 * vi[k] + b3 * d * d;
          mi[k] = a;
          vi[k] = b;
          pi[k] -= size * a / (m_sqrt(b) * root + eps);
        }
      },
      [&](int64_t i, int64_t begin, int64_t end) {
        T *pi = p + i * n, *mi = m + i * n, *vi = v + i * n;
        const T *ki = mask + i * n, f = sign * t[i];
#pragma omp simd
        for (int64_t k = begin; k < end; k++) {
          const T d = f * x[k] * ki[k];
          const T a = mi[k] + b1 * (d - mi[k]), b = b2 * vi[k] + b3 * d * d;
          mi[k] = a;
          vi[k] = b;
          pi[k] -= size * a / (m_sqrt(b) * root + eps);
        }
      });
}

template <class T, bool OUTER> static double norm(T* x, const Fit* f) {
  typedef typename Vec<T, NFVI_BYTES>::type V;
  constexpr int W = NFVI_BYTES / sizeof(T), U = 4;
  double total = 0;
  V sum[U] = {};  // four sums, or each addition would wait for the last
  int64_t room = 1024;
  for (int64_t q = 0; q < f->stretches; q++) {
    const int64_t end = f->at[2 * q + 1];
    int64_t i = f->at[2 * q];
    while (i < end) {
      const int64_t stop = end - i < room ? end : i + room;
      room -= stop - i;
      for (; i + U * W <= stop; i += U * W)
#pragma GCC unroll 4
        for (int u = 0; u < U; u++) {
          const V v = *(const V*)(x + i + u * W);
          sum[u] += v * v;
        }
      for (; i < stop; i += W) {
        const V v = *(const V*)(x + i);
        sum[0] += v * v;
      }
      if (room > 0) continue;
      // In parts: many small squares do not vanish beside a large sum.
      total += (double)lanes<T, NFVI_BYTES>((sum[0] + sum[1]) + (sum[2] + sum[3]));
      for (int u = 0; u < U; u++) sum[u] = V{};
      room = 1024;
    }
  }
  if constexpr (OUTER)
    for (int64_t k = 0; k < f->outers; k++) total += norm<T>(x, f->outer[k]);
  return ::sqrt(total + (double)lanes<T, NFVI_BYTES>((sum[0] + sum[1]) + (sum[2] + sum[3])));
}

// KIND: the optimiser; OUTER: whether there are gradients that only column and row are there of.
template <class T, int KIND, bool OUTER>
static void update(Fit* f, const double* rate, double length, int64_t step) {
  const double scale = f->clip / (length + 1e-6);
  const T s = scale < 1 ? (T)scale : (T)1;
  for (int64_t k = 0; k < f->groups; k++) {
    Group& g = f->group[k];
    g.steps += 1;
    T *p = (T*)f->par, *s1 = (T*)f->s1, *s2 = (T*)f->s2, *s3 = (T*)f->s3;
    const T* d = (const T*)f->grd;
    if constexpr (OUTER)
      for (int64_t j = 0; j < f->outers; j++)
        if (f->outer[j].group == k) adam<T>(g, f->outer[j], rate[k], s, p, d, s1, s2);
    if constexpr (KIND == ADAM)
      for (int64_t j = 0; j < f->tables; j++) {
        const Table& o = f->table[j];
        if (o.group != k) continue;
        if (o.wide) adam<T, double>(g, o, step, rate[k], s, d);
        else adam<T, float>(g, o, step, rate[k], s, d);
      }
    if constexpr (KIND == ADAM) adam<T>(g, f->at, false, rate[k], s, p, d, s1, s2, s3);
    if constexpr (KIND == ADAMW) adam<T>(g, f->at, true, rate[k], s, p, d, s1, s2, s3);
    if constexpr (KIND == RMSPROP) rmsprop<T>(g, f->at, rate[k], s, p, d, s1, s2, s3);
    if constexpr (KIND == SGD) sgd<T>(g, f->at, rate[k], s, p, d, s1);
    if constexpr (KIND == ADAGRAD) adagrad<T>(g, f->at, rate[k], s, p, d, s1);
    if constexpr (KIND == CLIPPED) clipped<T>(g, f->at, rate[k], s, p, d, s1, s2);
  }
}

// While it lives, numbers below the smallest normal one count as zero in this thread: moments of
// weights that get no gradient any more decay to such numbers, and arithmetic on them is slow. NaN
// and infinity stay what they are.
struct Flush {
#if defined(__SSE2__)
  unsigned before = __builtin_ia32_stmxcsr();
  Flush() { __builtin_ia32_ldmxcsr(before | 0x8040); }
  ~Flush() { __builtin_ia32_ldmxcsr(before); }
#elif defined(__aarch64__)
  uint64_t before;
  Flush() {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" : : "r"(before | (1ull << 24)));
  }
  ~Flush() { asm volatile("msr fpcr, %0" : : "r"(before)); }
#endif
};

// Calls the unit for step s of a block of steps; returns bound and count of bad particles.
static double evaluate(Fit* f, const void* const* from, int64_t s, int64_t b, int64_t* bad) {
  for (int64_t k = 0; k < f->streams; k++)
    f->cx->in[f->first_stream + k] =
        (const char*)from[k] + (k == 0 ? s * f->blocks + b : s) * f->stride[k];
  f->step(f->cx);
  *bad = *f->bad;
  return f->wide ? *(const double*)f->bound : (double)*(const float*)f->bound;
}

// The same for several blocks of particles: means over all that count, as of one block.
template <class T>
static double evaluate_blocks(Fit* f, const void* const* from, int64_t s, int64_t* bad) {
  const int64_t size = f->particles / f->blocks;
  T *grad = (T*)f->grd, *sum = (T*)f->sum;
  double bound = 0, count = 0;
  *bad = 0;
  for (int64_t b = 0; b < f->blocks; b++) {
    int64_t wrong;
    const double value = evaluate(f, from, s, b, &wrong);
    const double good = (double)(size - wrong);
    *bad += wrong;
    if (good == 0) continue;
    const bool first = count == 0;
    const T weight = (T)good;
    bound += good * value;
    count += good;
    for (int64_t q = 0; q < f->stretches; q++) {
      const int64_t begin = f->at[2 * q], end = f->at[2 * q + 1];
      if (first) {
#pragma omp simd
        for (int64_t i = begin; i < end; i++) sum[i] = weight * grad[i];
      } else {
#pragma omp simd
        for (int64_t i = begin; i < end; i++) sum[i] += weight * grad[i];
      }
    }
  }
  const T share = (T)(1 / count);  // infinite where none counts: such a step is refused
  for (int64_t q = 0; q < f->stretches; q++) {
    const int64_t begin = f->at[2 * q], end = f->at[2 * q + 1];
#pragma omp simd
    for (int64_t i = begin; i < end; i++) grad[i] = share * sum[i];
  }
  return bound / count;
}

// Up to n steps; only the last one may be refused.
template <class T, int KIND, bool OUTER>
static void run(Fit* f, const void* const* from, const double* rates, int64_t n, double* bounds,
    int64_t* bad, uint8_t* ok) {
  const Flush flush{};
  for (int64_t s = 0; s < n; s++) {
    gather<T>(f, s);
    bounds[s] = f->blocks == 1 ? evaluate(f, from, s, 0, bad + s)
                               : evaluate_blocks<T>(f, from, s, bad + s);
    // A NaN squared stays one, an overflow of the squares is infinite as in torch.
    const double length = norm<T, OUTER>((T*)f->grd, f);
    const bool fine = 2 * bad[s] <= f->particles && length <= (double)std::numeric_limits<T>::max();
    ok[s] = fine;
    f->done = s + 1;
    if (!fine) return;
    update<T, KIND, OUTER>(f, rates + s * f->groups, length, s);
  }
}
