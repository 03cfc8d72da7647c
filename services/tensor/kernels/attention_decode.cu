// Attention of single rows over tiled bf16 blocks, divided over the keys of a row.
//
// Compiled for one HEAD_DIM, with WARPS rings of STAGES stages in a thread block's shared memory.
#ifndef WARPS
#define WARPS 4
#define STAGES 3
#endif
//
// A unit is a run of one row's keys; an item is a unit and up to 8 query heads of one KV head. One warp works on one
// item, by itself: it copies the item's blocks (keys and values of 16 positions, one contiguous piece) into its own
// ring, runs ahead over the borders of items, and never waits for another warp. Keys are the first operand of the
// score's matrix product and queries the second, so that 8 query heads share what was loaded.
//
// A row's bits depend on its keys alone: leaves of 128 keys from position 0 on are joined in a binary tree over their
// positions, whoever joins them. A unit is a whole subtree; a warp joins its leaves in registers, and subtrees of
// different units are joined through memory by the warp that ends last.

#define UNIT_WORDS 16
#define UNIT_BLOCKS 8  // block numbers that a unit carries itself
// Words of a unit, as the plan writes them.
enum {
  UNIT_ROW, UNIT_FIRST_KEY, UNIT_KEYS, UNIT_BLOCKS_AT, UNIT_PARTIAL, UNIT_PARTIALS, UNIT_INDEX, UNIT_SPARE,
  UNIT_FIRST_BLOCK
};

struct DecodeWork {
  const u16* qkv;    // [rows][stride]: rotated queries first
  u16* out;          // [rows][heads][HEAD_DIM]
  const u8* kv;      // one layer of the pool
  const int* counts; // counts[0]: units
  const int* units;  // [units][UNIT_WORDS], and as many readable ones behind as there are warps
  const int* words;  // where a unit's blocks lie
  float* partials;   // [partial][heads][HEAD_DIM]: unfinished outputs
  float2* sums;      // [partial][heads]: their greatest score and their total
  u32* arrived;      // [partial][kv_heads · chunks]: 0 between launches
  float* held;       // [warp][levels][values][32 lanes]: subtrees of long units
  u64 head_bytes;    // a KV head's keys and values in a block
  int stride;        // elements of a row of qkv
  int heads;         // query heads
  int kv_heads;
  int group;         // query heads of a KV head
  int chunks;        // pieces of at most 8 that a group is cut into
  int levels;        // of `held`
  float scale;       // of scores, times log2 e
  int spare;
};

constexpr int TILE = HEAD_DIM % 64 == 0 ? 64 : HEAD_DIM % 32 == 0 ? 32 : 16;  // dims of a tiled line
constexpr int STEPS = HEAD_DIM / 16;                                          // matrix products over a head's dims
constexpr int EIGHT_BYTES = 8 * HEAD_DIM * KV_BYTES;                          // 8 positions of keys, or of values
constexpr int VALUES_AT = 2 * EIGHT_BYTES;
constexpr int STAGE_BYTES = 4 * EIGHT_BYTES;
constexpr int LEAF_KEYS = 128;
static_assert(KV_TYPE == KV_BF16, "blocks are multiplied as they rest");
static_assert(HEAD_DIM % 16 == 0 && HEAD_DIM >= 64 && HEAD_DIM <= 160, "a tiled head");
static_assert(STAGES >= 2 && STAGES <= 8, "two blocks are read at a time");

// The lane's part of a matrix address: position `r` (0..8) of a group, dims 16 step + 8 side on.
DEVICE u32 fragment_at(int r, int step, int side) {
  int turn = TILE == 64 ? r : TILE == 32 ? (r >> 1) & 3 : (r >> 2) & 1;
  int chunk = ((16 * step % TILE) >> 3) + side;
  return (16 * step / TILE) * (16 * TILE) + r * (2 * TILE) + ((chunk ^ turn) << 4);
}

// The sums over a subtree's keys, spread over the warp: columns are queries, rows are dims g and g + 8 of every 16.
// COLUMNS is 2 (queries 2t and 2t + 1), or 1 where all columns are the same query.
enum { MOST, TOTAL, OUTPUT };
template <int COLUMNS> struct Subtree {
  static constexpr int VALUES = OUTPUT + 2 * STEPS;
  float v[COLUMNS][VALUES];  // the greatest score, the sum of weights, the weighted values
};

// How two neighbours are joined: by the weights of the left and the right one.
struct Join {
  float most, left, right;
};
DEVICE Join join_by(float left, float right) {
  float most = fmaxf(left, right);
  return {most, exp2_fast(left - most), exp2_fast(right - most)};
}
DEVICE float joined(Join by, float left, float right) { return __fmaf_rn(right, by.right, __fmul_rn(left, by.left)); }

// right ← node(left, right), where left(c, k) is a value of the left one.
template <int COLUMNS, typename Left> DEVICE void join(Left left, Subtree<COLUMNS>& right) {
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) {
    Join by = join_by(left(c, MOST), right.v[c][MOST]);
    right.v[c][MOST] = by.most;
#pragma unroll
    for (int k = TOTAL; k < right.VALUES; k++) right.v[c][k] = joined(by, left(c, k), right.v[c][k]);
  }
}
template <int COLUMNS> DEVICE void join(const Subtree<COLUMNS>& left, Subtree<COLUMNS>& right) {
  join([&](int c, int k) { return left.v[c][k]; }, right);
}
// A subtree into, and out of, a lane's own places in memory.
template <int COLUMNS> DEVICE void hold(const Subtree<COLUMNS>& from, float* to) {
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
    for (int k = 0; k < from.VALUES; k++) to[(c * from.VALUES + k) * 32] = from.v[c][k];
  }
}
template <int COLUMNS> DEVICE void join_held(const float* left, Subtree<COLUMNS>& right) {
  join([&](int c, int k) { return left[(c * right.VALUES + k) * 32]; }, right);
}

// A warp's ring, and what it loads: the item being worked on or the one after it. All fields but the words and `ids`
// are the same in all lanes.
struct Ring {
  u32 base, barriers;
  int slot, in_flight;   // the next stage to fill; stages filled and not yet given back
  int read_slot;
  u32 read_phase;
  int word;              // the lane's word of the unit being loaded
  int ids;               // block `lane` of the 32 that the next block is among
  int head;              // the KV head being loaded
  int at, blocks;        // the next block, and how many there are
  int next_word, next_head;
  bool has_next;         // whether there is an item after this one that has not begun to load

  DEVICE void start(int unit_word, int kv_head, const int* words, int lane) {
    word = unit_word;
    head = kv_head;
    at = 0;
    blocks = (__shfl_sync(~0u, word, UNIT_KEYS) + BLOCK_ROWS - 1) / BLOCK_ROWS;
    load_ids(words, lane);
  }
  // Fills all stages, as far as there are blocks.
  DEVICE void fill(const DecodeWork& work, int lane) {
    while (in_flight < STAGES) {
      if (at == blocks) {
        if (!has_next) break;
        has_next = false;
        start(next_word, next_head, work.words, lane);
      }
      issue(work, lane);
    }
  }
  DEVICE void load_ids(const int* words, int lane) {
    int first = __shfl_sync(~0u, word, UNIT_BLOCKS_AT);
    if (at + lane < blocks && at + lane >= UNIT_BLOCKS) ids = words[first + at + lane];
  }
  // Copies the next block into the ring's next stage.
  DEVICE void issue(const DecodeWork& work, int lane) {
    int block = at < UNIT_BLOCKS ? __shfl_sync(~0u, word, UNIT_FIRST_BLOCK + at) : __shfl_sync(~0u, ids, at & 31);
    const u8* from = work.kv + ((u64)(u32)block * work.kv_heads + head) * work.head_bytes;
    u32 to = base + slot * STAGE_BYTES;
#if __CUDA_ARCH__ >= 900
    if (lane == 0) {
      barrier_expect(barriers + slot * 8, STAGE_BYTES);
      copy_bulk(to, from, STAGE_BYTES, barriers + slot * 8, L2_EVICT_FIRST);
    }
#else
#pragma unroll
    for (int i = lane * 16; i < STAGE_BYTES; i += 512) copy_async16(to + i, from + i, 16);
    copy_commit();
#endif
    if (++slot == STAGES) slot = 0;
    in_flight++;
    if (++at % 32 == 0 && at < blocks) load_ids(work.words, lane);
  }
  // The oldest stage that was filled, once it is complete; `later` stages were taken since the last release.
  DEVICE u32 take(int later) {
    u32 stage = base + read_slot * STAGE_BYTES;
#if __CUDA_ARCH__ >= 900
    barrier_wait(barriers + read_slot * 8, read_phase);
#else
    switch (in_flight - later - 1) {  // copies that may still be on their way
      case 0: copy_wait<0>(); break;
      case 1: copy_wait<1>(); break;
      case 2: copy_wait<2>(); break;
      default: copy_wait<3>(); break;
    }
    __syncwarp();
#endif
    if (++read_slot == STAGES) read_slot = 0, read_phase ^= 1;
    return stage;
  }
};

// Values from position `valid` of a stage on become zero: a block used before may hold NaN there, which a weight of
// zero does not silence.
DEVICE void clear_values(u32 stage, int valid, int lane) {
  constexpr int CHUNKS = HEAD_DIM / 8, LINE_CHUNKS = TILE / 8;
  for (int i = valid * CHUNKS + lane; i < BLOCK_ROWS * CHUNKS; i += 32) {
    int row = i / CHUNKS, chunk = i % CHUNKS;
    u32 at = stage + VALUES_AT + (row >> 3) * EIGHT_BYTES + (chunk / LINE_CHUNKS) * (16 * TILE) +
             (row & 7) * (2 * TILE) + (chunk % LINE_CHUNKS) * 16;
    asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(at), "r"(0) : "memory");
  }
#if __CUDA_ARCH__ >= 900
  async_proxy_fence();  // the stage's next copy comes after these writes
#endif
  __syncwarp();
}

// Queries of an item as the second operand: dims 16 s + 2t, + 1 and + 8, + 9 of query g. Columns without a query: 0.
template <int COLUMNS>
DEVICE void load_queries(const DecodeWork& work, int row, int first_head, int queries, int lane, u32 q[STEPS][2]) {
  int column = COLUMNS == 1 ? 0 : lane >> 2, head = first_head + min(column, queries - 1);
  const u32* from = (const u32*)(work.qkv + (u64)row * work.stride + head * HEAD_DIM) + (lane & 3);
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    q[s][0] = column < queries ? from[8 * s] : 0;
    q[s][1] = column < queries ? from[8 * s + 4] : 0;
  }
}

// One leaf: a unit's next keys, 128 or, at its end, fewer. The stages it reads are filled again as it goes.
template <int COLUMNS>
DEVICE void leaf(const DecodeWork& work, Ring& ring, const u32 q[STEPS][2], int keys, int lane,
                 Subtree<COLUMNS>& sums) {
  int g = lane >> 2, side = lane >> 4, other = (lane >> 3) & 1, r = lane & 7;
  u32 key_lane = other * EIGHT_BYTES, value_lane = VALUES_AT + side * EIGHT_BYTES;
  float acc[STEPS][4];
#pragma unroll
  for (int i = 0; i < STEPS; i++) acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.f;
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) sums.v[c][MOST] = NEG_INF, sums.v[c][TOTAL] = 0.f;
  int blocks = (keys + BLOCK_ROWS - 1) / BLOCK_ROWS;
  // 32 keys at a time: two independent chains of products for each block hide their latency.
#pragma unroll 1
  for (int b = 0; b < blocks; b += 2) {
    bool two = b + 1 < blocks;
    int left = keys - b * BLOCK_ROWS;
    u32 stage[2];
    float s[2][2][4];
#pragma unroll
    for (int i = 0; i < 4; i++) s[0][0][i] = s[0][1][i] = s[1][0][i] = s[1][1][i] = 0.f;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (h && !two) {
        stage[1] = stage[0];
        break;
      }
      stage[h] = ring.take(h);
      if (left - BLOCK_ROWS * h < BLOCK_ROWS) clear_values(stage[h], left - BLOCK_ROWS * h, lane);
#pragma unroll
      for (int i = 0; i < STEPS; i++) {
        u32 a[4];
        load_matrix4(a, stage[h] + key_lane + fragment_at(r, i, side));
        mma(s[h][i & 1], a, q[i][0], q[i][1]);
      }
    }
    // p[i]: key g + 8 i.
    float p[4][COLUMNS], fade[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        int at = 2 * (i & 1) + c;
        p[i][c] = __fmul_rn(s[i >> 1][0][at] + s[i >> 1][1][at], work.scale);
        if (g + 8 * i >= left) p[i][c] = NEG_INF;
      }
      float most = fmaxf(fmaxf(p[0][c], p[1][c]), fmaxf(p[2][c], p[3][c]));
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes <<= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, lanes));
      most = fmaxf(sums.v[c][MOST], most);
      fade[c] = exp2_fast(sums.v[c][MOST] - most);
      sums.v[c][MOST] = most;
#pragma unroll
      for (int i = 0; i < 4; i++) p[i][c] = exp2_fast(p[i][c] - most);
      sums.v[c][TOTAL] = __fmaf_rn(sums.v[c][TOTAL], fade[c], (p[0][c] + p[1][c]) + (p[2][c] + p[3][c]));
    }
    u32 weights[4];
#pragma unroll
    for (int i = 0; i < 4; i++) weights[i] = transpose_matrix(pack(p[i][0], p[i][COLUMNS - 1]));
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (h && !two) break;
#pragma unroll
      for (int i = 0; i < STEPS; i++) {
        u32 a[4];
        load_matrix4_transposed(a, stage[h] + value_lane + fragment_at(r, i, other));
#pragma unroll
        for (int c = 0; c < COLUMNS && h == 0; c++) acc[i][c] *= fade[c], acc[i][2 + c] *= fade[c];
        mma(acc[i], a, weights[2 * h], weights[2 * h + 1]);
      }
    }
    __syncwarp();
    ring.in_flight -= two ? 2 : 1;
    ring.fill(work, lane);
  }
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) {
    float& total = sums.v[c][TOTAL];
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes <<= 1) total += __shfl_xor_sync(~0u, total, lanes);
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      sums.v[c][OUTPUT + 2 * i] = acc[i][c];
      sums.v[c][OUTPUT + 2 * i + 1] = acc[i][2 + c];
    }
  }
}

// Four dims of one query's subtree, as they lie in memory.
struct Node {
  float4 v;
  float2 sum;  // greatest score, total
};
DEVICE void node(Node& left, const Node& right) {
  Join by = join_by(left.sum.x, right.sum.x);
  left.sum = make_float2(by.most, joined(by, left.sum.y, right.sum.y));
  left.v.x = joined(by, left.v.x, right.v.x);
  left.v.y = joined(by, left.v.y, right.v.y);
  left.v.z = joined(by, left.v.z, right.v.z);
  left.v.w = joined(by, left.v.w, right.v.w);
}
// Up to eight neighbours in the order of the tree.
DEVICE Node eight(Node n[8], int members) {
  if (members > 1) node(n[0], n[1]);
  if (members > 3) node(n[2], n[3]);
  if (members > 2) node(n[0], n[2]);
  if (members > 5) node(n[4], n[5]);
  if (members > 7) node(n[6], n[7]);
  if (members > 6) node(n[4], n[6]);
  if (members > 4) node(n[0], n[4]);
  return n[0];
}

// A unit that is not its row's only one has left its subtree in `partials`. Eight neighbours are joined by the warp
// that ends last among them, their results again by eights, and so on; the last of all writes the row's output.
DEVICE void merge(const DecodeWork& work, int row, int partial, int index, int count, int first_head, int queries,
                  int item, int lane) {
  constexpr int FOURS = HEAD_DIM / 4;
  int base = partial - index, items = work.kv_heads * work.chunks;
#pragma unroll 1
  for (int level = 0; count > 1; level++) {
    int group = index >> 3, members = min(8, count - group * 8);
    bool top = count <= 8;
    if (members > 1) {
      __threadfence();
      __syncwarp();
      u32* arrived = work.arrived + (u64)(base + (group << (3 * level + 3)) + level) * items + item;
      u32 before = 0;
      if (lane == 0) before = atomicAdd(arrived, 1);
      if (__shfl_sync(~0u, before, 0) != members - 1) return;
      __threadfence();
      if (lane == 0) *arrived = 0;
      // Partial i of the group, query c: place (first + i · stride) · heads + c.
      u64 first = (u64)(base + (group << (3 * level + 3))) * work.heads + first_head;
      u64 stride = ((u64)1 << (3 * level)) * work.heads;
      auto joined_at = [&](int query, int four) {
        Node n[8];  // all loads are on their way together
#pragma unroll
        for (int i = 0; i < 8; i++) {
          if (i >= members) break;
          u64 place = first + query + i * stride;
          n[i].v = __ldcg((const float4*)(work.partials + place * HEAD_DIM) + four);
          n[i].sum = __ldcg(work.sums + place);
        }
        return eight(n, members);
      };
#pragma unroll 1
      for (int task = lane; task < queries * FOURS; task += 32) {
        int query = task / FOURS, four = task - query * FOURS;
        Node all = joined_at(query, four);
        if (top) {
          float share = 1.f / all.sum.y;
          uint2* out = (uint2*)(work.out + ((u64)row * work.heads + first_head + query) * HEAD_DIM);
          out[four] = make_uint2(pack(all.v.x * share, all.v.y * share), pack(all.v.z * share, all.v.w * share));
        } else {
          __stcg((float4*)(work.partials + (first + query) * HEAD_DIM) + four, all.v);
        }
      }
      __syncwarp();  // no lane reads the first one's sums any more
      if (!top && lane < queries) __stcg(work.sums + first + lane, joined_at(lane, 0).sum);
    }
    index = group;
    count = (count + 7) >> 3;
  }
}

// Writes a finished row, or an unfinished unit's subtree.
template <int COLUMNS>
DEVICE void store(const DecodeWork& work, const Subtree<COLUMNS>& sums, int row, int partial, int first_head,
                  int queries, int lane) {
  int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int c = 0; c < COLUMNS; c++) {
    int query = COLUMNS == 1 ? 0 : 2 * t + c;
    if (query >= queries) continue;
    const float* v = sums.v[c];
    float share = 1.f / v[TOTAL];
    u16* out = work.out + ((u64)row * work.heads + first_head + query) * HEAD_DIM + g;
    u64 place = (u64)max(partial, 0) * work.heads + first_head + query;
    float* part = work.partials + place * HEAD_DIM + g;
#pragma unroll
    for (int k = 0; k < 2 * STEPS; k++) {
      if (COLUMNS == 1 && (k / 2 & 3) != t) continue;  // the four lanes of a row hold the same
      if (partial < 0) {
        out[8 * k] = round_bf16(v[OUTPUT + k] * share);
      } else {
        __stcg(part + 8 * k, v[OUTPUT + k]);
      }
    }
    if (partial >= 0 && g == 0 && (COLUMNS == 2 || t == 0)) __stcg(work.sums + place, make_float2(v[MOST], v[TOTAL]));
  }
}

// Grid: as many blocks as the card has multiprocessors; WARPS warps each. Warp w of block b takes items
// w · blocks + b, and on by the number of warps, KV heads fastest: what lies side by side is read at one time.
template <int COLUMNS> DEVICE void attention_decode(const DecodeWork& work) {
  extern __shared__ __align__(1024) u8 shared[];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int items = work.kv_heads * work.chunks, warps = WARPS * gridDim.x;
  int item = warp * gridDim.x + blockIdx.x;
  auto unit_word = [&](int i) { return __ldg(work.units + i / items * UNIT_WORDS + lane % UNIT_WORDS); };
  // Loaded before it is known whether there is such a unit, so that one wait is for both.
  int word = unit_word(item);
  int total = work.counts[0] * items;
  if (item >= total) return;

  Ring ring;
  ring.base = shared_address(shared) + warp * STAGES * STAGE_BYTES;
  ring.barriers = shared_address(shared) + WARPS * STAGES * STAGE_BYTES + warp * STAGES * 8;
  ring.slot = ring.in_flight = ring.read_slot = 0;
  ring.read_phase = 0;
  ring.ids = 0;
#if __CUDA_ARCH__ >= 900
  if (lane == 0) {
    for (int i = 0; i < STAGES; i++) barrier_init(ring.barriers + i * 8, 1);
    barrier_init_fence();
  }
  __syncwarp();
#endif
  ring.has_next = false;
  ring.next_word = 0;
  ring.next_head = 0;
  ring.start(word, item % items / work.chunks, work.words, lane);
  ring.fill(work, lane);

  u32 q_next[STEPS][2];
  auto queries_of = [&](int i) { return min(8, work.group - i % items % work.chunks * 8); };
  auto first_head_of = [&](int i) { return i % items / work.chunks * work.group + i % items % work.chunks * 8; };
  load_queries<COLUMNS>(work, __shfl_sync(~0u, word, UNIT_ROW), first_head_of(item), queries_of(item), lane, q_next);
#pragma unroll 1
  while (true) {
    u32 q[STEPS][2];
#pragma unroll
    for (int i = 0; i < STEPS; i++) q[i][0] = q_next[i][0], q[i][1] = q_next[i][1];
    int next = item + warps;
    if (next < total) {
      ring.next_word = unit_word(next);
      ring.next_head = next % items / work.chunks;
      ring.has_next = true;
      ring.fill(work, lane);
      int row = __shfl_sync(~0u, ring.next_word, UNIT_ROW);
      load_queries<COLUMNS>(work, row, first_head_of(next), queries_of(next), lane, q_next);
    }

    // A binary counter over the unit's leaves: where bit k of `done` is set, a subtree of 2^k leaves waits to become
    // a left node. The least ones wait in registers.
    constexpr int HELD = COLUMNS * Subtree<COLUMNS>::VALUES * 32;
    float* held = work.held + (u64)(warp * gridDim.x + blockIdx.x) * work.levels * HELD + lane;
    int keys = __shfl_sync(~0u, word, UNIT_KEYS);
    Subtree<COLUMNS> sums, one, two;
#pragma unroll 1
    for (int done = 0; keys > 0; done++, keys -= LEAF_KEYS) {
      leaf<COLUMNS>(work, ring, q, min(keys, LEAF_KEYS), lane, sums);
      bool last = keys <= LEAF_KEYS;
      auto waits = [&](int bit, Subtree<COLUMNS>& left) {
        if (done & bit) join(left, sums);
        else if (!last) left = sums;
        return !(done & bit) && !last;
      };
      if (waits(1, one) || (COLUMNS == 1 && waits(2, two))) continue;
      float* at = held;
      for (int bits = done >> (COLUMNS == 1 ? 2 : 1); bits != 0; bits >>= 1, at += HELD) {
        if (bits & 1) join_held(at, sums);
        else if (!last) break;
      }
      if (!last) hold(sums, at);
    }

    int row = __shfl_sync(~0u, word, UNIT_ROW), partial = __shfl_sync(~0u, word, UNIT_PARTIAL);
    int queries = queries_of(item), first_head = first_head_of(item);
    store(work, sums, row, partial, first_head, queries, lane);
    if (partial >= 0) {
      merge(work, row, partial, __shfl_sync(~0u, word, UNIT_INDEX), __shfl_sync(~0u, word, UNIT_PARTIALS), first_head,
            queries, item % items, lane);
    }
    if (next >= total) break;
    item = next;
    word = ring.next_word;
  }
}

// Groups of one query head.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
attention_decode_single_bf16(const __grid_constant__ DecodeWork work) {
  attention_decode<1>(work);
}
// Groups of several.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
attention_decode_grouped_bf16(const __grid_constant__ DecodeWork work) {
  attention_decode<2>(work);
}
