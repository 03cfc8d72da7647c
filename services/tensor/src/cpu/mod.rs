//! The CPU: the specification of every operation, and the fast paths behind it.

pub mod attention;
pub mod bf16;
pub mod disjoint;
pub mod element;
pub mod elementwise;
pub mod evidence;
pub mod exp;
pub mod gemm;
pub mod isa;
pub mod kv;
pub mod matrix;
pub mod memory;
pub mod norm;
pub mod pack;
pub mod pool;
pub mod probe;
pub mod process;
pub mod rope;
pub mod simd;

use std::fmt;
use std::ops::Range;
use std::sync::Mutex;

use crate::cpu::gemm::Gemm;
use crate::cpu::isa::Isa;
use crate::cpu::pool::Pool;
use crate::{Compute, CpuOptions, TensorError};

/// Elements of work below which a region costs more than it saves.
const REGION_WORK: usize = 16 << 10;

/// This processor: its threads and its best instructions.
pub struct Cpu {
    pool: Pool,
    isa: Isa,
    gemm: Gemm,
    /// One for each thread.
    scratch: Box<[Mutex<attention::Scratch>]>,
    /// Occurrences by token id, all zero between calls of [`process`].
    counts: Mutex<Vec<u32>>,
}

impl Cpu {
    pub(crate) fn new(options: CpuOptions) -> Result<Cpu, TensorError> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if !isa.is_available() {
            return Err(TensorError::IsaUnavailable { isa: isa.name() });
        }
        let threads = options.threads.get();
        let pool = Pool::new(options.threads).map_err(|source| TensorError::Threads { threads, source })?;
        let scratch = (0..threads).map(|_| Mutex::default()).collect();
        Ok(Cpu { pool, isa, gemm: Gemm::new(isa)?, scratch, counts: Mutex::default() })
    }

    pub(crate) fn describe(&self) -> String {
        let threads = self.pool.threads();
        format!("cpu {}, {threads} thread{}", self.isa.name(), if threads == 1 { "" } else { "s" })
    }

    pub(crate) fn bf16_path(&self) -> &'static str {
        self.gemm.path(Compute::Bf16)
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(crate) fn gemm(&self) -> &Gemm {
        &self.gemm
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// Runs `job` on shares of `0..items`: on all threads, or here where the work (`each` elements an item)
    /// is small.
    fn split(&self, items: usize, each: usize, job: &(dyn Fn(Range<usize>) + Sync)) {
        if items < 2 || self.pool.threads() == 1 || items * each < REGION_WORK {
            job(0..items);
        } else {
            self.pool.run(&|worker| job(worker.share(items)));
        }
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}
