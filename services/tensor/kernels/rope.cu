// Rotation of queries and keys by their positions, and the write of keys and values into their blocks, in one pass.
//
// A row Q|K|V (heads side by side) has a position, a block that its key and value go to, and two tables: its own,
// which turns its queries, and its block's, which turns its key. A row at position -1 is padding: nothing of it is
// written. Every product, sum and difference is rounded by itself, and the result once more to the activations' type;
// what is written, to the type that keys and values rest in.

struct RopeWork {
  void* qkv;              // [rows][heads + 2 kv_heads][head_dim]
  const int* position;    // of each row, as are the next three
  const int* block;
  const int* row_table;
  const int* key_table;
  const float2* tables;   // cos and sin [table][positions][head_dim / 2]
  u8* kv;                 // one layer of the pool
  KvLayout layout;
  int heads;              // query heads
  int positions;          // of a table
};

// Where a row is, and what turns it.
struct RopeRow {
  int position;
  int block;
  const float2* turns;
};
DEVICE RopeRow rope_row(const RopeWork& work, int row, bool key, int half) {
  int position = work.position[row], block = work.block[row];
  int table = key ? work.key_table[row] : work.row_table[row];
  return {position, block, work.tables + ((u64)table * work.positions + max(position, 0)) * half};
}

// (a, b) turned by (cos, sin).
DEVICE float2 turned(float a, float b, float2 by) {
  float first = __fsub_rn(__fmul_rn(a, by.x), __fmul_rn(b, by.y));
  float second = __fadd_rn(__fmul_rn(b, by.x), __fmul_rn(a, by.y));
  return make_float2(first, second);
}
// Two pairs at once: (a.low, b.low) by (turn.x, turn.y), (a.high, b.high) by (turn.z, turn.w).
DEVICE void turn_pairs(u32& a, u32& b, float4 turn) {
  float2 low = turned(low_half(a), low_half(b), make_float2(turn.x, turn.y));
  float2 high = turned(high_half(a), high_half(b), make_float2(turn.z, turn.w));
  a = pack(low.x, high.x);
  b = pack(low.y, high.y);
}

#if KV_TYPE == KV_BF16
// Whether one of eight elements is infinite or NaN.
DEVICE bool unbounded(uint4 x) {
  u32 most = 0x7f80;  // the exponent's bits
  auto is = [&](u32 pair) { return (pair & most) == most || (pair >> 16 & most) == most; };
  return is(x.x) || is(x.y) || is(x.z) || is(x.w);
}

// Tiled blocks. Grid (rows, pieces), 128 threads; a thread turns elements d .. d+8 of a query or key head and their
// partners d + half .. d + half + 8, and a key's thread copies the same elements of the value. All of these are whole
// 16-byte chunks here and in the block, whose order within a line kv_tiled_at gives: both are bf16.
extern "C" __global__ void __launch_bounds__(128) rope_kv_write_tiled_bf16(const __grid_constant__ RopeWork work) {
  int head_dim = work.layout.head_dim, half = head_dim / 2, chunks = half / 8;
  int task = blockIdx.y * 128 + threadIdx.x, row = blockIdx.x;
  int head = task / chunks, dim = (task - head * chunks) * 8;
  int kv_heads = work.layout.kv_heads, kv_head = head - work.heads;
  if (kv_head >= kv_heads) return;
  bool key = kv_head >= 0;
  u16* from = (u16*)work.qkv + ((u64)row * (work.heads + 2 * kv_heads) + head) * head_dim + dim;
  const u16* value = from + kv_heads * head_dim;
  // Loaded before the position is known, so that one wait is for all: a padding row has memory too.
  uint4 a = *(uint4*)from, b = *(uint4*)(from + half), value_a = a, value_b = b;
  if (key) value_a = *(const uint4*)value, value_b = *(const uint4*)(value + half);
  RopeRow place = rope_row(work, row, key, half);
  if (place.position < 0) return;
  const float4* turns = (const float4*)(place.turns + dim);
  turn_pairs(a.x, b.x, __ldg(turns));
  turn_pairs(a.y, b.y, __ldg(turns + 1));
  turn_pairs(a.z, b.z, __ldg(turns + 2));
  turn_pairs(a.w, b.w, __ldg(turns + 3));
  if (!key) {
    *(uint4*)from = a;
    *(uint4*)(from + half) = b;
    return;
  }
  // Rows of a tile are multiplied with all of its values, those they do not see with weight 0, which cures finite ones
  // alone. So stored values are finite, and for one that was not the key is NaN: to all rows that see it.
  if (unbounded(value_a) || unbounded(value_b)) {
    value_a = value_b = make_uint4(0, 0, 0, 0);
    a = b = make_uint4(0x7fc07fc0, 0x7fc07fc0, 0x7fc07fc0, 0x7fc07fc0);
  }
  int tile = work.layout.tile, at = place.position % BLOCK_ROWS;
  u8* to = work.kv + kv_head_at(work.layout, place.block, kv_head);
  int to_a = kv_tiled_at(head_dim, tile, at, dim), to_b = kv_tiled_at(head_dim, tile, at, dim + half);
  *(uint4*)(to + to_a) = a;
  *(uint4*)(to + to_b) = b;
  u8* values = to + 2 * BLOCK_ROWS * head_dim;
  *(uint4*)(values + to_a) = value_a;
  *(uint4*)(values + to_b) = value_b;
}
#endif

// Blocks of any layout and type, any even head_dim; E: of the rows. Grid (rows, pieces), 128 threads; a thread turns
// one pair of elements of a query or key head, and a key's thread writes the same elements of the value.
template <typename E> DEVICE void rope_kv_write(const RopeWork& work) {
  int head_dim = work.layout.head_dim, half = head_dim / 2;
  int task = blockIdx.y * 128 + threadIdx.x, row = blockIdx.x;
  int head = task / half, dim = task - head * half;
  int kv_heads = work.layout.kv_heads, kv_head = head - work.heads;
  if (kv_head >= kv_heads) return;
  bool key = kv_head >= 0;
  RopeRow place = rope_row(work, row, key, half);
  if (place.position < 0) return;
  E* from = (E*)work.qkv + ((u64)row * (work.heads + 2 * kv_heads) + head) * head_dim + dim;
  float2 pair = turned(widen(from[0]), widen(from[half]), place.turns[dim]);
  E a = Element<E>::round(pair.x), b = Element<E>::round(pair.y);
  if (!key) {
    from[0] = a;
    from[half] = b;
    return;
  }
  const E* value = from + kv_heads * head_dim;
  int at = place.position % BLOCK_ROWS;
  u8* to = work.kv + kv_head_at(work.layout, place.block, kv_head);
  kv_store(work.layout, to, 0, at, dim, a);
  kv_store(work.layout, to, 0, at, dim + half, b);
  kv_store(work.layout, to, 1, at, dim, value[0]);
  kv_store(work.layout, to, 1, at, dim + half, value[half]);
}
extern "C" __global__ void __launch_bounds__(128) rope_kv_write_f32(const __grid_constant__ RopeWork work) {
  rope_kv_write<float>(work);
}
extern "C" __global__ void __launch_bounds__(128) rope_kv_write_bf16(const __grid_constant__ RopeWork work) {
  rope_kv_write<u16>(work);
}
