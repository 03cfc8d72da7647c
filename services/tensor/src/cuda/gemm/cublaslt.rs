//! The calls of cuBLASLt.
//!
//! It thinks in columns: row-major y\[M, N\] = x\[M, K\] · w\[N, K\]ᵀ is its D\[N, M\] = op(A)·B with A = w as
//! \[K, N\] transposed and B = x as \[K, M\].
#![allow(unsafe_code, reason = "calls cuBLASLt")]

use std::ffi::c_void;
use std::ptr::from_ref;
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};

use super::chain::Product;
use super::plan::PlanKey;
use super::store::Algorithm;
use crate::cuda::card::Card;
use crate::cuda::context::undisturbed;
use crate::cuda::memory::DeviceMemory;
use crate::{Dtype, TensorError};

/// Bytes that an algorithm may use beside its operands.
const WORKSPACE: usize = 64 << 20;

/// Candidates that are asked for, of any kind and again of those that do not split K.
const CANDIDATES: usize = 16;

/// CUBLAS_OP_T.
const TRANSPOSED: i32 = 1;

/// At most every so many-th multiprocessor is left idle for the sake of even shares.
const IDLE: u32 = 6;

/// On how many of a card's multiprocessors all do as much, if that is fewer than all and takes no longer: with 228
/// tiles on 132 some do two and some one, and the memory that all share decides the time, so 114 that do two each lose
/// nothing. `waves` is how often the tiles fill the card.
fn even_share(waves: f32, card: u32) -> Option<u32> {
    let tiles = (waves * card as f32).round() as u32;
    let rounds = tiles.div_ceil(card.max(1));
    let share = tiles.div_ceil(rounds.max(1));
    (rounds > 1 && share < card && (card - share) * IDLE <= card).then_some(share)
}

/// The library, and the memory that its algorithms share: they run one after the other.
#[derive(Debug)]
pub struct Library {
    card: Arc<Card>,
    handle: sys::cublasLtHandle_t,
    workspace: DeviceMemory,
}

// SAFETY: the library lets any thread use a handle.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// A multiplication as the library describes it.
#[derive(Debug)]
pub struct Problem {
    bias: bool,
    recorded: bool,
    /// What [`Algorithm::multiprocessors`] was set to last.
    multiprocessors: u32,
    operation: sys::cublasLtMatmulDesc_t,
    weights: sys::cublasLtMatrixLayout_t,
    activations: sys::cublasLtMatrixLayout_t,
    outputs: sys::cublasLtMatrixLayout_t,
}

// SAFETY: descriptors are plain memory; `&mut` guards writes.
unsafe impl Send for Problem {}
// SAFETY: as above.
unsafe impl Sync for Problem {}

/// Wraps the library's answer.
fn check<T>(what: &'static str, answer: Result<T, result::CublasError>) -> Result<T, TensorError> {
    answer.map_err(|error| TensorError::Cuda { what, message: error.to_string() })
}

impl Library {
    /// Opens it for a card.
    pub fn new(card: &Arc<Card>) -> Result<Library, TensorError> {
        let workspace = DeviceMemory::zeroed(card.context(), WORKSPACE)?;
        let _undisturbed = undisturbed();
        let handle = check("cublasLtCreate", result::create_handle())?;
        Ok(Library { card: Arc::clone(card), handle, workspace })
    }

    /// Algorithms that the library thinks fast, the best guess first, each on the whole card and then, in recorded steps
    /// and where that evens out its shares, on fewer multiprocessors.
    pub fn candidates(&self, problem: &mut Problem) -> Result<Vec<Algorithm>, TensorError> {
        problem.use_multiprocessors(0)?;
        let mut all = self.ask(problem, sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_MASK)?;
        for algorithm in self.ask(problem, sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE)? {
            if !all.contains(&algorithm) {
                all.push(algorithm);
            }
        }
        Ok(all)
    }

    /// Candidates that add partial sums only in one of `schemes`; none where the library knows none.
    fn ask(
        &self,
        problem: &Problem,
        schemes: sys::cublasLtReductionScheme_t,
    ) -> Result<Vec<Algorithm>, TensorError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let empty = sys::cublasLtMatmulHeuristicResult_t {
            algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspaceSize: 0,
            state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let mut found = [empty; CANDIDATES];
        let mut count = 0;
        let preference = check("cublasLtMatmulPreferenceCreate", result::create_matmul_pref())?;
        let (workspace, schemes) = (WORKSPACE, schemes as u32);
        // SAFETY: the preference lives until it is destroyed below, its attributes have the types that the library
        // declares, and `found` has room for as many results as are asked for.
        let answer = unsafe {
            let set = |attribute, value: *const c_void, bytes| {
                result::set_matmul_pref_attribute(preference, attribute, value, bytes)
            };
            let mask = Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
            let room = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let answer = set(room, from_ref(&workspace).cast(), size_of::<usize>())
                .and_then(|()| set(mask, from_ref(&schemes).cast(), size_of::<u32>()))
                .and_then(|()| {
                    sys::cublasLtMatmulAlgoGetHeuristic(
                        self.handle,
                        problem.operation,
                        problem.weights,
                        problem.activations,
                        problem.outputs,
                        problem.outputs,
                        preference,
                        CANDIDATES as i32,
                        found.as_mut_ptr(),
                        &mut count,
                    )
                    .result()
                });
            let _ = result::destroy_matmul_pref(preference);
            answer
        };
        match answer {
            // The library has nothing for this shape.
            Err(result::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => {
                return Ok(Vec::new());
            }
            answer => check("cublasLtMatmulAlgoGetHeuristic", answer)?,
        }
        let usable = |result: &&sys::cublasLtMatmulHeuristicResult_t| {
            result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= WORKSPACE
        };
        let found = found.iter().take(count.max(0) as usize).filter(usable);
        let card = self.card.multiprocessors();
        let on_card = |result: &sys::cublasLtMatmulHeuristicResult_t| {
            let on = |multiprocessors| Algorithm { words: result.algo.data, multiprocessors };
            let even = if problem.recorded { even_share(result.wavesCount, card) } else { None };
            [Some(on(0)), even.map(on)]
        };
        Ok(found.flat_map(on_card).flatten().collect())
    }

    /// Whether an algorithm, out of a file perhaps, is one for this problem.
    pub fn accepts(&self, problem: &mut Problem, algorithm: &Algorithm) -> bool {
        if problem.use_multiprocessors(algorithm.multiprocessors).is_err() {
            return false;
        }
        let algorithm = sys::cublasLtMatmulAlgo_t { data: algorithm.words };
        let mut checked = sys::cublasLtMatmulHeuristicResult_t {
            algo: algorithm,
            workspaceSize: usize::MAX,
            state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        // SAFETY: the descriptors live; the library writes one result.
        let answer = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.handle,
                problem.operation,
                problem.weights,
                problem.activations,
                problem.outputs,
                problem.outputs,
                &algorithm,
                &mut checked,
            )
        };
        answer.result().is_ok() && checked.workspaceSize <= WORKSPACE
    }

    /// Enqueues a multiplication on the compute stream. It computes all the problem's rows, whatever `product` says,
    /// and its x has no gaps.
    ///
    /// # Safety
    /// The addresses are those of memory that holds what `product` says, for all the problem's rows.
    pub unsafe fn multiply(
        &self,
        problem: &mut Problem,
        algorithm: &Algorithm,
        product: &Product,
    ) -> Result<(), TensorError> {
        let context = self.card.context();
        context.bind()?;
        context.count(|counters| &counters.launches);
        problem.use_multiprocessors(algorithm.multiprocessors)?;
        let algorithm = sys::cublasLtMatmulAlgo_t { data: algorithm.words };
        let (alpha, beta) = (product.scale, 0.0_f32);
        if problem.bias {
            use sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            problem.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product.library_bias)?;
        }
        // SAFETY: memory by the caller's promise, descriptors that fit it; beta is zero, so what was at `out` is not
        // read.
        check("cublasLtMatmul", unsafe {
            result::matmul(
                self.handle,
                problem.operation,
                from_ref(&alpha).cast(),
                from_ref(&beta).cast(),
                product.weights as *const c_void,
                problem.weights,
                product.x as *const c_void,
                problem.activations,
                product.out as *const c_void,
                problem.outputs,
                product.out as *mut c_void,
                problem.outputs,
                &algorithm,
                self.workspace.address() as *mut c_void,
                self.workspace.bytes(),
                self.card.compute.raw().cast(),
            )
        })
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        let _undisturbed = undisturbed();
        if self.card.context().bind().is_ok() {
            // SAFETY: created once, destroyed once.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}

impl Problem {
    /// Describes what `key` stands for.
    pub fn new(library: &Library, key: &PlanKey) -> Result<Problem, TensorError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let kind = |dtype| match dtype {
            Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
            Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
        };
        let (inputs, out) = (kind(key.compute.dtype()), kind(key.out));
        let layout = |kind, rows: usize, columns: usize| {
            let made = result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64);
            check("cublasLtMatrixLayoutCreate", made)
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // Filled one by one, so that what was made is destroyed where the next fails.
        let mut problem = Problem {
            bias: key.bias,
            recorded: key.is_recorded(),
            multiprocessors: 0,
            operation: std::ptr::null_mut(),
            weights: std::ptr::null_mut(),
            activations: std::ptr::null_mut(),
            outputs: std::ptr::null_mut(),
        };
        let operation = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F);
        problem.operation = check("cublasLtMatmulDescCreate", operation)?;
        problem.weights = layout(inputs, key.inputs, key.outputs)?;
        problem.activations = layout(inputs, key.inputs, key.rows)?;
        problem.outputs = layout(out, key.outputs, key.rows)?;
        problem.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if key.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            problem.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            problem.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &out)?;
            // Candidates are asked for before there is a bias: any aligned address does.
            problem.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &library.workspace.address())?;
        }
        Ok(problem)
    }

    /// Has the next call use so many multiprocessors, or all if 0.
    fn use_multiprocessors(&mut self, count: u32) -> Result<(), TensorError> {
        use sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET;
        if self.multiprocessors != count {
            self.set(CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, &count)?;
            self.multiprocessors = count;
        }
        Ok(())
    }

    /// Sets an attribute whose type in C has the size of `T`.
    fn set<T: Copy>(
        &mut self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> Result<(), TensorError> {
        // SAFETY: the descriptor lives, and the library copies the value during the call.
        check("cublasLtMatmulDescSetAttribute", unsafe {
            result::set_matmul_desc_attribute(
                self.operation,
                attribute,
                from_ref(value).cast(),
                size_of::<T>(),
            )
        })
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        // SAFETY: each was created once, or is null, and is destroyed once.
        unsafe {
            if !self.operation.is_null() {
                let _ = result::destroy_matmul_desc(self.operation);
            }
            for layout in [self.weights, self.activations, self.outputs] {
                if !layout.is_null() {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::even_share;

    #[test]
    fn shares_are_evened_where_few_multiprocessors_are_left_idle() {
        let share = |tiles: u32, card: u32| even_share(tiles as f32 / card as f32, card);
        assert_eq!(share(228, 132), Some(114));
        assert_eq!(share(392, 132), Some(131));
        assert_eq!(share(128, 132), None, "they fit at once");
        assert_eq!(share(264, 132), None, "all do two");
        assert_eq!(share(136, 132), None, "half the card would idle");
        assert_eq!(share(0, 132), None);
        assert_eq!(share(5, 0), None);
    }
}
