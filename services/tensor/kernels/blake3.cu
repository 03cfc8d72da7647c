// Chaining values of BLAKE3 subtrees, after the specification "BLAKE3: one function, fast everywhere" (O'Connor,
// Aumasson, Neves, Wilcox-O'Hearn), sections 2.1 to 2.5. Words are little-endian, as the card's are.

#define CHUNK_START 1u
#define CHUNK_END 2u
#define PARENT 4u
#define BLOCK_BYTES 64u
#define CHUNK_BLOCKS 16u
#define CHUNKS 128u  // of a subtree; a thread each

DEVICE u32 blake3_iv(u32 word) {
  const u32 iv[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                     0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
  return iv[word];
}

DEVICE u32 rotate_right(u32 x, u32 bits) { return __funnelshift_r(x, x, bits); }

DEVICE void mix(u32& a, u32& b, u32& c, u32& d, u32 x, u32 y) {
  a = a + b + x;
  d = __byte_perm(d ^ a, 0, 0x1032);  // by 16
  c = c + d;
  b = rotate_right(b ^ c, 12);
  a = a + b + y;
  d = __byte_perm(d ^ a, 0, 0x0321);  // by 8
  c = c + d;
  b = rotate_right(b ^ c, 7);
}

// value = compress(value, message, counter, BLOCK_BYTES, flags), its first half. The message is used up.
DEVICE void compress(u32 (&value)[8], u32 (&message)[16], u64 counter, u32 flags) {
  u32 v[16];
#pragma unroll
  for (u32 i = 0; i < 8; i++) v[i] = value[i];
#pragma unroll
  for (u32 i = 0; i < 4; i++) v[8 + i] = blake3_iv(i);
  v[12] = (u32)counter;
  v[13] = (u32)(counter >> 32);
  v[14] = BLOCK_BYTES;
  v[15] = flags;
#pragma unroll
  for (u32 round = 0; round < 7; round++) {
    u32(&m)[16] = message;
    mix(v[0], v[4], v[8], v[12], m[0], m[1]);
    mix(v[1], v[5], v[9], v[13], m[2], m[3]);
    mix(v[2], v[6], v[10], v[14], m[4], m[5]);
    mix(v[3], v[7], v[11], v[15], m[6], m[7]);
    mix(v[0], v[5], v[10], v[15], m[8], m[9]);
    mix(v[1], v[6], v[11], v[12], m[10], m[11]);
    mix(v[2], v[7], v[8], v[13], m[12], m[13]);
    mix(v[3], v[4], v[9], v[14], m[14], m[15]);
    // The next round's order of the message; unrolled, only names change.
    const u32 order[16] = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};
    u32 next[16];
#pragma unroll
    for (u32 i = 0; i < 16; i++) next[i] = m[order[i]];
#pragma unroll
    for (u32 i = 0; i < 16; i++) m[i] = next[i];
  }
#pragma unroll
  for (u32 i = 0; i < 8; i++) value[i] = v[i] ^ v[8 + i];
}

DEVICE void load_block(const uint4* from, uint4 (&block)[4]) {
#pragma unroll
  for (u32 i = 0; i < 4; i++) block[i] = from[i];
}

// to[i] = the value of subtree i, of 128 KiB, which is not the whole tree. `from` begins at a multiple of 16 with chunk
// `first_chunk` of its input; `to` may be memory of the host. grid: a line, a block for each subtree.
extern "C" __global__ void __launch_bounds__(CHUNKS) blake3_subtrees(const uint4* from, u64 first_chunk, uint4* to) {
  __shared__ u32 values[8][CHUNKS];
  u32 thread = threadIdx.x;
  u64 chunk = (u64)blockIdx.x * CHUNKS + thread;
  from += chunk * (CHUNK_BLOCKS * BLOCK_BYTES / sizeof(uint4));
  u32 value[8], message[16];
#pragma unroll
  for (u32 i = 0; i < 8; i++) value[i] = blake3_iv(i);
  uint4 block[4];
  load_block(from, block);
#pragma unroll 1
  for (u32 i = 0; i < CHUNK_BLOCKS; i++) {
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
      message[4 * j] = block[j].x;
      message[4 * j + 1] = block[j].y;
      message[4 * j + 2] = block[j].z;
      message[4 * j + 3] = block[j].w;
    }
    // The next block is on its way while this one is mixed.
    if (i + 1 < CHUNK_BLOCKS) load_block(from + (i + 1) * 4, block);
    u32 flags = (i == 0 ? CHUNK_START : 0u) | (i + 1 == CHUNK_BLOCKS ? CHUNK_END : 0u);
    compress(value, message, first_chunk + chunk, flags);
  }
#pragma unroll
  for (u32 i = 0; i < 8; i++) values[i][thread] = value[i];
#pragma unroll 1
  for (u32 parents = CHUNKS / 2; parents; parents >>= 1) {
    __syncthreads();
    if (thread < parents) {
#pragma unroll
      for (u32 i = 0; i < 8; i++) {
        message[i] = values[i][2 * thread];
        message[8 + i] = values[i][2 * thread + 1];
        value[i] = blake3_iv(i);
      }
      compress(value, message, 0, PARENT);
    }
    __syncthreads();
    if (thread < parents) {
#pragma unroll
      for (u32 i = 0; i < 8; i++) values[i][thread] = value[i];
    }
  }
  if (thread == 0) {
    to[2 * blockIdx.x] = make_uint4(value[0], value[1], value[2], value[3]);
    to[2 * blockIdx.x + 1] = make_uint4(value[4], value[5], value[6], value[7]);
  }
}
