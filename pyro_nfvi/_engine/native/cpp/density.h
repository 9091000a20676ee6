// A log density with its gradient, in blocks of a fixed number of rows.
struct NfviTarget {
  NfviTargetCall call;
  Ctx* cx;
  int64_t streams;           // inputs after the rows
  void *rows, *log_p, *score;  // memory of one block
};

static void step(Ctx* cx);

// Rows of z (n, D) in blocks of R; the last block is filled up with its own last row.
template <class T, class B, int64_t R, int64_t D>
static void evaluate(NfviTarget* self, const void* z, const void* const* streams, int64_t n,
    void* log_p, void* score) {
  Ctx* cx = self->cx;
  T* rows = (T*)self->rows;
  cx->in[0] = rows;
  for (int64_t k = 0; k < self->streams; k++) cx->in[1 + k] = streams[k];
  cx->out[0] = self->log_p;
  cx->out[1] = self->score;
  for (int64_t begin = 0; begin < n; begin += R) {
    const int64_t m = n - begin < R ? n - begin : R;
    const T* from = (const T*)z + begin * D;
    __builtin_memcpy(rows, from, m * D * sizeof(T));
    for (int64_t i = m; i < R; i++) __builtin_memcpy(rows + i * D, from + (m - 1) * D, D * sizeof(T));
    step(cx);
    __builtin_memcpy((B*)log_p + begin, self->log_p, m * sizeof(B));
    __builtin_memcpy((T*)score + begin * D, self->score, m * D * sizeof(T));
  }
}
