//! Compiled kernels, and how they are started.
#![allow(unsafe_code, reason = "calls the CUDA driver")]

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::TensorError;
use crate::cuda::card::Card;
use crate::cuda::compile::Theme;
use crate::cuda::context::{Context, check, message, undisturbed};
use crate::cuda::stream::Stream;

/// A theme's kernels on the card.
#[derive(Debug)]
pub struct Module {
    loaded: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    context: Arc<Context>,
    theme: Theme,
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
    name: Arc<str>,
    function: sys::CUfunction,
    /// Sizes of its parameters in bytes.
    parameters: Arc<[usize]>,
    /// Dynamic shared memory of every launch, in bytes.
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
    bytes: usize,
    borrowed: PhantomData<&'a ()>,
}

impl<'a> Arg<'a> {
    /// The argument that `value` holds.
    pub fn of<T: Copy>(value: &'a T) -> Arg<'a> {
        Arg { value: std::ptr::from_ref(value).cast(), bytes: size_of::<T>(), borrowed: PhantomData }
    }
}

impl Module {
    /// Loads a theme's cubin or PTX.
    pub fn load(context: &Arc<Context>, theme: Theme, image: &[u8]) -> Result<Module, TensorError> {
        context.bind()?;
        context.count(|counters| &counters.allocations);
        // PTX is text and must end with a zero byte; a cubin does not mind one.
        let image: Vec<u8> = image.iter().copied().chain([0]).collect();
        let _undisturbed = undisturbed();
        // SAFETY: the image is whole and lives during the call.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
            .map_err(|error| TensorError::Kernel { theme: theme.name(), log: message(&error) })?;
        Ok(Module { loaded: Arc::new(Loaded { context: Arc::clone(context), theme, module }) })
    }

    /// The entry point `name`.
    pub fn kernel(&self, name: &str) -> Result<Kernel, TensorError> {
        let refused = |why: String| TensorError::Kernel {
            theme: self.loaded.theme.name(),
            log: format!("{name}: {why}"),
        };
        self.loaded.context.bind()?;
        let entry = CString::new(name).map_err(|error| refused(error.to_string()))?;
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(self.loaded.module, entry) }
            .map_err(|error| refused(message(&error)))?;
        let parameters = parameters(function).map_err(|error| refused(message(&error)))?;
        let module = Arc::clone(&self.loaded);
        Ok(Kernel { module, name: name.into(), function, parameters: parameters.into(), shared: 0 })
    }
}

/// The sizes of a kernel's parameters.
fn parameters(function: sys::CUfunction) -> Result<Vec<usize>, result::DriverError> {
    let mut sizes = Vec::new();
    while sizes.len() < MOST_ARGUMENTS {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function is loaded; the driver writes two numbers.
        match unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut bytes) }.result() {
            Ok(()) => sizes.push(bytes),
            // It has no more.
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_INVALID_VALUE)) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sizes)
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

    /// What the driver takes as arguments. A number or a size that the kernel does not declare is refused: it would read
    /// what lies beside them.
    fn pointers(&self, arguments: &[Arg<'_>]) -> Result<[*mut c_void; MOST_ARGUMENTS], TensorError> {
        if arguments.len() != self.parameters.len() {
            let (given, taken) = (arguments.len(), self.parameters.len());
            return Err(self.refused(format!("{given} arguments, the kernel takes {taken}")));
        }
        let mut pointers = [std::ptr::null_mut(); MOST_ARGUMENTS];
        for (index, (pointer, argument)) in pointers.iter_mut().zip(arguments).enumerate() {
            let taken = self.parameters[index];
            if argument.bytes != taken {
                let given = argument.bytes;
                return Err(
                    self.refused(format!("argument {index} has {given} bytes, the kernel takes {taken}"))
                );
            }
            *pointer = argument.value.cast_mut();
        }
        Ok(pointers)
    }

    fn refused(&self, why: String) -> TensorError {
        TensorError::Kernel { theme: self.module.theme.name(), log: format!("{}: {why}", self.name) }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let _undisturbed = undisturbed();
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
    pub unsafe fn launch(
        &self,
        kernel: &Kernel,
        grid: Grid,
        arguments: &[Arg<'_>],
    ) -> Result<(), TensorError> {
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
        let pointers = &mut kernel.pointers(arguments)?[..arguments.len()];
        self.context().bind()?;
        self.context().count(|counters| &counters.launches);
        // SAFETY: the caller's promise; the driver copies the arguments during the call.
        unsafe {
            result::launch_kernel(
                kernel.function,
                (x, y, z),
                (grid.threads, 1, 1),
                kernel.shared,
                stream.raw(),
                pointers,
            )
        }
        .map_err(|error| kernel.refused(message(&error)))
    }
}

/// More than any kernel has.
const MOST_ARGUMENTS: usize = 32;
