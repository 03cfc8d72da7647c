// What the card can do at most: the limits that speeds are judged against.

// Reads `count` times 16 bytes once, past the caches, and keeps the exclusive or of all of it. Any grid and block; a
// thread has four loads in flight. `result` gets each thread's bits, so that no load can be left out.
extern "C" __global__ void probe_read(const uint4* from, u64 count, u32* result) {
  u64 stride = (u64)gridDim.x * blockDim.x, at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  u32 bits = 0;
  for (; at + 3 * stride < count; at += 4 * stride) {
    uint4 a = __ldcs(from + at), b = __ldcs(from + at + stride);
    uint4 c = __ldcs(from + at + 2 * stride), d = __ldcs(from + at + 3 * stride);
    bits ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  for (; at < count; at += stride) {
    uint4 a = __ldcs(from + at);
    bits ^= a.x ^ a.y ^ a.z ^ a.w;
  }
#pragma unroll
  for (int lanes = 16; lanes; lanes >>= 1) bits ^= __shfl_xor_sync(~0u, bits, lanes);
  if ((threadIdx.x & 31) == 0) atomicXor(result, bits);
}
