// Causal attention of prompt rows over tiled blocks of bf16, by the instructions of all cards (sm_80 and later).
//
// HEAD_DIM is a multiple of 16 from 64 to 160. A step's prompt rows come as tiles of up to 128 rows of one span. Keys
// and values come in tiles of 64 at absolute positions from 0, and every row takes the same operations in the same
// order however its prompt is cut: what a row does not see adds exactly nothing, done or left out (stored values are
// finite, rope.cu sees to it).
#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif

// A tile's rows, and where its span's block table begins.
struct Tile { int first_row, rows, first_position, blocks_at; };

static_assert(KV_TYPE == KV_BF16, "blocks are multiplied as they rest");
static_assert(HEAD_DIM % 16 == 0 && HEAD_DIM >= 64 && HEAD_DIM <= 160, "the head dims of tiled blocks");

#define LINE (HEAD_DIM % 64 == 0 ? 64 : HEAD_DIM % 32 == 0 ? 32 : 16)  // dims of a tiled line
#define LINE_CHUNKS (LINE / 8)                                         // of 16 bytes
#define ATOM_BYTES (8 * LINE * KV_BYTES)                               // 8 positions of a line
#define EIGHT_BYTES (8 * HEAD_DIM * KV_BYTES)                          // 8 positions of a head
#define PART_BYTES (2 * EIGHT_BYTES)                                   // the keys, or values, of a block
#define WARPS 8
#define WARP_ROWS 16
#define TILE_KEYS 64
#define TILE_BLOCKS (TILE_KEYS / BLOCK_ROWS)
#define STAGE_BYTES (2 * TILE_BLOCKS * PART_BYTES)

// What moves the 16-byte chunks of position `row` (0..8) of a line (prelude: kv_tiled_at).
DEVICE int turn(int row) { return LINE == 64 ? row : LINE == 32 ? (row >> 1) & 3 : (row >> 2) & 1; }

// A thread's part of an address for ldmatrix: position `row` of 8, eight positions further with `second`; `chunk`
// (0, 1) is added to even chunks.
struct Part {
  u32 line;   // bytes
  int chunk;  // turned: even chunks are added to it by exclusive or
  DEVICE Part(int row, int second, int chunk)
      : line(second * EIGHT_BYTES + row * 2 * LINE), chunk(chunk ^ turn(row)) {}
  // Sixteen dims `step` of the head.
  DEVICE u32 at(int step) const {
    int even = step * 2;
    return line + (even / LINE_CHUNKS) * ATOM_BYTES + (((even % LINE_CHUNKS) ^ chunk) << 4);
  }
};

// Keys and values of one tile, each block's keys before its values. What lies beyond position `last` becomes 0: it
// may be anything in memory, NaN too.
DEVICE void copy_tile(u32 stage, const u8* kv, const int* table, u64 block_bytes, int first_block, int last) {
  constexpr int BLOCK_CHUNKS = 2 * PART_BYTES / 16, CHUNKS = TILE_BLOCKS * BLOCK_CHUNKS;
  static_assert(CHUNKS % (WARPS * 32) == 0, "every thread copies as much");
  constexpr int UNROLL = HEAD_DIM > 128 ? 2 : 8;  // registers are few for wide heads
#pragma unroll UNROLL
  for (int i = 0; i < CHUNKS / (WARPS * 32); i++) {
    int chunk = i * (WARPS * 32) + threadIdx.x, block = chunk / BLOCK_CHUNKS, at = chunk % BLOCK_CHUNKS * 16;
    int row = at % PART_BYTES / EIGHT_BYTES * 8 + at % ATOM_BYTES / (2 * LINE);
    int position = (first_block + block) * BLOCK_ROWS + row;
    // A block that holds no position is not looked up either.
    const u8* from = kv;
    if (position <= last) from += table[first_block + block] * block_bytes + at;
    copy_async16(stage + chunk * 16, from, position <= last ? 16 : 0);
  }
}

// A warp's queries as left sides of products: four registers for 16 dims of 16 rows; 0 beyond the tile's rows.
DEVICE void load_queries(u32 (*queries)[4], const u16* from, u64 stride, int exists) {
#pragma unroll
  for (int step = 0; step < HEAD_DIM / 16; step++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      int row = (e & 1) * 8;
      queries[step][e] = row < exists ? *(const u32*)(from + row * stride + step * 16 + (e >> 1) * 8) : 0;
    }
  }
}

// A thread's two rows (g and g + 8 of its warp's 16). Scores are scaled, to base 2, when they become weights.
struct Rows {
  float peak[2], sum[2];          // the greatest scaled score so far; the weights' sum
  float values[HEAD_DIM / 8][4];  // weighted sums: [8 dims][row g: 2, row g + 8: 2]
};

// One tile for a warp's 16 rows. `key`: the position of this thread's first key.
DEVICE void attend(Rows& rows, const u32 (*queries)[4], u32 stage, int key, const int* position, bool masked,
                   float scale, const Part& key_part, const Part& value_part) {
  float scores[TILE_KEYS / 8][4];
#pragma unroll
  for (int i = 0; i < TILE_KEYS / 8; i++) {
#pragma unroll
    for (int e = 0; e < 4; e++) scores[i][e] = 0.f;
  }
#pragma unroll
  for (int step = 0; step < HEAD_DIM / 16; step++) {
#pragma unroll
    for (int block = 0; block < TILE_BLOCKS; block++) {
      u32 keys[4];  // positions 0..8 and 8..16, dims 0..8 and 8..16 of each
      load_matrix4(keys, stage + block * 2 * PART_BYTES + key_part.at(step));
      mma(scores[block * 2], queries[step], keys[0], keys[1]);
      mma(scores[block * 2 + 1], queries[step], keys[2], keys[3]);
    }
  }
  if (masked) {
#pragma unroll
    for (int i = 0; i < TILE_KEYS / 8; i++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        if (key + i * 8 + (e & 1) > position[e >> 1]) scores[i][e] = NEG_INF;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float most = NEG_INF;
#pragma unroll
    for (int i = 0; i < TILE_KEYS / 8; i++) most = fmaxf(most, fmaxf(scores[i][r * 2], scores[i][r * 2 + 1]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    // Rounded before the comparison, never fused: where nothing new is seen, fade is 2^0 = 1 exactly.
    float peak = fmaxf(rows.peak[r], __fmul_rn(most, scale)), sum = 0.f;
    float fade = exp2_fast(__fsub_rn(rows.peak[r], peak));
    rows.peak[r] = peak;
#pragma unroll
    for (int i = 0; i < TILE_KEYS / 8; i++) {
      float* pair = scores[i] + r * 2;
      pair[0] = exp2_fast(__fmaf_rn(pair[0], scale, -peak));
      pair[1] = exp2_fast(__fmaf_rn(pair[1], scale, -peak));
      sum = __fadd_rn(sum, __fadd_rn(pair[0], pair[1]));
    }
    rows.sum[r] = __fmaf_rn(rows.sum[r], fade, sum);
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; i++) {
      rows.values[i][r * 2] = __fmul_rn(rows.values[i][r * 2], fade);
      rows.values[i][r * 2 + 1] = __fmul_rn(rows.values[i][r * 2 + 1], fade);
    }
  }
#pragma unroll
  for (int block = 0; block < TILE_BLOCKS; block++) {
    const float(*pair)[4] = scores + block * 2;
    u32 weights[4] = {pack(pair[0][0], pair[0][1]), pack(pair[0][2], pair[0][3]), pack(pair[1][0], pair[1][1]),
                      pack(pair[1][2], pair[1][3])};
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
      u32 values[4];  // dims 0..8 and 8..16, positions 0..8 and 8..16 of each
      load_matrix4_transposed(values, stage + block * 2 * PART_BYTES + PART_BYTES + value_part.at(step));
      mma(rows.values[step * 2], weights, values[0], values[1]);
      mma(rows.values[step * 2 + 1], weights, values[2], values[3]);
    }
  }
}

// Writes the rows that exist: `out` is this thread's first element, `exists` how many rows are left from its first.
DEVICE void store(const Rows& rows, u16* out, u64 stride, int exists) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float sum = rows.sum[r];
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
    float inverse = 1.f / sum;
    if (exists <= r * 8) continue;
    u16* row = out + r * 8 * stride;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; i++) {
      const float* pair = rows.values[i] + r * 2;
      *(u32*)(row + i * 8) = pack(__fmul_rn(pair[0], inverse), __fmul_rn(pair[1], inverse));
    }
  }
}

// Grid: a block for every tile and head, heads side by side, tiles as they come (longest first). Block: 8 warps of 16
// rows each. Shared memory: two stages of 64 keys and values, of which one is filled while the other is computed.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
attention_prefill_mma_bf16(const u16* qkv, int qkv_stride, const u8* kv, u64 head_bytes, const Tile* tiles,
                           const int* blocks, int heads, int group, u16* out, float scale) {
  extern __shared__ __align__(1024) u8 memory[];
  u32 stages = shared_address(memory);
  int head = blockIdx.x % heads, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  Tile tile = tiles[blockIdx.x / heads];
  int last = tile.first_position + tile.rows - 1, count = last / TILE_KEYS + 1;
  const int* table = blocks + tile.blocks_at;
  const u8* part = kv + head / group * head_bytes;
  u64 block_bytes = heads / group * head_bytes;
  copy_tile(stages, part, table, block_bytes, 0, last);
  copy_commit();

  int row = warp * WARP_ROWS + (lane >> 2), exists = tile.rows - row;
  u64 stride = (u64)heads * HEAD_DIM, column = head * HEAD_DIM + (lane & 3) * 2;
  u32 queries[HEAD_DIM / 16][4];
  load_queries(queries, qkv + (u64)(tile.first_row + row) * qkv_stride + column, qkv_stride, exists);
  int position[2] = {tile.first_position + row, tile.first_position + row + 8};
  int warp_first = tile.first_position + warp * WARP_ROWS, warp_rows = min(WARP_ROWS, tile.rows - warp * WARP_ROWS);
  // Keys: 8 positions of two chunks, then the next 8. Values: 16 positions of a chunk, then of the next.
  Part key_part(lane & 7, lane >> 4, lane >> 3 & 1), value_part(lane & 7, lane >> 3 & 1, lane >> 4);
  Rows rows;
#pragma unroll
  for (int r = 0; r < 2; r++) rows.peak[r] = NEG_INF, rows.sum[r] = 0.f;
#pragma unroll
  for (int i = 0; i < HEAD_DIM / 8; i++) {
#pragma unroll
    for (int e = 0; e < 4; e++) rows.values[i][e] = 0.f;
  }

  for (int j = 0; j < count; j++) {
    copy_wait<0>();
    __syncthreads();  // this tile is there for all, and all are done with the one before
    if (j + 1 < count) {
      copy_tile(stages + ((j + 1) & 1) * STAGE_BYTES, part, table, block_bytes, (j + 1) * TILE_BLOCKS, last);
      copy_commit();
    }
    // A tile that none of this warp's rows sees is left out.
    if (j * TILE_KEYS < warp_first + warp_rows && warp_rows > 0) {
      bool masked = j * TILE_KEYS + TILE_KEYS - 1 > warp_first;
      attend(rows, queries, stages + (j & 1) * STAGE_BYTES, j * TILE_KEYS + (lane & 3) * 2, position, masked, scale,
             key_part, value_part);
    }
  }
  store(rows, out + (u64)(tile.first_row + row) * stride + column, stride, exists);
}
