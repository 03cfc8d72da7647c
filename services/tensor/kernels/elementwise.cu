// Operations on rows of activations: embedding, residual addition, RMSNorm, SiLU, copies of rows.
//
// Elements are f32 or bf16 (E is float or u16). Where rows are whole runs of eight elements, a thread takes a run
// (N = 8) with 16-byte accesses; else it takes its eight elements one by one (N = 1). Which of them follows from the
// columns alone, and so do all orders of summation: a row has the same bits in any batch.

// Kernels without a reduction run in blocks of 64 threads, each with 512 columns of one row: at one row, few large
// blocks would leave most multiprocessors idle, and the product behind them wait.
#define THREADS 64
#define PIECE (8 * THREADS)

// An embedding's f16 element.
struct F16 { u16 bits; };

// === runs of eight elements ===

DEVICE float value_of(float x) { return x; }
DEVICE float value_of(u16 x) { return widen(x); }
DEVICE float value_of(F16 x) { return widen_f16(x.bits); }

DEVICE void load_eight(const float* from, float* x) {
  float4 a = ((const float4*)from)[0], b = ((const float4*)from)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
DEVICE void load_eight(const u16* from, float* x) {
  uint4 run = *(const uint4*)from;
  u32 pairs[4] = {run.x, run.y, run.z, run.w};
#pragma unroll
  for (int i = 0; i < 4; i++) x[2 * i] = low_half(pairs[i]), x[2 * i + 1] = high_half(pairs[i]);
}
DEVICE void load_eight(const F16* from, float* x) {
  uint4 run = *(const uint4*)from;
  u32 pairs[4] = {run.x, run.y, run.z, run.w};
#pragma unroll
  for (int i = 0; i < 4; i++) x[2 * i] = widen_f16((u16)pairs[i]), x[2 * i + 1] = widen_f16((u16)(pairs[i] >> 16));
}
DEVICE void store_eight(float* to, const float* x) {
  ((float4*)to)[0] = make_float4(x[0], x[1], x[2], x[3]);
  ((float4*)to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
DEVICE void store_eight(u16* to, const float* x) {
  *(uint4*)to = make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
}

// The values of N elements.
template <int N, typename T> DEVICE void load(const T* from, float* x) {
  if constexpr (N == 8) load_eight(from, x);
  else x[0] = value_of(*from);
}
// Stores N values, each rounded.
template <int N, typename E> DEVICE void store(E* to, const float* x) {
  if constexpr (N == 8) store_eight(to, x);
  else *to = Element<E>::round(*x);
}
// Values as they would be read after a store.
template <int N, typename E> DEVICE void round_as(float* x) {
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = widen(Element<E>::round(x[i]));
}

// A block's share of rows `[rows, cols]`.
struct Share {
  u64 row;
  int first;  // this thread's first column; its next is THREADS * N further, while below `end`
  int end;
};
template <int N> DEVICE Share share(int cols) {
  int pieces = (cols + PIECE - 1) / PIECE;
  int row = blockIdx.x / pieces, begin = (blockIdx.x - row * pieces) * PIECE;
  return {(u64)row, begin + (int)threadIdx.x * N, min(cols, begin + PIECE)};
}

// === embedding ===

template <int N, typename T, typename E>
DEVICE void embed_piece(const u32* ids, const T* table, float scale, E* out, int cols) {
  Share s = share<N>(cols);
  const T* from = table + (u64)ids[s.row] * cols;
  out += s.row * cols;
  for (int col = s.first; col < s.end; col += THREADS * N) {
    float x[N];
    load<N>(from + col, x);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = __fmul_rn(x[i], scale);
    store<N>(out + col, x);
  }
}
template <typename T, typename E>
DEVICE void embed(const u32* ids, const T* table, float scale, E* out, int cols) {
  if (cols % 8 == 0) embed_piece<8>(ids, table, scale, out, cols);
  else embed_piece<1>(ids, table, scale, out, cols);
}

// Row i of `out` <- round(row ids[i] of `table` * scale). A block for each row and piece of it, rows slowest.
#define EMBED(NAME, T, E)                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                       \
      elementwise_embed_##NAME(const u32* ids, const T* table, float scale, E* out, int cols) {               \
    embed(ids, table, scale, out, cols);                                                                      \
  }
EMBED(f32_f32, float, float)
EMBED(f16_f32, F16, float)
EMBED(bf16_f32, u16, float)
EMBED(f32_bf16, float, u16)
EMBED(f16_bf16, F16, u16)
EMBED(bf16_bf16, u16, u16)

// === residual addition and RMSNorm ===

// The sum over all threads of a block of whole warps, in an order that only their number decides.
DEVICE float block_sum(float x) {
  __shared__ float sums[32];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  x = warp_sum(x);
  if (lane == 0) sums[warp] = x;
  __syncthreads();
  return warp_sum(lane < (int)(blockDim.x >> 5) ? sums[lane] : 0.f);
}

template <int N, typename E>
DEVICE void add_rms_norm_row(E* residual, const E* delta, const float* weight, float eps, E* out, int cols) {
  float squares = 0.f;
  auto add = [&](int col, float* x) {
    load<N>(residual + col, x);
    if (delta) {
      float y[N];
      load<N>(delta + col, y);
#pragma unroll
      for (int i = 0; i < N; i++) x[i] = __fadd_rn(x[i], y[i]);
      round_as<N, E>(x);
      store<N>(residual + col, x);
    }
#pragma unroll
    for (int i = 0; i < N; i++) squares = fmaf(x[i], x[i], squares);
  };
  // The first run and its weights stay in registers; wider rows are read again.
  int first = threadIdx.x * N, step = blockDim.x * N;
  float held[N], weights[N];
  if (first < cols) {
    load<N>(weight + first, weights);
    add(first, held);
  }
  for (int col = first + step; col < cols; col += step) {
    float x[N];
    add(col, x);
  }
  float mean = __fdiv_rn(block_sum(squares), (float)cols);
  float inverse = __frcp_rn(__fsqrt_rn(__fadd_rn(mean, eps)));
  auto norm = [&](int col, float* x, const float* w) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = __fmul_rn(x[i], inverse);
    round_as<N, E>(x);
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = __fmul_rn(x[i], w[i]);
    store<N>(out + col, x);
  };
  if (first < cols) norm(first, held, weights);
  for (int col = first + step; col < cols; col += step) {
    load<N>(weight + col, weights);
    load<N>(residual + col, held);
    norm(col, held, weights);
  }
}
template <typename E>
DEVICE void add_rms_norm(E* residual, const E* delta, const float* weight, float eps, E* out, int cols) {
  u64 row = (u64)blockIdx.x * cols;
  const E* added = delta ? delta + row : nullptr;
  if (cols % 8 == 0) add_rms_norm_row<8>(residual + row, added, weight, eps, out + row, cols);
  else add_rms_norm_row<1>(residual + row, added, weight, eps, out + row, cols);
}

// residual <- round(residual + delta), unless delta is null; then
// out <- round(round(residual / sqrt(mean(residual^2) + eps)) * weight). A block for each row, of whole warps: as
// many threads as the row has runs, up to 1,024.
extern "C" __global__ void __launch_bounds__(1024)
    elementwise_add_rms_norm_f32(float* residual, const float* delta, const float* weight, float eps, float* out,
                                 int cols) {
  add_rms_norm(residual, delta, weight, eps, out, cols);
}
extern "C" __global__ void __launch_bounds__(1024)
    elementwise_add_rms_norm_bf16(u16* residual, const u16* delta, const float* weight, float eps, u16* out,
                                  int cols) {
  add_rms_norm(residual, delta, weight, eps, out, cols);
}

template <typename E> DEVICE void add(E* x, const E* y, u64 count) {
  u64 at = ((u64)blockIdx.x * THREADS + threadIdx.x) * 8;
  if (at + 8 <= count) {
    float a[8], b[8];
    load_eight(x + at, a);
    load_eight(y + at, b);
#pragma unroll
    for (int i = 0; i < 8; i++) a[i] = __fadd_rn(a[i], b[i]);
    store_eight(x + at, a);
  } else {
    for (; at < count; at++) x[at] = Element<E>::round(__fadd_rn(widen(x[at]), widen(y[at])));
  }
}

// x <- round(x + y) for `count` elements. A block for each 512 of them.
extern "C" __global__ void __launch_bounds__(THREADS) elementwise_add_f32(float* x, const float* y, u64 count) {
  add(x, y, count);
}
extern "C" __global__ void __launch_bounds__(THREADS) elementwise_add_bf16(u16* x, const u16* y, u64 count) {
  add(x, y, count);
}

// === SiLU ===

// g / (1 + e^-g): to the last places in f32; what is rounded to bf16 can be had for less.
template <typename E> DEVICE float silu(float gate);
template <> DEVICE float silu<float>(float gate) { return __fdiv_rn(gate, 1.f + expf(-gate)); }
template <> DEVICE float silu<u16>(float gate) { return __fdividef(gate, 1.f + __expf(-gate)); }

template <int N, typename E> DEVICE void silu_mul_piece(const E* gate_up, E* out, int cols) {
  Share s = share<N>(cols);
  const E* gates = gate_up + s.row * 2 * cols;
  out += s.row * cols;
  for (int col = s.first; col < s.end; col += THREADS * N) {
    float gate[N], up[N];
    load<N>(gates + col, gate);
    load<N>(gates + cols + col, up);
#pragma unroll
    for (int i = 0; i < N; i++) gate[i] = __fmul_rn(silu<E>(gate[i]), up[i]);
    store<N>(out + col, gate);
  }
}
template <typename E> DEVICE void silu_mul(const E* gate_up, E* out, int cols) {
  if (cols % 8 == 0) silu_mul_piece<8>(gate_up, out, cols);
  else silu_mul_piece<1>(gate_up, out, cols);
}

// out <- round(silu(gate) * up) for rows gate|up. A block for each row and piece of it, rows slowest.
extern "C" __global__ void __launch_bounds__(THREADS)
    elementwise_silu_mul_f32(const float* gate_up, float* out, int cols) {
  silu_mul(gate_up, out, cols);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    elementwise_silu_mul_bf16(const u16* gate_up, u16* out, int cols) {
  silu_mul(gate_up, out, cols);
}

// === copies of rows ===

// N elements of any bits, NaN's included: nothing is converted.
template <int N, typename E> DEVICE void copy(E* to, const E* from) {
  if constexpr (N == 8) {
#pragma unroll
    for (int i = 0; i < (int)sizeof(E) / 2; i++) ((uint4*)to)[i] = ((const uint4*)from)[i];
  } else {
    *to = *from;
  }
}
template <int N, typename E> DEVICE void gather_piece(const E* x, const u32* indices, E* out, int cols) {
  Share s = share<N>(cols);
  x += (u64)indices[s.row] * cols;
  out += s.row * cols;
  for (int col = s.first; col < s.end; col += THREADS * N) copy<N>(out + col, x + col);
}
template <typename E> DEVICE void gather(const E* x, const u32* indices, E* out, int cols) {
  if (cols % 8 == 0) gather_piece<8>(x, indices, out, cols);
  else gather_piece<1>(x, indices, out, cols);
}

// Row i of `out` <- row indices[i] of `x`. A block for each row and piece of it, rows slowest.
extern "C" __global__ void __launch_bounds__(THREADS)
    elementwise_gather_rows_f32(const float* x, const u32* indices, float* out, int cols) {
  gather(x, indices, out, cols);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    elementwise_gather_rows_bf16(const u16* x, const u32* indices, u16* out, int cols) {
  gather(x, indices, out, cols);
}
