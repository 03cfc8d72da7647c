// Attention of any kind of row: f32 or bf16, blocks of any layout and type, heads of any even size up to 256, and keys
// that were stored with another rope table than the row's.
//
// A thread block takes one row and up to HEADS query heads of one KV head, alone. Keys come in tiles of 64 from
// position 0 on, scores and sums are f32, every sum has its order: a row's bits depend on its own keys alone.

#define GENERAL_THREADS 256
#define GENERAL_KEYS 64
#define GENERAL_PAIRS 4  // pairs of dims that a lane may have: 256 dims over 32 lanes

// A row, as the plan writes it. Its blocks are pairs (block, table that its keys were stored with).
struct General {
  int row;
  int position;
  int blocks_at;  // among the plan's words
  int table;
};
struct GeneralWork {
  const void* qkv;  // [rows][stride]: rotated queries first
  void* out;        // [rows][heads][head_dim]
  const u8* kv;     // one layer of the pool
  const int* counts;  // counts[2]: rows of this kind
  const General* generals;
  const int* words;
  const float2* tables;  // cos and sin [table][positions][head_dim / 2]
  KvLayout layout;
  int stride;     // elements of a row of qkv
  int heads;      // query heads
  int group;      // query heads of a KV head
  int positions;  // of a table
  float scale;    // of scores
  int spare;
};

DEVICE void store_pair(float* at, float2 x) { *(float2*)at = x; }
DEVICE void store_pair(u16* at, float2 x) { *(u32*)at = pack(x.x, x.y); }

// What turns a key into the table of the row that reads it: the rows of both tables at the key's position.
struct Turn {
  const float2* from;
  const float2* to;
  float inverse_norm;  // 1 / (cos² + sin²): not 1 where a table carries a magnitude
};
DEVICE Turn turn_of(const GeneralWork& work, int from, int to, int position) {
  int half = work.layout.head_dim / 2;
  u64 table = (u64)work.positions * half;
  float2 first = work.tables[from * table];
  float norm = __fadd_rn(__fmul_rn(first.x, first.x), __fmul_rn(first.y, first.y));
  u64 row = (u64)position * half;
  return {work.tables + from * table + row, work.tables + to * table + row, 1.f / norm};
}
// Element `dim` of a key, whose value in memory is `x`, by the difference of the two tables' angles.
DEVICE float turned_key(const KvLayout& layout, const u8* head, int row, int dim, float x, const Turn& turn) {
  int half = layout.head_dim / 2;
  bool upper = dim >= half;
  int j = upper ? dim - half : dim;
  float y = kv_load(layout, head, 0, row, upper ? j : dim + half);
  float2 from = turn.from[j], to = turn.to[j];
  float by_cos = __fmul_rn(__fadd_rn(__fmul_rn(to.x, from.x), __fmul_rn(to.y, from.y)), turn.inverse_norm);
  float by_sin = __fmul_rn(__fsub_rn(__fmul_rn(to.y, from.x), __fmul_rn(to.x, from.y)), turn.inverse_norm);
  float along = __fmul_rn(x, by_cos), across = __fmul_rn(y, by_sin);
  return upper ? __fadd_rn(along, across) : __fsub_rn(along, across);
}

// Sums of 8 values over the warp: lanes 4n .. 4n + 4 get value n.
DEVICE float sum_eight(const float v[8], int lane) {
  float four[4], two[2];
  bool upper = lane & 16;
#pragma unroll
  for (int n = 0; n < 4; n++) {
    float other = __shfl_xor_sync(~0u, upper ? v[n] : v[n + 4], 16);
    four[n] = (upper ? v[n + 4] : v[n]) + other;
  }
  upper = lane & 8;
#pragma unroll
  for (int n = 0; n < 2; n++) {
    float other = __shfl_xor_sync(~0u, upper ? four[n] : four[n + 2], 8);
    two[n] = (upper ? four[n + 2] : four[n]) + other;
  }
  upper = lane & 4;
  float other = __shfl_xor_sync(~0u, upper ? two[0] : two[1], 4);
  float one = (upper ? two[1] : two[0]) + other;
  one += __shfl_xor_sync(~0u, one, 2);
  return one + __shfl_xor_sync(~0u, one, 1);
}

// A warp's 8 keys from `key` on, against all queries: scores[query][0 .. 8], minus infinity beyond the row.
template <int HEADS>
DEVICE void score_eight(const GeneralWork& work, const General& row, int kv_head, int key,
                        const float2 q[HEADS][GENERAL_PAIRS], float scores[HEADS][GENERAL_KEYS], int at, int lane) {
  int half = work.layout.head_dim / 2;
  float sums[HEADS][8];
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
#pragma unroll
    for (int n = 0; n < 8; n++) sums[h][n] = 0.f;
  }
  int left = row.position + 1 - key;  // keys that the row reaches
  if (left > 0) {
    const int* entry = work.words + row.blocks_at + 2 * (key / BLOCK_ROWS);
    int block = entry[0], table = entry[1], first = key % BLOCK_ROWS;
    const u8* head = work.kv + kv_head_at(work.layout, block, kv_head);
#pragma unroll
    for (int i = 0; i < GENERAL_PAIRS; i++) {
      int pair = lane + 32 * i;
      if (pair >= half) break;
      float2 k[8];
#pragma unroll
      for (int n = 0; n < 8; n++) {
        k[n] = make_float2(0.f, 0.f);
        if (n < left) k[n] = kv_load_pair(work.layout, head, 0, first + n, 2 * pair);
      }
      if (table != row.table) {
#pragma unroll 1
        for (int n = 0; n < 8; n++) {
          if (n >= left) break;
          Turn turn = turn_of(work, table, row.table, key + n);
          // Written without an index into k, which lives in registers.
          float2 x = kv_load_pair(work.layout, head, 0, first + n, 2 * pair);
          x.x = turned_key(work.layout, head, first + n, 2 * pair, x.x, turn);
          x.y = turned_key(work.layout, head, first + n, 2 * pair + 1, x.y, turn);
#pragma unroll
          for (int m = 0; m < 8; m++) {
            if (m == n) k[m] = x;
          }
        }
      }
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int n = 0; n < 8; n++) {
          sums[h][n] = __fmaf_rn(q[h][i].y, k[n].y, __fmaf_rn(q[h][i].x, k[n].x, sums[h][n]));
        }
      }
    }
  }
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    float sum = sum_eight(sums[h], lane);
    if (lane % 4 == 0) scores[h][at + lane / 4] = lane / 4 < left ? sum * work.scale : NEG_INF;
  }
}

// E: of the rows. Grid (rows of this kind, or more; KV heads · pieces of a group), 256 threads.
// For scores a warp has 8 keys and a lane pairs of dims; for sums a thread has a pair of dims and a part of the keys.
template <typename E, int HEADS> DEVICE void attention_general(const GeneralWork& work) {
  __shared__ float weights[2][HEADS][GENERAL_KEYS];
  __shared__ float fades[HEADS], totals[HEADS];
  __shared__ float2 gathered[HEADS][GENERAL_THREADS];
  if ((int)blockIdx.x >= work.counts[2]) return;
  General row = work.generals[blockIdx.x];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int head_dim = work.layout.head_dim, half = head_dim / 2, keys = row.position + 1;
  int pieces = (work.group + HEADS - 1) / HEADS, kv_head = blockIdx.y / pieces, first = blockIdx.y % pieces * HEADS;
  int queries = min(HEADS, work.group - first), first_head = kv_head * work.group + first;

  const E* query = (const E*)work.qkv + (u64)row.row * work.stride + first_head * head_dim;
  float2 q[HEADS][GENERAL_PAIRS];
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
#pragma unroll
    for (int i = 0; i < GENERAL_PAIRS; i++) {
      int pair = lane + 32 * i;
      q[h][i] = h < queries && pair < half ? load_pair(query + h * head_dim + 2 * pair) : make_float2(0.f, 0.f);
    }
  }

  // A part has whole warps; there are 1, 2, 4 or 8 of them, each with as many keys of a tile.
  int part_threads = (half + 31) / 32 * 32, parts = part_threads == 32 ? 8 : part_threads == 64 ? 4 : 2;
  int part = threadIdx.x / part_threads, pair = threadIdx.x % part_threads, part_keys = GENERAL_KEYS / parts;
  bool sums_up = part < parts && pair < half;
  float2 sum[HEADS];
#pragma unroll
  for (int h = 0; h < HEADS; h++) sum[h] = make_float2(0.f, 0.f);
  float most = NEG_INF, total = 0.f;  // of query `warp`; the total by lane

  for (int tile = 0, turn = 0; tile < keys; tile += GENERAL_KEYS, turn ^= 1) {
    score_eight<HEADS>(work, row, kv_head, tile + warp * 8, q, weights[turn], warp * 8, lane);
    __syncthreads();
    if (warp < HEADS) {
      float a = weights[turn][warp][lane], b = weights[turn][warp][lane + 32];
      float new_most = fmaxf(most, warp_max(fmaxf(a, b)));
      float fade = expf(most - new_most);
      a = expf(a - new_most);
      b = expf(b - new_most);
      most = new_most;
      total = total * fade + (a + b);
      weights[turn][warp][lane] = a;
      weights[turn][warp][lane + 32] = b;
      if (lane == 0) fades[warp] = fade;
    }
    __syncthreads();
    if (sums_up) {
#pragma unroll
      for (int h = 0; h < HEADS; h++) sum[h].x *= fades[h], sum[h].y *= fades[h];
      int start = part * part_keys, end = min(start + part_keys, keys - tile);
      for (int key = start; key < end; key += 8) {
        int at = tile + key;
        int block = work.words[row.blocks_at + 2 * (at / BLOCK_ROWS)];
        const u8* head = work.kv + kv_head_at(work.layout, block, kv_head);
        float2 v[8];
#pragma unroll
        for (int n = 0; n < 8; n++) {
          v[n] = make_float2(0.f, 0.f);
          if (key + n < end) v[n] = kv_load_pair(work.layout, head, 1, at % BLOCK_ROWS + n, 2 * pair);
        }
#pragma unroll
        for (int n = 0; n < 8; n++) {
          if (key + n >= end) break;
#pragma unroll
          for (int h = 0; h < HEADS; h++) {
            float weight = weights[turn][h][key + n];
            sum[h].x = __fmaf_rn(weight, v[n].x, sum[h].x);
            sum[h].y = __fmaf_rn(weight, v[n].y, sum[h].y);
          }
        }
      }
    }
  }

  total = warp_sum(total);
  if (warp < HEADS && lane == 0) totals[warp] = total;
#pragma unroll
  for (int h = 0; h < HEADS; h++) gathered[h][threadIdx.x] = sum[h];
  __syncthreads();
  if (part != 0 || pair >= half) return;
  E* out = (E*)work.out + ((u64)row.row * work.heads + first_head) * head_dim + 2 * pair;
  for (int h = 0; h < queries; h++) {
    float share = 1.f / totals[h];
    float2 all = gathered[h][pair];
    for (int other = 1; other < parts; other++) {
      float2 more = gathered[h][other * part_threads + pair];
      all.x += more.x;
      all.y += more.y;
    }
    store_pair(out + h * head_dim, make_float2(all.x * share, all.y * share));
  }
}

extern "C" __global__ void __launch_bounds__(GENERAL_THREADS)
attention_general_single_f32(const __grid_constant__ GeneralWork work) {
  attention_general<float, 1>(work);
}
extern "C" __global__ void __launch_bounds__(GENERAL_THREADS)
attention_general_grouped_f32(const __grid_constant__ GeneralWork work) {
  attention_general<float, 4>(work);
}
extern "C" __global__ void __launch_bounds__(GENERAL_THREADS)
attention_general_single_bf16(const __grid_constant__ GeneralWork work) {
  attention_general<u16, 1>(work);
}
extern "C" __global__ void __launch_bounds__(GENERAL_THREADS)
attention_general_grouped_bf16(const __grid_constant__ GeneralWork work) {
  attention_general<u16, 4>(work);
}
