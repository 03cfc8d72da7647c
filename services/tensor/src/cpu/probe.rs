//! What this machine can do at most: the limits that speeds are judged against.
//!
//! Decoding reads every weight once, so reading memory is its limit; prefill multiplies, so the peak rate of
//! the multiplying instruction is. Both are measured, on the threads of a pool, just before or after the
//! speed itself: clocks and neighbours change within minutes.
#![allow(unsafe_code, reason = "calls functions compiled for instructions found at run time")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::TensorError;
use crate::cpu::isa::Isa;
use crate::cpu::memory::Memory;
use crate::cpu::pool::Pool;

/// How often each limit is measured; the best counts.
const ROUNDS: usize = 5;

/// Multiplications of one round and thread, in units of one loop body.
const TURNS: usize = 400_000;

/// Measured limits of this machine for a number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Threads that worked at once.
    pub threads: usize,
    /// Memory read, in bytes a second.
    pub read: f64,
    /// Fused multiply-adds of f32, in floating-point operations (two each) a second.
    pub fma: f64,
    /// The same for bf16 dot products, where the processor has an instruction for them.
    pub dp: Option<f64>,
}

/// Measures for about a tenth of a second each. `bytes` is the size of the memory to read: that of the
/// weights in question, since a large cache may hold a part of them.
pub fn limits(pool: &Pool, isa: Isa, bytes: usize) -> Result<Limits, TensorError> {
    let isa = if isa.is_available() { isa } else { Isa::detect() };
    let dp = (isa == Isa::Avx512Bf16).then(|| peak(pool, isa, Rate::Dp));
    let (_, read) = ReadProbe::best(pool, isa, bytes)?;
    Ok(Limits { threads: pool.threads(), read, fma: peak(pool, isa, Rate::Fma), dp })
}

/// Memory that is read to see how fast that goes at the moment.
#[derive(Debug)]
pub struct ReadProbe {
    area: Memory,
    isa: Isa,
    /// How far ahead it prefetches, in bytes; 0: not at all.
    ahead: usize,
}

impl ReadProbe {
    /// Over an area of `bytes`; reads it by itself or with prefetching, whichever is faster here.
    pub fn new(pool: &Pool, isa: Isa, bytes: usize) -> Result<ReadProbe, TensorError> {
        Ok(ReadProbe::best(pool, isa, bytes)?.0)
    }

    /// Bytes a second that the threads read, each its own part of the area, in one pass.
    pub fn pass(&self, pool: &Pool) -> f64 {
        self.rate(self.time(pool))
    }

    /// The same with its best rate so far.
    fn best(pool: &Pool, isa: Isa, bytes: usize) -> Result<(ReadProbe, f64), TensorError> {
        let isa = if isa.is_available() { isa } else { Isa::detect() };
        let bytes = bytes.max(1 << 20);
        let mut area = Memory::zeroed(bytes).map_err(|source| TensorError::Memory { bytes, source })?;
        // Pages that were never written may all be one page of zeros.
        area.as_mut_slice::<u64>().fill(0x5555);
        let mut probe = ReadProbe { area, isa, ahead: 0 };
        let mut best = (Duration::MAX, 0);
        for ahead in [0, 3 << 10, 8 << 10] {
            probe.ahead = ahead;
            for _ in 0..ROUNDS {
                best = best.min((probe.time(pool), ahead));
            }
        }
        probe.ahead = best.1;
        let rate = probe.rate(best.0);
        Ok((probe, rate))
    }

    fn time(&self, pool: &Pool) -> Duration {
        let start = Instant::now();
        pool.run(&|worker| {
            let lines = self.lines();
            black_box(sum(self.isa, &lines[worker.share(lines.len())], self.ahead));
        });
        start.elapsed()
    }

    fn rate(&self, time: Duration) -> f64 {
        size_of_val(self.lines()) as f64 / time.as_secs_f64()
    }

    fn lines(&self) -> &[Lines] {
        self.area.as_slice::<u64>().as_chunks().0
    }
}

/// Operations a second of all threads.
fn peak(pool: &Pool, isa: Isa, rate: Rate) -> f64 {
    let operations = multiply(isa, rate, 1) * pool.threads() as f64 * TURNS as f64;
    let best = best(|| {
        pool.run(&|_| {
            multiply(isa, rate, TURNS);
        });
    });
    operations / best.as_secs_f64()
}

fn best(mut job: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        job();
        start.elapsed()
    };
    (0..ROUNDS).map(time).min().unwrap_or(Duration::MAX)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rate {
    Fma,
    Dp,
}

/// Four cache lines.
type Lines = [u64; 32];

/// A sum over all of `lines`, with loads as wide as there are, prefetching `ahead` bytes further on if not 0.
fn sum(isa: Isa, lines: &[Lines], ahead: usize) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `limits` and `ReadProbe::best` make sure that the instructions are there.
        Isa::Avx512 | Isa::Avx512Bf16 => unsafe { x86::sum_512(lines, ahead) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { x86::sum_256(lines, ahead) },
        _ => plain_sum(lines, |_| {}),
    }
}

#[inline(always)]
fn plain_sum(lines: &[Lines], fetch: impl Fn(&Lines)) -> u64 {
    let mut sums = [0_u64; 32];
    for line in lines {
        fetch(line);
        for (sum, value) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// Multiplies `turns` times in enough independent chains to hide latency; the floating-point operations of a
/// turn.
fn multiply(isa: Isa, rate: Rate, turns: usize) -> f64 {
    match (isa, rate) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `limits` and `ReadProbe::best` make sure that the instructions are there.
        (Isa::Avx512Bf16, Rate::Dp) => unsafe { x86::dp_512(turns) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Isa::Avx512 | Isa::Avx512Bf16, _) => unsafe { x86::fma_512(turns) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Isa::Avx2, _) => unsafe { x86::fma_256(turns) },
        _ => plain_fma(turns),
    }
}

fn plain_fma(turns: usize) -> f64 {
    let mut chains = [[0.5_f32; 4]; 12];
    let (x, y) = black_box(([0.999_f32; 4], [0.001_f32; 4]));
    for _ in 0..turns {
        for chain in &mut chains {
            for (lane, value) in chain.iter_mut().enumerate() {
                *value = x[lane].mul_add(*value, y[lane]);
            }
        }
    }
    black_box(chains);
    12.0 * 4.0 * 2.0
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::{Lines, plain_sum};

    #[target_feature(enable = "avx512f")]
    pub fn sum_512(lines: &[Lines], ahead: usize) -> u64 {
        if ahead == 0 { plain_sum(lines, |_| {}) } else { plain_sum(lines, |line| fetch(line, ahead)) }
    }

    #[target_feature(enable = "avx2")]
    pub fn sum_256(lines: &[Lines], ahead: usize) -> u64 {
        if ahead == 0 { plain_sum(lines, |_| {}) } else { plain_sum(lines, |line| fetch(line, ahead)) }
    }

    #[inline(always)]
    fn fetch(line: &Lines, ahead: usize) {
        for offset in [0, 64, 128, 192] {
            let address = std::ptr::from_ref(line).wrapping_byte_add(ahead + offset);
            // SAFETY: every processor of this architecture has the instruction, and it never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn fma_256(turns: usize) -> f64 {
        let mut chains = [_mm256_set1_ps(0.5); 12];
        let (x, y) = black_box((_mm256_set1_ps(0.999), _mm256_set1_ps(0.001)));
        for _ in 0..turns {
            for chain in &mut chains {
                *chain = _mm256_fmadd_ps(x, *chain, y);
            }
        }
        black_box(chains);
        12.0 * 8.0 * 2.0
    }

    #[target_feature(enable = "avx512f")]
    pub fn fma_512(turns: usize) -> f64 {
        let mut chains = [_mm512_set1_ps(0.5); 16];
        let (x, y) = black_box((_mm512_set1_ps(0.999), _mm512_set1_ps(0.001)));
        for _ in 0..turns {
            for chain in &mut chains {
                *chain = _mm512_fmadd_ps(x, *chain, y);
            }
        }
        black_box(chains);
        16.0 * 16.0 * 2.0
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn dp_512(turns: usize) -> f64 {
        let mut chains = [_mm512_set1_ps(0.5); 16];
        let ones = black_box(_mm512_set1_epi32(0x3f80_3f80));
        // SAFETY: both are 64 bytes of any bits.
        let ones = unsafe { std::mem::transmute::<__m512i, __m512bh>(ones) };
        for _ in 0..turns {
            for chain in &mut chains {
                *chain = _mm512_dpbf16_ps(*chain, ones, ones);
            }
        }
        black_box(chains);
        16.0 * 32.0 * 2.0
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn limits_are_positive_and_dp_is_there_with_its_instruction() {
        let pool = Pool::new(NonZeroUsize::MIN).unwrap();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available() && *isa != Isa::Scalar) {
            let limits = limits(&pool, isa, 4 << 20).unwrap();
            assert_eq!(limits.threads, 1);
            assert!(limits.read > 0.0 && limits.fma > 0.0);
            assert_eq!(limits.dp.is_some(), isa == Isa::Avx512Bf16);
        }
    }

    #[test]
    fn memory_is_read_again() {
        let pool = Pool::new(NonZeroUsize::MIN).unwrap();
        let probe = ReadProbe::new(&pool, Isa::detect(), 4 << 20).unwrap();
        assert!(probe.pass(&pool) > 0.0);
        assert_eq!(size_of_val(probe.lines()), 4 << 20);
    }

    #[test]
    fn every_line_is_read() {
        let lines: Vec<Lines> = (0..100).map(|i| [i; 32]).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            assert_eq!([0, 4096].map(|ahead| sum(isa, &lines, ahead)), [4950 * 32; 2]);
        }
    }
}
