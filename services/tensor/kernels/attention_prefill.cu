// Causal attention of prompt rows over tiled blocks of bf16, by Hopper's asynchronous copies and products (sm_90a).
//
// HEAD_DIM is 64 or 128. A step's prompt rows come as tiles of up to 128 rows of one span; an item is a tile and a
// head. Keys and values come in tiles of 128 at absolute positions from 0, and every row takes the same operations in
// the same order however its prompt is cut: what a row does not see adds exactly nothing, done or left out (stored
// values are finite, rope.cu sees to it). So the products with an upper half of keys that no row of a warpgroup sees
// are left out.
//
// The blocks rest in the swizzle that the products read (prelude: kv_tiled_at with lines of 64 dims), so plain bulk
// copies make a tile of them; queries are swizzled by their tensor map.
//
// What made it fast, in TFLOP/s of an H200 (64 heads of 128, prompts of 2,048 and 4,096 rows; all have the same bits):
//   453 458  items dealt to blocks there and back; products and weights one after the other
//   460 518  items drawn from a counter (Items)
//   465 533  items dealt, but weights beside products (Consumer::next), descriptors in uniform registers (uniform), and
//            no products by a fade of 1
//   485 527  all of these
//   493 558  and stores of 16 bytes (Consumer::store)
#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif

// A tile's rows, and where its span's block table begins.
struct Tile { int first_row, rows, first_position, blocks_at; };

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static_assert(KV_TYPE == KV_BF16, "blocks are multiplied as they rest");
static_assert(HEAD_DIM == 64 || HEAD_DIM == 128, "lines of 64 dims, one or two");

#define TILE_ROWS 128
#define GROUP_ROWS 64                            // rows of a warpgroup
#define TILE_KEYS 128
#define HALF_KEYS 64
#define STAGES 3
#define ELEMENT_BYTES 2                          // of a query
#define ATOM_BYTES 1024                          // 8 rows of 64 dims
#define EIGHT_BYTES (8 * HEAD_DIM * KV_BYTES)    // 8 positions of a head: HEAD_DIM / 64 atoms
#define PART_BYTES (2 * EIGHT_BYTES)             // the keys, or values, of a block
#define TILE_BYTES (TILE_KEYS * HEAD_DIM * KV_BYTES)
#define QUERY_LINE_BYTES (TILE_ROWS * 128)       // 64 dims of all rows of a tile
#define CONSUMERS 2

// === a thread's two rows (g and g + 8 of its warp's 16) ===

// Scores are scaled, to base 2, when they become weights; `peak` is the greatest scaled score so far.
struct Rows {
  float peak[2], sum[2], fade[2];  // fade: what the sums so far are multiplied by
};

// Turns scores into weights 2^(score · scale − peak), masked where a key lies beyond the row.
// scores[4 i + 2 r + c]: row r, key `key` + 8 i + c.
template <int KEYS>
DEVICE void weigh(float* scores, Rows& rows, int key, const int* position, bool masked, float scale) {
  if (masked) {
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        if (key + i * 8 + (e & 1) > position[e >> 1]) scores[i * 4 + e] = NEG_INF;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float most = NEG_INF;
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++) most = fmaxf(most, fmaxf(scores[i * 4 + r * 2], scores[i * 4 + r * 2 + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    // Rounded before the comparison, never fused: where nothing new is seen, fade is 2^0 = 1 exactly.
    float peak = fmaxf(rows.peak[r], __fmul_rn(most, scale)), sum = 0.f;
    rows.fade[r] = exp2_fast(__fsub_rn(rows.peak[r], peak));
    rows.peak[r] = peak;
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++) {
      float* pair = scores + i * 4 + r * 2;
      pair[0] = exp2_fast(__fmaf_rn(pair[0], scale, -peak));
      pair[1] = exp2_fast(__fmaf_rn(pair[1], scale, -peak));
      sum = __fadd_rn(sum, __fadd_rn(pair[0], pair[1]));
    }
    rows.sum[r] = __fmaf_rn(rows.sum[r], rows.fade[r], sum);
  }
}

// Weights as the left side of products, 16 keys in four registers.
template <int KEYS> DEVICE void pack_weights(u32* weights, const float* scores) {
#pragma unroll
  for (int i = 0; i < KEYS / 4; i++) weights[i] = pack(scores[i * 2], scores[i * 2 + 1]);
}

// === products of a tile ===

template <int KEYS> DEVICE void begin_scores(float* scores, u32 queries, u32 keys) {
  u64 q = atoms(queries, 16, ATOM_BYTES), k = atoms(keys, 16, EIGHT_BYTES);
  products_begin();
#pragma unroll
  for (int i = 0; i < HEAD_DIM / 16; i++) {
    u32 line = i >> 2, within = (i & 3) * 2;
    Product<KEYS>::by_depth(scores, q + line * (QUERY_LINE_BYTES >> 4) + within,
                            k + line * (ATOM_BYTES >> 4) + within, i > 0);
  }
  products_commit();
}

template <int KEYS> DEVICE void begin_values(float* sums, const u32* weights, u32 values) {
  u64 v = atoms(values, ATOM_BYTES, EIGHT_BYTES);
  products_begin();
#pragma unroll
  for (int i = 0; i < KEYS / 16; i++) Product<HEAD_DIM>::by_column(sums, weights + i * 4, v + i * (PART_BYTES >> 4));
  products_commit();
}

// === the ring ===

// A tile and a head of queries. Head -1: there are no more.
struct Item { Tile tile; int head; };

// Barriers of a block: `full` ones tell the consumers, `empty` ones the producer.
struct Ring {
  u32 queries, keys, values;  // shared memory
  u32 barriers;
  Item* items;  // the one at work and the next, as the producer drew them
  DEVICE u32 queries_full() const { return barriers; }
  DEVICE u32 queries_empty() const { return barriers + 8; }
  DEVICE u32 tail_landed() const { return barriers + 16; }
  DEVICE u32 keys_full(u32 stage) const { return barriers + 24 + stage * 8; }
  DEVICE u32 keys_empty(u32 stage) const { return barriers + 24 + (STAGES + stage) * 8; }
  DEVICE u32 values_full(u32 stage) const { return barriers + 24 + (2 * STAGES + stage) * 8; }
  DEVICE u32 values_empty(u32 stage) const { return barriers + 24 + (3 * STAGES + stage) * 8; }
  // Written and read where the queries are. Two do, as two phases do: no warp falls behind by two rounds.
  DEVICE Item& item(u32 round) const { return items[round & 1]; }
};
#define BARRIERS (3 + 4 * STAGES)

// Key tiles done since the kernel's start: stage and phase of the next.
struct Cursor {
  u32 stage, phase;
  DEVICE void step() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
};

// The items of a launch: heads in sets, whose keys and values rest in the L2 cache together where they can; in a set
// tile by tile as they come (longest first), its heads side by side. A block begins with the item of its own number and
// draws on: no count of tiles beforehand tells how long an item takes while others use the same memory.
struct Items {
  const Tile* tiles;
  int tiles_count, heads, set;
  u32* drawn;  // by all blocks: 0 between launches
  DEVICE int count() const { return tiles_count * heads; }
  // Every item is followed by one draw, and no block is without an item: the last of `count` draws makes it 0 again.
  DEVICE int draw() const {
    int before = atomicAdd(drawn, 1);
    if (before == count() - 1) *drawn = 0;
    return gridDim.x + before;
  }
  DEVICE Item at(int index) const {
    int set_items = tiles_count * set, first = index / set_items * set, wide = min(set, heads - first);
    int within = index % set_items;
    return {tiles[within / wide], first + within % wide};
  }
};

// Zeros in the values from row `first` of a tile to row `end`.
DEVICE void clear_values(u32 values, int first, int end, int lane) {
  constexpr int CHUNKS = HEAD_DIM / 8;  // of 16 bytes in a row
  for (int i = first * CHUNKS + lane; i < end * CHUNKS; i += 32) {
    int row = i / CHUNKS, chunk = i % CHUNKS;
    u32 at = values + (row >> 3) * EIGHT_BYTES + (chunk >> 3) * ATOM_BYTES + (row & 7) * 128 + (chunk & 7) * 16;
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
  }
}

// One warp: queries of each item, then its keys and values, as fast as stages become free.
DEVICE void produce(const Ring& ring, const Items& items, const TensorMap* queries, const u8* kv,
                    const int* __restrict__ blocks, int group) {
  int lane = threadIdx.x & 31, kv_heads = items.heads / group;
  Cursor cursor = {0, 0};
  u32 tails = 0, round = 0;
  for (int index = blockIdx.x; index < items.count(); round++) {
    Item item = items.at(index);
    const Tile& tile = item.tile;
    int last = tile.first_position + tile.rows - 1, last_block = last / BLOCK_ROWS;
    const int* table = blocks + tile.blocks_at;
    for (int first = 0; first <= last_block; first += TILE_KEYS / BLOCK_ROWS, cursor.step()) {
      // Blocks beyond the last row's are not touched; their keys are masked, whatever rests in this memory.
      int count = min(TILE_KEYS / BLOCK_ROWS, last_block - first + 1);
      bool mine = lane < count;
      const u8* from = kv;
      if (mine) from += ((u64)table[first + lane] * kv_heads + item.head / group) * (2 * PART_BYTES);
      u32 to = cursor.stage * TILE_BYTES + lane * PART_BYTES;

      barrier_wait(ring.keys_empty(cursor.stage), cursor.phase ^ 1);
      if (lane == 0) barrier_expect(ring.keys_full(cursor.stage), count * PART_BYTES);
      __syncwarp();
      if (mine) copy_bulk(ring.keys + to, from, PART_BYTES, ring.keys_full(cursor.stage), L2_EVICT_LAST);

      if (first == 0) {
        barrier_wait(ring.queries_empty(), (round & 1) ^ 1);
        if (lane == 0) {
          ring.item(round) = item;
          barrier_expect(ring.queries_full(), TILE_ROWS * HEAD_DIM * ELEMENT_BYTES);
#pragma unroll
          for (int line = 0; line < HEAD_DIM / 64; line++) {
            copy_box(ring.queries + line * QUERY_LINE_BYTES, queries, ring.queries_full(),
                     item.head * HEAD_DIM + line * 64, tile.first_row, L2_EVICT_FIRST);
          }
        }
        __syncwarp();
      }

      // Beyond the last row may be anything, NaN too, and a weight of 0 does not cure that: it becomes 0.
      int rows = last + 1 - first * BLOCK_ROWS;
      bool tail = rows < TILE_KEYS;
      u32 full = ring.values_full(cursor.stage), landed = tail ? ring.tail_landed() : full;
      barrier_wait(ring.values_empty(cursor.stage), cursor.phase ^ 1);
      if (lane == 0) barrier_expect(landed, count * PART_BYTES);
      __syncwarp();
      if (mine) copy_bulk(ring.values + to, from + PART_BYTES, PART_BYTES, landed, L2_EVICT_LAST);
      if (tail) {
        barrier_wait(landed, tails++ & 1);
        clear_values(ring.values + cursor.stage * TILE_BYTES, rows, rows <= HALF_KEYS ? HALF_KEYS : TILE_KEYS, lane);
        async_proxy_fence();
        __syncwarp();
        if (lane == 0) barrier_arrive(full);
      }
    }
    int drawn = 0;
    if (lane == 0) drawn = items.draw();
    index = __shfl_sync(~0u, drawn, 0);
  }
  barrier_wait(ring.queries_empty(), (round & 1) ^ 1);
  if (lane == 0) {
    ring.item(round).head = -1;
    barrier_arrive(ring.queries_full());
  }
}

// A warpgroup's 64 rows of each item. Products with the next tile's keys begin before those with this tile's values,
// so that weights are computed beside products.
struct Consumer {
  const Ring& ring;
  int group;
  float scale;
  u32 queries;
  bool leader;
  Cursor cursor;  // of the tile whose scores are, or become, weights
  int key, position[2], first_position, final_tile;
  Rows rows;
  float sums[HEAD_DIM / 2];
  u32 weights[TILE_KEYS / 4];

  // The keys, and with the last tile's the queries: the next item's may come.
  DEVICE void free_scored(int tile) const {
    if (!leader) return;
    barrier_arrive(ring.keys_empty(cursor.stage));
    if (tile == final_tile) barrier_arrive(ring.queries_empty());
  }
  DEVICE void free_values(const Cursor& of) const {
    if (leader) barrier_arrive(ring.values_empty(of.stage));
  }
  // `scores` are the caller's own: kept from tile to tile, they would count as what the next products start from.
  template <int KEYS> DEVICE void scores_to_weights(float* scores, int tile) {
    bool masked = tile * TILE_KEYS + KEYS - 1 > first_position;
    weigh<KEYS>(scores, rows, tile * TILE_KEYS + key, position, masked, scale);
  }

  // The first tile's weights.
  template <int KEYS> DEVICE void first() {
    float scores[KEYS / 2];
    barrier_wait(ring.keys_full(cursor.stage), cursor.phase);
    begin_scores<KEYS>(scores, queries, ring.keys + cursor.stage * TILE_BYTES);
    products_wait<0>();
    products_settle<KEYS / 2>(scores);
    free_scored(0);
    scores_to_weights<KEYS>(scores, 0);
    pack_weights<KEYS>(weights, scores);
  }
  // The weights of tile `tile`, of which KEYS are seen, and the sums of the whole tile before it.
  template <int KEYS> DEVICE void next(int tile) {
    float scores[KEYS / 2];
    Cursor before = cursor;
    cursor.step();
    // These values came before the keys. Waiting between the products would make the compiler run them one by one.
    barrier_wait(ring.values_full(before.stage), before.phase);
    barrier_wait(ring.keys_full(cursor.stage), cursor.phase);
    begin_scores<KEYS>(scores, queries, ring.keys + cursor.stage * TILE_BYTES);
    begin_values<TILE_KEYS>(sums, weights, ring.values + before.stage * TILE_BYTES);
    products_wait<1>();
    products_settle<KEYS / 2>(scores);
    free_scored(tile);
    scores_to_weights<KEYS>(scores, tile);
    // The wait stands in both branches, because the assembler (ptxas 13.0) moves one that follows straight on in front
    // of the weights' arithmetic, and then products and weights take turns instead of running side by side. What it
    // branches on is of use too: where no row of the warp has a new peak, the product by a fade of 1 is left out.
    if (__any_sync(~0u, rows.fade[0] != 1.f || rows.fade[1] != 1.f)) {
      end_values(before);
#pragma unroll
      for (int i = 0; i < HEAD_DIM / 2; i++) sums[i] = __fmul_rn(sums[i], rows.fade[(i >> 1) & 1]);
    } else {
      end_values(before);
    }
    pack_weights<KEYS>(weights, scores);
  }
  DEVICE void end_values(const Cursor& of) {
    products_wait<0>();
    products_settle<HEAD_DIM / 2>(sums);
    free_values(of);
  }
  // The last tile's sums.
  template <int KEYS> DEVICE void last() {
    barrier_wait(ring.values_full(cursor.stage), cursor.phase);
    begin_values<KEYS>(sums, weights, ring.values + cursor.stage * TILE_BYTES);
    end_values(cursor);
    cursor.step();
  }
  // A tile that no row of this warpgroup sees. Its barriers are waited for all the same, by all warps (which products
  // would have brought together): who falls behind by two phases takes them for none.
  DEVICE void pass() {
    barrier_wait(ring.keys_full(cursor.stage), cursor.phase);
    barrier_wait(ring.values_full(cursor.stage), cursor.phase);
    gather();
    if (leader) barrier_arrive(ring.keys_empty(cursor.stage));
    free_values(cursor);
    cursor.step();
  }
  // Waits for all warps of the warpgroup.
  DEVICE void gather() const { warpgroup_wait(1 + group); }

  // All tiles for rows whose last stands at `end`.
  DEVICE void attend(int end) {
    int whole = final_tile = end / TILE_KEYS;
    bool half = end % TILE_KEYS < HALF_KEYS;
    if (!half) whole++;
#pragma unroll
    for (int r = 0; r < 2; r++) rows.peak[r] = NEG_INF, rows.sum[r] = 0.f;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) sums[i] = 0.f;
    if (whole == 0) {
      first<HALF_KEYS>();
    } else {
      first<TILE_KEYS>();
#pragma unroll 1
      for (int tile = 1; tile < whole; tile++) next<TILE_KEYS>(tile);
      if (half) next<HALF_KEYS>(whole);
    }
    if (half) last<HALF_KEYS>();
    else last<TILE_KEYS>();
  }

  // Writes the rows that exist: `out` is the first element of this thread's first row, `exists` how many rows are left
  // from that on. The four lanes of a row, which have two neighbours of every eight elements, exchange theirs, so that
  // each writes whole eights.
  DEVICE void store(u16* out, u64 stride, int exists) {
    int mine = threadIdx.x & 3;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = rows.sum[r];
      sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
      sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
      float inverse = 1.f / sum;
      u16* row = out + r * 8 * stride;
#pragma unroll
      for (int i = 0; i < HEAD_DIM / 8; i += 4) {
        u32 pairs[4], eight[4];  // mine of four eights; one eight
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float* pair = sums + (i + j) * 4 + r * 2;
          pairs[j] = pack(__fmul_rn(pair[0], inverse), __fmul_rn(pair[1], inverse));
        }
        // Lanes that differ by k give each other the pair of the other's eight. Written without indices that are not
        // known: the arrays live in registers.
#pragma unroll
        for (int k = 0; k < 4; k++) {
          int other = mine ^ k;
          u32 given = other & 2 ? (other & 1 ? pairs[3] : pairs[2]) : (other & 1 ? pairs[1] : pairs[0]);
          u32 got = __shfl_xor_sync(~0u, given, k);
#pragma unroll
          for (int at = 0; at < 4; at++) eight[at] = other == at ? got : eight[at];
        }
        if (exists > r * 8) *(uint4*)(row + (i + mine) * 8) = make_uint4(eight[0], eight[1], eight[2], eight[3]);
      }
    }
  }
};

DEVICE void consume(const Ring& ring, int heads, float scale, u16* out) {
  int group = uniform(threadIdx.x / WARPGROUP - 1), thread = threadIdx.x % WARPGROUP, lane = thread & 31;
  int row = group * GROUP_ROWS + (thread >> 5) * 16 + (lane >> 2);
  u32 queries = ring.queries + group * (GROUP_ROWS / 8) * ATOM_BYTES;
  Consumer consumer = {ring, group, scale, queries, thread == 0, {0, 0}, (lane & 3) * 2};
  u64 stride = (u64)heads * HEAD_DIM;
  for (u32 round = 0;; round++) {
    barrier_wait(ring.queries_full(), round & 1);
    const Item& item = ring.item(round);
    int head = uniform(item.head), tile_rows = uniform(item.tile.rows), first_row = uniform(item.tile.first_row);
    int first_position = uniform(item.tile.first_position);
    if (head < 0) break;
    int tiles = (first_position + tile_rows - 1) / TILE_KEYS + 1, done = 0;
    int mine = min(GROUP_ROWS, tile_rows - group * GROUP_ROWS);
    if (mine > 0) {
      consumer.first_position = first_position + group * GROUP_ROWS;
      consumer.position[0] = first_position + row;
      consumer.position[1] = first_position + row + 8;
      int end = consumer.first_position + mine - 1;
      consumer.attend(end);
      done = end / TILE_KEYS + 1;
    } else {
      consumer.gather();
      if (thread == 0) barrier_arrive(ring.queries_empty());
    }
    for (; done < tiles; done++) consumer.pass();
    if (mine > 0) consumer.store(out + (first_row + row) * stride + head * HEAD_DIM, stride, tile_rows - row);
  }
}

// Grid: up to one block a multiprocessor, and no more than there are items. Block: a warpgroup whose first warp copies,
// and two that compute 64 rows each. Shared memory: 1,024 bytes to align, queries, STAGES tiles of keys and of values.
extern "C" __global__ void __launch_bounds__((1 + CONSUMERS) * WARPGROUP, 1)
attention_prefill_bf16(const __grid_constant__ TensorMap queries, const u8* kv, const Tile* tiles, int tiles_count,
                       const int* blocks, int heads, int group, u16* out, float scale, int set, u32* drawn) {
  extern __shared__ __align__(1024) u8 memory[];
  __shared__ __align__(8) u64 barriers[BARRIERS];
  __shared__ Item drawn_items[2];
  Ring ring;
  ring.queries = (shared_address(memory) + ATOM_BYTES - 1) & ~(u32)(ATOM_BYTES - 1);
  ring.keys = ring.queries + TILE_ROWS * HEAD_DIM * ELEMENT_BYTES;
  ring.values = ring.keys + STAGES * TILE_BYTES;
  ring.barriers = shared_address(barriers);
  ring.items = drawn_items;
  Items items = {tiles, tiles_count, heads, set, drawn};
  if (threadIdx.x == 0) {
    barrier_init(ring.queries_full(), 1);
    barrier_init(ring.queries_empty(), CONSUMERS);
    barrier_init(ring.tail_landed(), 1);
    for (int stage = 0; stage < STAGES; stage++) {
      barrier_init(ring.keys_full(stage), 1);
      barrier_init(ring.keys_empty(stage), CONSUMERS);
      barrier_init(ring.values_full(stage), 1);
      barrier_init(ring.values_empty(stage), CONSUMERS);
    }
    barrier_init_fence();
  }
  __syncthreads();
  // 24 · 128 + 240 · 256 registers are those that three times 128 threads start with.
  if (threadIdx.x < WARPGROUP) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x < 32) produce(ring, items, &queries, kv, blocks, group);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consume(ring, heads, scale, out);
  }
}
#endif
