// What is reported of rows of logits: the first logit that is not finite, the best ids after the logit processors and
// before them, and the sums of the log-sum-exp. Two kernels for all rows of a step.
//
// A row is cut into chunks of 1,024 ids, a chunk into groups of 32. The first kernel processes the chunks and lists
// the best of each group; the second searches only groups whose best is among the K best of all groups: as no two
// entries are equal, the K best logits of the row lie in exactly those. Every number is one IEEE operation of the
// CPU's, in its order, so the results are the CPU's bit for bit.
#define CHUNK 1024
#define GROUP 32
#define MOST_BEST 1024
#define PROCESS_THREADS 256
#define PROCESS_WARPS (PROCESS_THREADS / 32)
#define EACH (CHUNK / PROCESS_THREADS)  // ids of a thread that processes
#define SEARCH_THREADS 512
#define IN_PROMPT 0x80000000u

struct Bias { u32 id; float value; };
struct Candidate { u32 id; float logit; float raw; };

// A row of the step.
struct EvidenceRow {
  const float* raw;
  float* slot;        // where the raw row is kept; null: nowhere
  float* processed;   // null: no processor changes the row
  const u32* ids;     // the context by position, where a penalty is on
  const Bias* bias;
  const u8* allowed;  // one bit an id; null: all are allowed
  u32 id_count;
  u32 prompt_len;
  u32 bias_count;
  u32 search_raw;     // whether the raw row will be searched or summed
  float repetition;
  float presence;
  float frequency;
  u32 unused;
};

// What the first kernel tells the second of 2 · `rows` lists: those of the raw rows, then those of the processed ones.
struct Lists {
  u64* groups;      // [list][groups]: the best entry of each group
  u32* tops;        // [list][chunks]: the greatest order of each chunk
  u32* non_finite;  // [row][chunks]: the first such id, or all bits
  u32 rows;
  u32 vocab;
};

struct Search {
  const float* row;   // to search
  const float* raw;   // where the candidates' raw logits are
  Candidate* out;
  u32 list;
  u32 best;           // how many are wanted
};

struct Sum {
  const float* row;
  double* out;        // the greatest logit, then the chunks' sums
  double temperature;
  u32 list;
  u32 unused;
};

// Rises with the logit; the zeros are equal, NaN is least. 0 stands for no logit.
DEVICE u32 order_of(float x) {
  u32 bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 1;
  if (bits == 0x80000000u) bits = 0;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float logit_of(u32 order) {
  if (order <= 1) return NEG_INF;
  return __uint_as_float(order & 0x80000000u ? order ^ 0x80000000u : ~order);
}
// No two are equal: of equal logits the lower id is the greater entry.
DEVICE u64 entry_of(u32 order, u32 id) { return (u64)order << 32 | (u32)~id; }
DEVICE u32 id_of(u64 entry) { return ~(u32)entry; }

DEVICE bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

// === processing ===

struct Process {
  u32 warps[PROCESS_WARPS];
  u32 occurrences[CHUNK];
  Bias bias[PROCESS_THREADS];
};

// Lists the best of each group of the chunk, and the chunk's greatest order.
DEVICE void list_best(Process& shared, const float* x, u32 first, u32 vocab, u64* groups, u32* top) {
  int lane = threadIdx.x & 31;
  u32 most = 0;
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    u32 id = first + j * PROCESS_THREADS + threadIdx.x, group = id & ~(GROUP - 1u);
    u32 order = id < vocab ? order_of(x[j]) : 0;
    u32 best = __reduce_max_sync(~0u, order);
    u32 who = __ballot_sync(~0u, order == best);
    if (lane == 0 && group < vocab) groups[group / GROUP] = entry_of(best, group + __ffs(who) - 1);
    most = max(most, best);
  }
  __syncthreads();  // Those who still read what was there before.
  if (lane == 0) shared.warps[threadIdx.x >> 5] = most;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 0; w < PROCESS_WARPS; w++) most = max(most, shared.warps[w]);
    *top = most;
  }
}

// Adds the biases of the chunk's ids, one after the other as they are given: ids may be repeated.
DEVICE void add_bias(Process& shared, float* x, u32 first, const EvidenceRow& row) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (u32 at = 0; at < row.bias_count; at += PROCESS_THREADS) {
    Bias mine = {0, 0.f};
    bool here = false;
    if (at + threadIdx.x < row.bias_count) {
      mine = row.bias[at + threadIdx.x];
      mine.id -= first;
      here = mine.id < CHUNK;
    }
    u32 who = __ballot_sync(~0u, here), before = __popc(who & ((1u << lane) - 1)), all = 0;
    if (lane == 0) shared.warps[warp] = __popc(who);
    __syncthreads();
    for (int w = 0; w < PROCESS_WARPS; w++) {
      if (w < warp) before += shared.warps[w];
      all += shared.warps[w];
    }
    if (here) shared.bias[before] = mine;
    __syncthreads();
    for (u32 i = 0; i < all; i++) {
      Bias bias = shared.bias[i];
#pragma unroll
      for (int j = 0; j < EACH; j++)
        if (bias.id == j * PROCESS_THREADS + threadIdx.x) x[j] = __fadd_rn(x[j], bias.value);
    }
  }
}

// Counts the context's ids that are in the chunk, then penalizes each.
DEVICE void penalize(Process& shared, float* x, u32 first, const EvidenceRow& row) {
#pragma unroll
  for (int j = 0; j < EACH; j++) shared.occurrences[j * PROCESS_THREADS + threadIdx.x] = 0;
  __syncthreads();
#pragma unroll 4
  for (u32 at = threadIdx.x; at < row.id_count; at += PROCESS_THREADS) {
    u32 id = row.ids[at] - first;
    if (id >= CHUNK) continue;
    if (at < row.prompt_len) atomicOr(&shared.occurrences[id], IN_PROMPT);
    else atomicAdd(&shared.occurrences[id], 1u);
  }
  __syncthreads();
  bool additive = row.presence != 0.f || row.frequency != 0.f;
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    u32 seen = shared.occurrences[j * PROCESS_THREADS + threadIdx.x], count = seen & ~IN_PROMPT;
    if (row.repetition != 1.f && seen)
      x[j] = x[j] < 0.f ? __fmul_rn(x[j], row.repetition) : __fdiv_rn(x[j], row.repetition);
    if (additive && count) {
      x[j] = __fsub_rn(x[j], row.presence);
      x[j] = __fsub_rn(x[j], __fmul_rn(row.frequency, __uint2float_rn(count)));
    }
  }
}

// Grid (chunks, rows) of 256 threads: a block keeps and processes a chunk of a row and lists its best; a thread has
// the ids that are 256 apart.
extern "C" __global__ void __launch_bounds__(PROCESS_THREADS) evidence_process(const EvidenceRow* rows, Lists lists) {
  __shared__ Process shared;
  const EvidenceRow row = rows[blockIdx.y];
  u32 vocab = lists.vocab, first = blockIdx.x * CHUNK;
  u64 groups = (vocab + GROUP - 1) / GROUP;
  float x[EACH];
  u32 bad = ~0u;
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    u32 id = first + j * PROCESS_THREADS + threadIdx.x;
    x[j] = id < vocab ? row.raw[id] : 0.f;
    if (id < vocab && row.slot) row.slot[id] = x[j];
    if (!is_finite(x[j])) bad = min(bad, id);
  }
  bad = __reduce_min_sync(~0u, bad);
  if ((threadIdx.x & 31) == 0) shared.warps[threadIdx.x >> 5] = bad;
  __syncthreads();
  u64 at = (u64)blockIdx.y * gridDim.x + blockIdx.x;
  if (threadIdx.x == 0) {
    for (int w = 0; w < PROCESS_WARPS; w++) bad = min(bad, shared.warps[w]);
    lists.non_finite[at] = bad;
  }
  if (row.search_raw)
    list_best(shared, x, first, vocab, lists.groups + blockIdx.y * groups, lists.tops + at);
  if (!row.processed) return;
  __syncthreads();
  add_bias(shared, x, first, row);
  if (row.id_count) penalize(shared, x, first, row);
#pragma unroll
  for (int j = 0; j < EACH; j++) {
    u32 id = first + j * PROCESS_THREADS + threadIdx.x;
    if (id >= vocab) continue;
    if (row.allowed && !(row.allowed[id >> 3] >> (id & 7) & 1)) x[j] = NEG_INF;
    row.processed[id] = x[j];
  }
  u64 list = lists.rows + blockIdx.y;
  list_best(shared, x, first, vocab, lists.groups + list * groups, lists.tops + list * gridDim.x + blockIdx.x);
}

// === searching ===

struct Find {
  u64 low, high;
  u32 count, digit, above, inside, taken, found;
  u32 bins[256];
  u32 groups[MOST_BEST];
  u64 best[MOST_BEST];
};

// The bound that exactly the `want` greatest of `count` entries reach (0: no entry); 1 if there are no more. All
// threads call it; `entry_at` tells the same entry each time. Digit by digit, of eight bits, from the first bit in
// which the entries differ.
template <typename Entries> DEVICE u64 bound(Find& find, u32 count, u32 want, Entries entry_at) {
  int lane = threadIdx.x & 31;
  __syncthreads();
  if (threadIdx.x == 0) find.low = ~0ull, find.high = 0, find.count = 0;
  __syncthreads();
  u64 low = ~0ull, high = 0;
  u32 present = 0;
  for (u32 at = threadIdx.x; at < count; at += SEARCH_THREADS) {
    u64 entry = entry_at(at);
    if (!entry) continue;
    low = min(low, entry), high = max(high, entry), present++;
  }
#pragma unroll
  for (int lanes = 16; lanes; lanes >>= 1) {
    low = min(low, __shfl_xor_sync(~0u, low, lanes));
    high = max(high, __shfl_xor_sync(~0u, high, lanes));
  }
  present = __reduce_add_sync(~0u, present);
  if (lane == 0) {
    atomicMin(&find.low, low);
    atomicMax(&find.high, high);
    atomicAdd(&find.count, present);
  }
  __syncthreads();
  if (find.count <= want) return 1;
  if (want == 1) return find.high;
  // More than one entry, no two of them equal.
  int open = 64 - __clzll(find.low ^ find.high);
  u64 decided = open == 64 ? 0 : ~0ull << open, prefix = find.high & decided;
  while (true) {
    int shift = open > 8 ? open - 8 : 0;
    if (threadIdx.x < 256) find.bins[threadIdx.x] = 0;
    __syncthreads();
    for (u32 at = threadIdx.x; at < count; at += SEARCH_THREADS) {
      u64 entry = entry_at(at);
      if (entry && !((entry ^ prefix) & decided)) atomicAdd(&find.bins[(entry & ~decided) >> shift], 1u);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      // Lane 0 has the eight greatest digits.
      u32 mine = 0;
#pragma unroll
      for (int i = 0; i < 8; i++) mine += find.bins[255 - lane * 8 - i];
      u32 up_to = mine;
#pragma unroll
      for (int lanes = 1; lanes < 32; lanes <<= 1) {
        u32 other = __shfl_up_sync(~0u, up_to, lanes);
        if (lane >= lanes) up_to += other;
      }
      u32 above = up_to - mine;
      if (above < want && want <= up_to) {
        u32 digit = 255 - lane * 8;
        while (above + find.bins[digit] < want) above += find.bins[digit--];
        find.digit = digit, find.above = above, find.inside = find.bins[digit];
      }
    }
    __syncthreads();
    prefix |= (u64)find.digit << shift;
    want -= find.above;
    if (find.inside == want) return prefix;
    decided = ~0ull << shift;
    open = shift;
  }
}

// Sorts `count` (a power of two) entries, greatest first.
DEVICE void sort(u64* entries, u32 count) {
  for (u32 size = 2; size <= count; size <<= 1) {
    for (u32 stride = size >> 1; stride; stride >>= 1) {
      for (u32 i = threadIdx.x; i < count / 2; i += SEARCH_THREADS) {
        u32 a = (i & ~(stride - 1)) << 1 | (i & (stride - 1)), b = a + stride;
        u64 x = entries[a], y = entries[b];
        if ((x < y) == !(a & size)) entries[a] = y, entries[b] = x;
      }
      __syncthreads();
    }
  }
}

// The best of a row, greatest first.
DEVICE void search(Find& find, const Search& search, const Lists& lists) {
  u32 vocab = lists.vocab, count = (vocab + GROUP - 1) / GROUP;
  const u64* listed = lists.groups + (u64)search.list * count;
  const float* row = search.row;
  u64 least = bound(find, count, search.best, [&](u32 at) { return listed[at]; });
  for (u32 i = threadIdx.x; i < MOST_BEST; i += SEARCH_THREADS) find.best[i] = 0;
  if (threadIdx.x == 0) find.taken = 0, find.found = 0;
  __syncthreads();
  for (u32 at = threadIdx.x; at < count; at += SEARCH_THREADS)
    if (listed[at] >= least) find.groups[atomicAdd(&find.taken, 1u)] = at;
  __syncthreads();
  auto entry_at = [&](u32 at) -> u64 {
    u32 id = find.groups[at / GROUP] * GROUP + at % GROUP;
    if (id >= vocab) return 0;
    u64 entry = entry_of(order_of(row[id]), id);
    return entry < least ? 0 : entry;
  };
  u32 near = find.taken * GROUP;
  least = max(least, bound(find, near, search.best, entry_at));
  for (u32 at = threadIdx.x; at < near; at += SEARCH_THREADS) {
    u64 entry = entry_at(at);
    if (entry >= least) find.best[atomicAdd(&find.found, 1u)] = entry;
  }
  __syncthreads();
  u32 found = find.found, room = 2;
  while (room < found) room <<= 1;
  sort(find.best, room);
  for (u32 i = threadIdx.x; i < found; i += SEARCH_THREADS) {
    u32 id = id_of(find.best[i]);
    search.out[i] = {id, row[id], search.raw[id]};
  }
}

// The first id of a row whose logit is not finite.
DEVICE void first_non_finite(Find& find, const u32* chunks, u32 count, u32* out) {
  if (threadIdx.x == 0) find.found = ~0u;
  __syncthreads();
  u32 first = ~0u;
  for (u32 at = threadIdx.x; at < count; at += SEARCH_THREADS) first = min(first, chunks[at]);
  if (first != ~0u) atomicMin(&find.found, first);
  __syncthreads();
  if (threadIdx.x == 0) *out = find.found;
}

// === log-sum-exp ===

struct Terms {
  u32 top;
  double terms[CHUNK];
};

// exp of x ≤ 0, operation by operation that of the CPU.
DEVICE double exp_f64(double x) {
  double magic = 6755399441055744.0;
  double t = __fma_rn(x, 1.44269504088896338700, magic);
  double n = __dsub_rn(t, magic);
  double r = __fma_rn(n, -0.693147180559945309417, x);
  r = __fma_rn(n, -2.3190468138463e-17, r);
  double p = 2.5100569275813683e-8;
  p = __fma_rn(p, r, 2.762032742826824e-7);
  p = __fma_rn(p, r, 2.75572680728901e-6);
  p = __fma_rn(p, r, 2.4801520792572694e-5);
  p = __fma_rn(p, r, 1.9841269863303223e-4);
  p = __fma_rn(p, r, 1.3888888917538296e-3);
  p = __fma_rn(p, r, 8.333333333330011e-3);
  p = __fma_rn(p, r, 4.166666666662348e-2);
  p = __fma_rn(p, r, 1.6666666666666669e-1);
  p = __fma_rn(p, r, 5.000000000000001e-1);
  p = __fma_rn(p, r, 1.0);
  p = __fma_rn(p, r, 1.0);
  double y = __longlong_as_double((i64)((u64)__double_as_longlong(p) + ((u64)__double_as_longlong(t) << 52)));
  return x < -708.0 ? 0.0 : y;
}

// One chunk's Σ exp((x − max) / temperature): sixteen lanes, each in the order of its ids, folded (i, i+8), (i, i+4),
// (i, i+2), (i, i+1). Where all are −∞ it is 0, with a NaN among them NaN.
DEVICE void sum_chunk(Terms& shared, const Sum& sum, const Lists& lists, u32 chunk, u32 chunks) {
  if (threadIdx.x == 0) shared.top = 0;
  __syncthreads();
  u32 top = 0;
  const u32* tops = lists.tops + (u64)sum.list * chunks;
  for (u32 at = threadIdx.x; at < chunks; at += SEARCH_THREADS) top = max(top, tops[at]);
  if (top) atomicMax(&shared.top, top);
  __syncthreads();
  double most = (double)logit_of(shared.top);
  bool none = shared.top <= order_of(NEG_INF);
#pragma unroll
  for (int j = 0; j < CHUNK / SEARCH_THREADS; j++) {
    u32 at = j * SEARCH_THREADS + threadIdx.x, id = chunk * CHUNK + at;
    double term = 0.0;
    if (id < lists.vocab) {
      float x = sum.row[id];
      if (!none) term = exp_f64(__ddiv_rn(__dsub_rn((double)x, most), sum.temperature));
      else if (x != x) term = (double)x;
    }
    shared.terms[at] = term;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  int lane = threadIdx.x & 15;
  double total = 0.0;
#pragma unroll 8
  for (int at = 0; at < CHUNK; at += 16) total = __dadd_rn(total, shared.terms[at + lane]);
#pragma unroll
  for (int lanes = 8; lanes; lanes >>= 1) total = __dadd_rn(total, __shfl_down_sync(~0u, total, lanes, 16));
  if (threadIdx.x == 0) {
    sum.out[1 + chunk] = total;
    if (chunk == 0) sum.out[0] = most;
  }
}

// Grid (searches + sums · chunks) of 512 threads: a block does one search, the first of them each for a row of the
// step, or sums one chunk.
extern "C" __global__ void __launch_bounds__(SEARCH_THREADS)
evidence_search(const Search* searches, u32 search_count, const Sum* sums, u32* non_finite, u32 rows, Lists lists) {
  __shared__ union Shared {
    Find find;
    Terms terms;
  } shared;
  u32 chunks = (lists.vocab + CHUNK - 1) / CHUNK;
  if (blockIdx.x >= search_count) {
    u32 at = blockIdx.x - search_count;
    sum_chunk(shared.terms, sums[at / chunks], lists, at % chunks, chunks);
    return;
  }
  if (blockIdx.x < rows)
    first_non_finite(shared.find, lists.non_finite + (u64)blockIdx.x * chunks, chunks, non_finite + blockIdx.x);
  Search job = searches[blockIdx.x];
  if (job.best) search(shared.find, job, lists);
}
