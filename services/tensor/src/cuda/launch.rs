//! Compiled kernels, and how they are started.
#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::TensorError;
use crate::cuda::card::{Card, Context, check};
use crate::cuda::stream::Stream;

/// A theme's kernels on the card.
#[derive(Debug)]
pub struct Module {
    loaded: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    context: Arc<Context>,
    module: sys::CUmodule,
}

// SAFETY: the driver lets any thread use a module.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

/// One entry point.
#[derive(Clone, Debug)]
pub struct Kernel {
    module: Arc<Loaded>,
    function: sys::CUfunction,
    shared: u32,
}

// SAFETY: the driver lets any thread launch a function.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// How many threads start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y and z.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
}

/// A kernel's argument, by value: `T` has exactly the size and alignment of the parameter's type.
#[derive(Clone, Copy, Debug)]
pub struct Arg<'a> {
    value: *const c_void,
    borrowed: PhantomData<&'a ()>,
}

impl<'a> Arg<'a> {
    /// The argument that `value` holds.
    pub fn of<T: Copy>(value: &'a T) -> Arg<'a> {
        Arg { value: std::ptr::from_ref(value).cast(), borrowed: PhantomData }
    }
}

impl Module {
    /// Loads a cubin or PTX.
    pub fn load(context: &Arc<Context>, image: &[u8]) -> Result<Module, TensorError> {
        context.bind()?;
        // PTX is text and must end with a zero byte; a cubin does not mind one.
        let image: Vec<u8> = image.iter().copied().chain([0]).collect();
        // SAFETY: the image is whole and lives during the call.
        let module = check("cuModuleLoadData", unsafe { result::module::load_data(image.as_ptr().cast()) })?;
        Ok(Module { loaded: Arc::new(Loaded { context: Arc::clone(context), module }) })
    }

    /// The entry point `name`.
    pub fn kernel(&self, name: &str) -> Result<Kernel, TensorError> {
        let unknown = || TensorError::Kernel { theme: "a module", log: format!("there is no kernel {name}") };
        let entry = CString::new(name).map_err(|_| unknown())?;
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.loaded.module, entry) }.map_err(|_| unknown())?;
        Ok(Kernel { module: Arc::clone(&self.loaded), function, shared: 0 })
    }
}

impl Kernel {
    /// The same kernel with `bytes` of dynamic shared memory in every launch.
    pub fn with_shared(mut self, bytes: u32) -> Result<Kernel, TensorError> {
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        self.module.context.bind()?;
        // SAFETY: the function lives as long as its module.
        let set = unsafe { result::function::set_function_attribute(self.function, attribute, bytes as i32) };
        check("cuFuncSetAttribute", set)?;
        self.shared = bytes;
        Ok(self)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: loaded once, unloaded once.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

impl Grid {
    /// `blocks` blocks in a row.
    pub fn line(blocks: u32, threads: u32) -> Grid {
        Grid { blocks: [blocks, 1, 1], threads }
    }
}

impl Card {
    /// Starts a kernel on the compute stream. A grid without blocks starts nothing.
    ///
    /// # Safety
    /// The arguments are those that the kernel declares, and the memory that it reaches through them is there.
    pub unsafe fn launch(&self, kernel: &Kernel, grid: Grid, arguments: &[Arg<'_>]) -> Result<(), TensorError> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_on(&self.compute, kernel, grid, arguments) }
    }

    /// The same on another stream.
    ///
    /// # Safety
    /// As for [`Card::launch`].
    pub unsafe fn launch_on(
        &self,
        stream: &Stream,
        kernel: &Kernel,
        grid: Grid,
        arguments: &[Arg<'_>],
    ) -> Result<(), TensorError> {
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        self.context().count(|counters| &counters.launches);
        let mut pointers = [std::ptr::null_mut::<c_void>(); MOST_ARGUMENTS];
        let taken = pointers.get_mut(..arguments.len()).ok_or(TensorError::Setting {
            op: "launch",
            what: "a kernel's arguments",
            rule: "at most 32",
        })?;
        for (pointer, argument) in taken.iter_mut().zip(arguments) {
            *pointer = argument.value.cast_mut();
        }
        // SAFETY: the caller's promise; the driver copies the arguments during the call.
        check("cuLaunchKernel", unsafe {
            result::launch_kernel(
                kernel.function,
                (x, y, z),
                (grid.threads, 1, 1),
                kernel.shared,
                stream.raw(),
                taken,
            )
        })
    }
}

/// More than any kernel has.
const MOST_ARGUMENTS: usize = 32;
