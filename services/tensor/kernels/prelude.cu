// What all kernels share. It stands before every theme when it is compiled; nothing is included.
//
// Elements are f32 or bf16; a bf16 is its 16 bits (u16). Sums are f32. Keys and values rest in a type of their own.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__
#define NEG_INF __int_as_float(0xff800000)

// A tensor map (CUtensorMap), passed by value as a __grid_constant__.
struct __align__(64) TensorMap { u64 words[16]; };

// === conversions ===

DEVICE float low_half(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
DEVICE float widen(u16 x) { return __uint_as_float((u32)x << 16); }
DEVICE float widen(float x) { return x; }
// Two values rounded to nearest even, the first in the low half.
DEVICE u32 pack(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
DEVICE u16 round_bf16(float x) { return (u16)(pack(x, 0.f) & 0xffffu); }
DEVICE float widen_f16(u16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
// Two neighbours, of which the first is even.
DEVICE float2 load_pair(const float* at) { return *(const float2*)at; }
DEVICE float2 load_pair(const u16* at) {
  u32 pair = *(const u32*)at;
  return make_float2(low_half(pair), high_half(pair));
}
// Rounds to an element's type: Element<E>::round(x).
template <typename E> struct Element;
template <> struct Element<float> {
  DEVICE static float round(float x) { return x; }
};
template <> struct Element<u16> {
  DEVICE static u16 round(float x) { return round_bf16(x); }
};

// 2^x, to about two units in the last place; below the smallest normal number it is 0.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// === sums within a warp, always in the same order ===

DEVICE float warp_sum(float x) {
#pragma unroll
  for (int lanes = 16; lanes; lanes >>= 1) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
  for (int lanes = 16; lanes; lanes >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}

// === keys and values in blocks of 16 positions ===

#define BLOCK_ROWS 16

// How a layer of the pool lies in memory: [block][kv_head][keys | values].
struct KvLayout {
  int kv_heads;
  int head_dim;
  int tile;         // dims of a tiled line: 64, 32 or 16; 0: plain rows
  int value_cols;   // elements of a value's line: head_dim where tiled
  u64 head_bytes;   // one head's keys and values in a block
};

// Byte offset of (block, head) from the layer's beginning.
DEVICE u64 kv_head_at(const KvLayout& kv, int block, int head) {
  return ((u64)block * kv.kv_heads + head) * kv.head_bytes;
}
// Byte offset of element `dim` of position `row` (0..16) within tiled keys, or values, of a head: elements of 16 bits.
DEVICE int kv_tiled_at(int head_dim, int tile, int row, int dim) {
  int r = row & 7, chunk = (dim % tile) >> 3;
  int turn = tile == 64 ? r : tile == 32 ? (r >> 1) & 3 : (r >> 2) & 1;
  int line = (row >> 3) * (16 * head_dim) + (dim / tile) * (16 * tile) + r * (2 * tile);
  return line + ((chunk ^ turn) << 4) + (dim & 7) * 2;
}

// === the type that keys and values rest in ===
//
// It is KV_TYPE (as kv.rs numbers them), for which a theme that reads or writes blocks is compiled; kernels are for
// one type of activations each. All that turns one into the other stands here. Where both are the same nothing is
// converted, and whole blocks may be copied and multiplied as they rest: kernels that do so take that one type, and
// attention.cu the others. A type with scales adds a kv_t and what converts it: loads and stores are told the head's
// part, position and dims that a scale is found by.
#define KV_F32 0
#define KV_BF16 1
#ifdef KV_TYPE

#if KV_TYPE == KV_F32
typedef float kv_t;
DEVICE kv_t kv_rounded(u16 x) { return widen(x); }
#elif KV_TYPE == KV_BF16
typedef u16 kv_t;
DEVICE kv_t kv_rounded(float x) { return round_bf16(x); }
#else
#error "KV_TYPE: no such type"
#endif
DEVICE kv_t kv_rounded(kv_t x) { return x; }
#define KV_BYTES ((int)sizeof(kv_t))

// Byte offset of a key's, or value's, element within its head's part of a block.
DEVICE int kv_at(const KvLayout& kv, int value, int row, int dim) {
  if (kv.tile) return value * (32 * kv.head_dim) + kv_tiled_at(kv.head_dim, kv.tile, row, dim);
  int line = value ? kv.value_cols : kv.head_dim;
  return (value * BLOCK_ROWS * kv.head_dim + row * line + dim) * KV_BYTES;
}
// Elements of a key, or value: one, and an even one with the next. `head`: the head's part of a block.
DEVICE float kv_load(const KvLayout& kv, const u8* head, int value, int row, int dim) {
  return widen(*(const kv_t*)(head + kv_at(kv, value, row, dim)));
}
DEVICE float2 kv_load_pair(const KvLayout& kv, const u8* head, int value, int row, int dim) {
  return load_pair((const kv_t*)(head + kv_at(kv, value, row, dim)));
}
template <typename E> DEVICE void kv_store(const KvLayout& kv, u8* head, int value, int row, int dim, E x) {
  *(kv_t*)(head + kv_at(kv, value, row, dim)) = kv_rounded(x);
}
#endif

// === shared memory, asynchronous copies (sm_90: bulk copies that complete on a barrier) ===

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes, global to shared; `bytes` of them are read, the rest become zero.
DEVICE void copy_async16(u32 to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

#if __CUDA_ARCH__ >= 900
#define L2_EVICT_FIRST 0x12F0000000000000ULL
#define L2_EVICT_LAST 0x14F0000000000000ULL
DEVICE void barrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
// Makes initialised barriers visible to the copy engine.
DEVICE void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
DEVICE void barrier_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE void barrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
DEVICE void barrier_wait(u32 barrier, u32 phase) {
  asm volatile(
      "{.reg .pred done;\nwait_%=: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra wait_%=;\n}"
      ::"r"(barrier), "r"(phase) : "memory");
}
// Ordinary writes to shared memory become visible to the copy engine and the tensor cores' asynchronous reads.
DEVICE void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// A plain copy of `bytes` (a multiple of 16), global to shared.
DEVICE void copy_bulk(u32 to, const void* from, u32 bytes, u32 barrier, u64 policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
      ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "l"(policy) : "memory");
}
// A box of a two-dimensional tensor map: column `x`, row `y`.
DEVICE void copy_box(u32 to, const TensorMap* map, u32 barrier, int x, int y, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;"
      ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "l"(policy) : "memory");
}
#endif

// === matrix fragments (mma.sync m16n8k16, bf16 in, f32 out) ===

DEVICE void load_matrix4(u32* r, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
DEVICE void load_matrix4_transposed(u32* r, u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
DEVICE u32 transpose_matrix(u32 x) {
  u32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
DEVICE void mma(float* sum, const u32* a, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
