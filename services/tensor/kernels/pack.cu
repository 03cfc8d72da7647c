// Weights into the layout that multiplications read, [outputs, inputs] row-major in bf16 or f32, and weights made up
// by rule. Rounding is to nearest even; denormals stay.

// Element types as they are stored.
struct Bf16 { u16 bits; };
struct F16 { u16 bits; };
DEVICE float value(Bf16 x) { return widen(x.bits); }
DEVICE float value(F16 x) { return widen_f16(x.bits); }
DEVICE float value(float x) { return x; }

// to[i] = round(from[i]). grid: any line, a thread strides over elements.
template <typename S, typename D>
DEVICE void convert(const S* from, D* to, u64 count) {
  u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    to[i] = Element<D>::round(value(from[i]));
  }
}

// A run of elements of a tensor that has inputs first, and where they go.
struct Transpose {
  const void* from;   // elements first .. first + count of [inputs, columns], row-major; rows may be cut at both ends
  void* to;           // the group's first output in [outputs, inputs]
  const u32* select;  // the tensor's column of each output; null: the same
  u64 inputs;
  u64 first;
  u64 count;
  u32 columns;        // of the tensor
  u32 outputs;        // of the group
};

// 64 inputs by 64 outputs a block, through shared memory, so that both sides run along memory.
// grid: (tiles of outputs, tiles of the rows from that of the first element to that of the last), 256 threads.
template <typename S, typename D>
DEVICE void transpose(const Transpose& call) {
  __shared__ D tile[64][64 + 4 / sizeof(D)];
  const S* from = (const S*)call.from;
  D* to = (D*)call.to;
  u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  u32 output0 = blockIdx.x * 64;
  u64 row0 = call.first / call.columns + blockIdx.y * 64;
  // An output's column; none has the last number.
  auto column_of = [&](u32 output) {
    if (output >= call.outputs) return ~0u;
    return call.select ? call.select[output] : output;
  };
  // Where an element is in the run; not below `count` where it is elsewhere.
  auto place = [&](u64 row, u32 column) { return row * call.columns + column - call.first; };
#pragma unroll
  for (u32 half = 0; half < 2; half++) {
    u32 column = column_of(output0 + half * 32 + lane);
    for (u32 line = warp; line < 64; line += 8) {
      u64 at = place(row0 + line, column);
      if (column != ~0u && at < call.count) tile[line][half * 32 + lane] = Element<D>::round(value(from[at]));
    }
  }
  __syncthreads();
  for (u32 line = warp; line < 64; line += 8) {
    u32 output = output0 + line;
    u32 column = column_of(output);
    if (column == ~0u) continue;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
      u32 row = half * 32 + lane;
      if (place(row0 + row, column) < call.count) to[output * call.inputs + row0 + row] = tile[row][line];
    }
  }
}

#define PACK(from, S, to, D)                                                                        \
  extern "C" __global__ void __launch_bounds__(256) pack_transpose_##from##_##to(Transpose call) {   \
    transpose<S, D>(call);                                                                           \
  }                                                                                                  \
  extern "C" __global__ void __launch_bounds__(256) pack_convert_##from##_##to(const S* in, D* out, u64 count) { \
    convert<S, D>(in, out, count);                                                                   \
  }
PACK(bf16, Bf16, bf16, u16)
PACK(f16, F16, bf16, u16)
PACK(f32, float, bf16, u16)
PACK(bf16, Bf16, f32, float)
PACK(f16, F16, f32, float)
PACK(f32, float, f32, float)

// Element i of a synthetic tensor, uniform in (-2^24, 2^24) steps of `step`: SplitMix64 at place i of the tensor's
// stream, its upper 24 bits made odd, so that no weight is zero.
DEVICE float synthetic(u64 stream, u64 i, float step) {
  u64 z = stream + (i + 1) * 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  z ^= z >> 31;
  int odd = (int)(z >> 40) * 2 + 1 - (1 << 24);
  return __fmul_rn((float)odd, step);
}

// out[i] = round(synthetic(i)). grid: any line, a thread strides over elements.
template <typename D>
DEVICE void fill(D* out, u64 count, u64 stream, float step) {
  u64 stride = (u64)gridDim.x * blockDim.x;
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    out[i] = Element<D>::round(synthetic(stream, i, step));
  }
}
extern "C" __global__ void __launch_bounds__(256) pack_synthetic_bf16(u16* out, u64 count, u64 stream, float step) {
  fill(out, count, stream, step);
}
extern "C" __global__ void __launch_bounds__(256) pack_synthetic_f32(float* out, u64 count, u64 stream, float step) {
  fill(out, count, stream, step);
}
