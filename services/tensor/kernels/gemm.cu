// Multiplication by our own kernels: y[m, n] = round((sum_k x[m, k] * w[n, k] + bias[n]) * scale).
//
// Each output has one f32 accumulator that starts at zero and takes its products in ascending K: for bf16 one
// m16n8k16 after the other, for f32 one fused multiply-add after the other. Neither the number of rows nor the
// tile shows in the bits. That is the reference which plans of cuBLASLt must equal, and what multiplies where
// none does. Any sizes: what lies beyond K, N or M is zero in shared memory and never written.

// One multiplication. Rows of w [n, k] and y [m, n] have no gaps.
struct Multiply {
  const void* x;
  const void* w;
  const float* bias;  // [n] or null
  void* y;
  i64 x_stride;       // elements from one row of x to the next
  int m, n, k;
  float scale;
  int aligned;        // bf16: all pointers, k and x_stride are whole 16-byte chunks
  int y_f32;          // y is f32, else bf16
};

DEVICE void put(const Multiply& call, int row, int column, float sum) {
  if (row >= call.m || column >= call.n) return;
  if (call.bias) sum = __fadd_rn(sum, call.bias[column]);
  sum = __fmul_rn(sum, call.scale);
  u64 at = (u64)row * call.n + column;
  if (call.y_f32) {
    ((float*)call.y)[at] = sum;
  } else {
    ((u16*)call.y)[at] = round_bf16(sum);
  }
}

extern __shared__ __align__(1024) u8 shared[];

// === bf16 ===

// Elements of K in a stage: rows of 128 bytes, whose 16-byte chunk c rests at c ^ (row & 7).
#define CHAIN_K 64

// Rows [0, ROWS) of a matrix at `from`, K from `k` on, into shared memory at byte `to`; zeros beyond `rows` and `end`.
template <int ROWS, int THREADS>
DEVICE void load_rows(u32 to, const u16* from, i64 stride, int rows, int k, int end, bool aligned) {
#pragma unroll
  for (int i = threadIdx.x; i < ROWS * 8; i += THREADS) {
    int row = i >> 3, chunk = i & 7, at = k + chunk * 8;
    u32 place = to + row * 128 + ((chunk ^ (row & 7)) << 4);
    const u16* line = from + row * stride;
    if (aligned) {
      bool inside = row < rows && at < end;
      copy_async16(shared_address(shared) + place, inside ? line + at : from, inside ? 16 : 0);
    } else {
      u32 pairs[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int even = at + 2 * j;
        u32 low = row < rows && even < end ? line[even] : 0;
        u32 high = row < rows && even + 1 < end ? line[even + 1] : 0;
        pairs[j] = low | high << 16;
      }
      *(uint4*)(shared + place) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
}

// A block computes WARPS_N * TILES_N * 16 columns of WARPS_M * TILES_M * 8 rows of y. The weights are the mma's
// 16 rows, the activations its 8 columns, so that few rows waste little. grid: (tiles of rows, tiles of columns).
template <int WARPS_N, int WARPS_M, int TILES_N, int TILES_M, int STAGES>
DEVICE void chain_bf16(const Multiply& call) {
  constexpr int COLUMNS = WARPS_N * TILES_N * 16, ROWS = WARPS_M * TILES_M * 8, THREADS = WARPS_N * WARPS_M * 32;
  constexpr u32 WEIGHTS = COLUMNS * 128, STAGE = WEIGHTS + ROWS * 128;
  int m0 = blockIdx.x * ROWS, n0 = blockIdx.y * COLUMNS;
  const u16* x = (const u16*)call.x + m0 * call.x_stride;
  const u16* w = (const u16*)call.w + (i64)n0 * call.k;
  int tiles = (call.k + CHAIN_K - 1) / CHAIN_K;
  auto load = [&](int tile) {
    u32 stage = (tile % STAGES) * STAGE;
    load_rows<COLUMNS, THREADS>(stage, w, call.k, call.n - n0, tile * CHAIN_K, call.k, call.aligned);
    load_rows<ROWS, THREADS>(stage + WEIGHTS, x, call.x_stride, call.m - m0, tile * CHAIN_K, call.k, call.aligned);
  };

  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int warp_n = (warp % WARPS_N) * TILES_N * 16, warp_m = (warp / WARPS_N) * TILES_M * 8;
  // Lane l hands ldmatrix row l % 8 of small matrix l / 8: of weights (8 rows down, then 8 of K along), of activations
  // (8 of K along, then 8 rows down).
  int part = lane >> 3, line = lane & 7;
  u32 w_line = (warp_n + (part & 1) * 8 + line) * 128, w_chunk = part >> 1;
  u32 x_line = WEIGHTS + (warp_m + (part >> 1) * 8 + line) * 128, x_chunk = part & 1;
  u32 base = shared_address(shared);

  float sums[TILES_N][TILES_M][4] = {};
  for (int tile = 0; tile < STAGES - 1; tile++) {
    if (tile < tiles) load(tile);
    copy_commit();
  }
  for (int tile = 0; tile < tiles; tile++) {
    copy_wait<STAGES - 2>();
    // All have this tile, and have read the previous one, whose stage is filled anew.
    __syncthreads();
    if (tile + STAGES - 1 < tiles) load(tile + STAGES - 1);
    copy_commit();
    u32 stage = base + (tile % STAGES) * STAGE;
#pragma unroll
    for (int step = 0; step < CHAIN_K / 16; step++) {
      u32 a[TILES_N][4];
#pragma unroll
      for (int i = 0; i < TILES_N; i++) {
        load_matrix4(a[i], stage + w_line + i * (16 * 128) + (((2 * step + w_chunk) ^ line) << 4));
      }
#pragma unroll
      for (int j = 0; j < TILES_M; j += 2) {
        u32 b[4];
        load_matrix4(b, stage + x_line + j * (8 * 128) + (((2 * step + x_chunk) ^ line) << 4));
#pragma unroll
        for (int i = 0; i < TILES_N; i++) {
          mma(sums[i][j], a[i], b[0], b[1]);
          mma(sums[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }

  int group = lane >> 2, pair = lane & 3;
#pragma unroll
  for (int i = 0; i < TILES_N; i++) {
#pragma unroll
    for (int j = 0; j < TILES_M; j++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int column = n0 + warp_n + i * 16 + group + (e >> 1) * 8;
        put(call, m0 + warp_m + j * 8 + pair * 2 + (e & 1), column, sums[i][j][e]);
      }
    }
  }
}

// Up to 16 rows: 64 columns a block, the weights streamed through six stages. 61,440 bytes of shared memory.
extern "C" __global__ void __launch_bounds__(128) gemm_chain16_bf16(Multiply call) { chain_bf16<4, 1, 1, 2, 6>(call); }
// 64 rows by 64 columns a block. 65,536 bytes.
extern "C" __global__ void __launch_bounds__(128) gemm_chain64_bf16(Multiply call) { chain_bf16<4, 1, 1, 8, 4>(call); }
// 128 rows by 128 columns a block. 98,304 bytes.
extern "C" __global__ void __launch_bounds__(256) gemm_chain128_bf16(Multiply call) { chain_bf16<4, 2, 2, 8, 3>(call); }

// === f32 ===

#define CHAIN_F32_K 32

DEVICE void copy_async4(u32 to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Rows of a matrix into [K][ROWS + 1] floats at byte `to`: lanes run along K, so the odd line spreads them over banks.
template <int ROWS, int THREADS>
DEVICE void load_columns(u32 to, const float* from, i64 stride, int rows, int k, int end) {
#pragma unroll
  for (int i = threadIdx.x; i < ROWS * CHAIN_F32_K; i += THREADS) {
    int row = i / CHAIN_F32_K, at = i % CHAIN_F32_K;
    bool inside = row < rows && k + at < end;
    copy_async4(to + (at * (ROWS + 1) + row) * 4, inside ? from + row * stride + k + at : from, inside ? 4 : 0);
  }
}

// A block computes COLUMNS columns of ROWS rows; a thread TM neighbouring rows of TN columns, COLUMNS / TN apart.
// grid: (tiles of rows, tiles of columns).
template <int ROWS, int COLUMNS, int TM, int TN, int STAGES>
DEVICE void chain_f32(const Multiply& call) {
  constexpr int ACROSS = COLUMNS / TN, THREADS = ACROSS * (ROWS / TM);
  constexpr int WEIGHTS = CHAIN_F32_K * (COLUMNS + 1), STAGE = WEIGHTS + CHAIN_F32_K * (ROWS + 1);
  int m0 = blockIdx.x * ROWS, n0 = blockIdx.y * COLUMNS;
  const float* x = (const float*)call.x + m0 * call.x_stride;
  const float* w = (const float*)call.w + (i64)n0 * call.k;
  int tiles = (call.k + CHAIN_F32_K - 1) / CHAIN_F32_K;
  u32 base = shared_address(shared);
  auto load = [&](int tile) {
    u32 stage = base + (tile % STAGES) * (STAGE * 4);
    load_columns<COLUMNS, THREADS>(stage, w, call.k, call.n - n0, tile * CHAIN_F32_K, call.k);
    load_columns<ROWS, THREADS>(stage + WEIGHTS * 4, x, call.x_stride, call.m - m0, tile * CHAIN_F32_K, call.k);
  };
  int column = threadIdx.x % ACROSS, row = threadIdx.x / ACROSS * TM;

  float sums[TM][TN] = {};
  for (int tile = 0; tile < STAGES - 1; tile++) {
    if (tile < tiles) load(tile);
    copy_commit();
  }
  for (int tile = 0; tile < tiles; tile++) {
    copy_wait<STAGES - 2>();
    __syncthreads();
    if (tile + STAGES - 1 < tiles) load(tile + STAGES - 1);
    copy_commit();
    const float* weights = (const float*)shared + (tile % STAGES) * STAGE + column;
    const float* rows = (const float*)shared + (tile % STAGES) * STAGE + WEIGHTS + row;
    int steps = min(CHAIN_F32_K, call.k - tile * CHAIN_F32_K);
#pragma unroll 4
    for (int step = 0; step < steps; step++) {
      float a[TM], b[TN];
#pragma unroll
      for (int i = 0; i < TM; i++) a[i] = rows[step * (ROWS + 1) + i];
#pragma unroll
      for (int j = 0; j < TN; j++) b[j] = weights[step * (COLUMNS + 1) + j * ACROSS];
#pragma unroll
      for (int i = 0; i < TM; i++) {
#pragma unroll
        for (int j = 0; j < TN; j++) sums[i][j] = __fmaf_rn(a[i], b[j], sums[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < TM; i++) {
#pragma unroll
    for (int j = 0; j < TN; j++) put(call, m0 + row + i, n0 + column + j * ACROSS, sums[i][j]);
  }
}

// Up to 8 rows by 64 columns a block. 37,888 bytes.
extern "C" __global__ void __launch_bounds__(128) gemm_chain8_f32(Multiply call) { chain_f32<8, 64, 4, 1, 4>(call); }
// 64 rows by 64 columns a block. 33,280 bytes.
extern "C" __global__ void __launch_bounds__(256) gemm_chain64_f32(Multiply call) { chain_f32<64, 64, 4, 4, 2>(call); }

// === verification ===

// counts[0] += 16-bit words in which rows of y differ from those of the reference, counts[1] += words of the reference
// that are not zero. Strides in words. grid: (any, rows), 256 threads.
extern "C" __global__ void gemm_compare(const u16* y, i64 y_stride, const u16* reference, i64 words, u32* counts) {
  const u16* got = y + blockIdx.y * y_stride;
  const u16* want = reference + blockIdx.y * words;
  u32 wrong = 0, alive = 0;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += (i64)gridDim.x * blockDim.x) {
    wrong += got[i] != want[i];
    alive += want[i] != 0;
  }
  for (int lanes = 16; lanes; lanes >>= 1) {
    wrong += __shfl_xor_sync(~0u, wrong, lanes);
    alive += __shfl_xor_sync(~0u, alive, lanes);
  }
  if ((threadIdx.x & 31) == 0) {
    if (wrong) atomicAdd(counts, wrong);
    if (alive) atomicAdd(counts + 1, alive);
  }
}
