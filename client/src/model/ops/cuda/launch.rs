//! What reaches the GPU: kernels, products of matrices, memory. The kernels stand in `client/kernels`; their callers beside
//! this file check every extent before they pass it on.

#![expect(
    unsafe_code,
    reason = "launches and cuBLAS take what they are given; the callers in this folder check extents"
)]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ops::Deref;
use std::sync::Mutex;

use candle_core::cuda_backend::cudarc::cublas::{result as cublas, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg, result, sys,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor, bail};
use half::{bf16, f16};

#[expect(unreachable_pub, reason = "written by cudaforge")]
mod compiled {
    //! The kernels as PTX, one constant a file.
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// A file of kernels.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Attention,
    Image,
    Loss,
    Norm,
    Optimizer,
    Rows,
    Values,
}

impl Source {
    /// Its name in the device's memory, and its code.
    fn code(self) -> (&'static str, &'static str) {
        match self {
            Self::Attention => ("fedtune-attention", compiled::ATTENTION),
            Self::Image => ("fedtune-image", compiled::IMAGE),
            Self::Loss => ("fedtune-loss", compiled::LOSS),
            Self::Norm => ("fedtune-norm", compiled::NORM),
            Self::Optimizer => ("fedtune-optimizer", compiled::OPTIMIZER),
            Self::Rows => ("fedtune-rows", compiled::ROWS),
            Self::Values => ("fedtune-values", compiled::VALUES),
        }
    }
}

/// Opens a GPU with a stream of its own: the default one orders nothing between threads.
///
/// # Errors
/// No such GPU, or its driver does not answer.
pub(crate) fn open(index: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(index)?;
    if let Device::Cuda(gpu) = &device {
        // SAFETY: all that is computed on this device goes through its one stream, so nothing waits for an event.
        unsafe { gpu.disable_event_tracking() };
        // Without it steps are slower, and the same.
        if let Err(reason) = keep_memory(gpu) {
            tracing::debug!(%reason, "freed memory of the GPU is given back to its driver");
        }
    }
    Ok(device)
}

/// Keeps freed memory for the next allocation; the driver would give it back whenever the GPU is waited for.
fn keep_memory(gpu: &CudaDevice) -> Result<()> {
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let at: *mut u64 = &mut threshold;
    // SAFETY: the device of an open context, and the attribute's type, a u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(gpu.cuda_stream().context().cu_device()).w()?;
        result::mem_pool::set_attribute(pool, attribute, at.cast::<c_void>()).w()
    }
}

/// The GPU of a tensor.
pub(super) fn gpu(tensor: &Tensor) -> Result<&CudaDevice> {
    match tensor.device() {
        Device::Cuda(gpu) => Ok(gpu),
        device => bail!("expected a tensor on a GPU, found one on {device:?}"),
    }
}

/// What a product is made of.
pub(super) trait Element: CudaDType + DeviceRepr + Copy {
    /// cuBLAS's name.
    const KIND: blas::cudaDataType_t;
    /// The end of the names of its kernels.
    const NAME: &'static str;
    const DTYPE: DType;
}

impl Element for f32 {
    const KIND: blas::cudaDataType_t = blas::cudaDataType_t::CUDA_R_32F;
    const NAME: &'static str = "f32";
    const DTYPE: DType = DType::F32;
}

impl Element for bf16 {
    const KIND: blas::cudaDataType_t = blas::cudaDataType_t::CUDA_R_16BF;
    const NAME: &'static str = "bf16";
    const DTYPE: DType = DType::BF16;
}

impl Element for f16 {
    const KIND: blas::cudaDataType_t = blas::cudaDataType_t::CUDA_R_16F;
    const NAME: &'static str = "f16";
    const DTYPE: DType = DType::F16;
}

/// The values of a contiguous tensor on a GPU, locked for reading.
pub(super) struct Locked<S> {
    storage: S,
    start: usize,
    end: usize,
}

/// Locks a contiguous tensor.
pub(super) fn lock(tensor: &Tensor) -> Result<Locked<impl Deref<Target = Storage>>> {
    let (storage, layout) = tensor.storage_and_layout();
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(Locked { storage, start, end }),
        None => bail!("expected a contiguous tensor of shape {:?}", layout.shape()),
    }
}

impl<S: Deref<Target = Storage>> Locked<S> {
    pub(super) fn values<T: Element>(&self) -> Result<CudaView<'_, T>> {
        let Storage::Cuda(storage) = &*self.storage else { bail!("expected a tensor on a GPU") };
        match storage.as_cuda_slice::<T>()?.try_slice(self.start..self.end) {
            Some(values) => Ok(values),
            None => bail!("a tensor reaches beyond its memory"),
        }
    }
}

/// Binds each named tensor to a view of its values, of f32 unless another type is given; what is not contiguous is copied
/// first.
macro_rules! views {
    ($($name:ident),+) => { views!($($name: f32),+) };
    ($($name:ident: $kind:ty),+) => {
        $(
            let $name = $name.contiguous()?;
            let $name = $crate::model::ops::cuda::launch::lock(&$name)?;
            let $name = $name.values::<$kind>()?;
        )+
    };
}
pub(super) use views;

/// Room for values, all of which the next kernel writes.
pub(super) fn room<T: DeviceRepr>(gpu: &CudaDevice, count: usize) -> Result<CudaSlice<T>> {
    // SAFETY: the kernels write every value before one is read.
    unsafe { gpu.alloc(count) }
}

/// A tensor of values that no graph knows.
pub(super) fn tensor(values: CudaSlice<f32>, gpu: &CudaDevice, shape: impl Into<Shape>) -> Tensor {
    from_storage(CudaStorage::wrap_cuda_slice(values, gpu.clone()), shape)
}

fn from_storage(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

/// One argument of a kernel.
pub(super) enum Argument<'a> {
    Floats(CudaView<'a, f32>),
    Halves(CudaView<'a, bf16>),
    Words(CudaView<'a, u32>),
    Doubles(CudaView<'a, f64>),
    FloatsOut(CudaViewMut<'a, f32>),
    HalvesOut(CudaViewMut<'a, bf16>),
    WordsOut(CudaViewMut<'a, u32>),
    DoublesOut(CudaViewMut<'a, f64>),
    U32(u32),
    U64(u64),
    F32(f32),
    F64(f64),
}

macro_rules! argument {
    ($($from:ty => $variant:ident $(. $view:ident)?),+ $(,)?) => {
        $(impl<'a> From<$from> for Argument<'a> {
            fn from(value: $from) -> Self {
                Self::$variant(value $(. $view())?)
            }
        })+
    };
}

argument! {
    &'a CudaSlice<f32> => Floats.as_view,
    &'a CudaSlice<bf16> => Halves.as_view,
    &'a CudaSlice<u32> => Words.as_view,
    &'a CudaSlice<f64> => Doubles.as_view,
    CudaView<'a, u32> => Words,
    CudaViewMut<'a, f32> => FloatsOut,
    CudaViewMut<'a, f64> => DoublesOut,
    &'a mut CudaSlice<f32> => FloatsOut.as_view_mut,
    &'a mut CudaSlice<bf16> => HalvesOut.as_view_mut,
    &'a mut CudaSlice<f64> => DoublesOut.as_view_mut,
    &'a mut CudaSlice<u32> => WordsOut.as_view_mut,
    u32 => U32,
    u64 => U64,
    f32 => F32,
    f64 => F64,
}

impl<'a> From<&'a CudaView<'a, f32>> for Argument<'a> {
    fn from(values: &'a CudaView<'a, f32>) -> Self {
        Self::Floats(values.slice(..))
    }
}

impl From<usize> for Argument<'_> {
    fn from(value: usize) -> Self {
        Self::U64(value as u64)
    }
}

impl From<bool> for Argument<'_> {
    fn from(value: bool) -> Self {
        Self::U32(u32::from(value))
    }
}

/// The arguments of a kernel, in its order.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { [$($crate::model::ops::cuda::launch::Argument::from($argument)),*] };
}
pub(super) use arguments;

impl Argument<'_> {
    /// Whether it takes eight bytes, rather than four.
    fn is_long(&self) -> bool {
        !matches!(self, Self::U32(_) | Self::F32(_))
    }
}

/// For each parameter of a kernel whether it takes eight bytes, as the code declares them: `.param .u64 name`.
fn parameters(code: &str, name: &str) -> Option<Vec<bool>> {
    let (_, rest) = code.split_once(&format!(".entry {name}("))?;
    let (list, _) = rest.split_once(')')?;
    list.split(',').map(|parameter| Some(parameter.split_whitespace().nth(1)?.ends_with("64"))).collect()
}

/// Fails unless the arguments have the number and the sizes of the kernel's parameters.
fn check(name: &str, code: &str, arguments: &[Argument<'_>]) -> Result<()> {
    static KNOWN: Mutex<BTreeMap<String, Vec<bool>>> = Mutex::new(BTreeMap::new());
    let Ok(mut known) = KNOWN.lock() else { bail!("{name}: a launch failed before") };
    if !known.contains_key(name) {
        let Some(parameters) = parameters(code, name) else { bail!("there is no kernel {name}") };
        known.insert(name.to_owned(), parameters);
    }
    let found = arguments.iter().map(Argument::is_long);
    match known.get(name) {
        Some(expected) if found.clone().eq(expected.iter().copied()) => Ok(()),
        expected => bail!("{name}: arguments of eight bytes are {:?}, of {expected:?}", found.collect::<Vec<_>>()),
    }
}

/// How the threads of a kernel lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Threads {
    blocks: (usize, usize),
    block: (u32, u32),
}

impl Threads {
    /// Threads of a block where nothing asks for another number.
    const BLOCK: usize = 256;

    /// For lists of this length; longer than some, and a thread gets several of their places.
    pub(super) fn over(count: usize) -> Self {
        Self { blocks: (count.div_ceil(Self::BLOCK).min(1 << 16), 1), block: (Self::BLOCK as u32, 1) }
    }

    /// One block for each of `rows` rows of `width` values.
    pub(super) fn by_row(rows: usize, width: usize) -> Self {
        let threads = width.div_ceil(4).next_multiple_of(32).clamp(32, 1024);
        Self { blocks: (rows, 1), block: (threads as u32, 1) }
    }

    /// For each of `rows` rows one thread a column.
    pub(super) fn by_column(rows: usize, width: usize) -> Self {
        Self { blocks: (rows, width.div_ceil(128)), block: (128, 1) }
    }

    /// One warp a row.
    pub(super) fn warps(rows: usize) -> Self {
        Self { blocks: (rows.div_ceil(4), 1), block: (32, 4) }
    }

    /// Blocks of 32 columns and eight lines, for each of `parts` parts.
    pub(super) fn columns(parts: usize, width: usize) -> Self {
        Self { blocks: (parts, width.div_ceil(32)), block: (32, 8) }
    }

    /// This many blocks.
    pub(super) fn blocks(blocks: usize) -> Self {
        Self { blocks: (blocks, 1), block: (Self::BLOCK as u32, 1) }
    }
}

/// Runs a kernel, if the arguments have its parameters' sizes. That it reaches nothing beyond them is its caller's to see to.
pub(super) fn launch<'a>(
    gpu: &CudaDevice,
    source: Source,
    name: &str,
    Threads { blocks, block }: Threads,
    mut arguments: impl AsMut<[Argument<'a>]>,
) -> Result<()> {
    if blocks.0 == 0 || blocks.1 == 0 {
        return Ok(());
    }
    let grid = (small(blocks.0)?, small(blocks.1)?);
    // The second dimension of a grid is shorter than the first.
    if blocks.0 > i32::MAX as usize || blocks.1 > usize::from(u16::MAX) {
        bail!("{name}: {blocks:?} blocks are more than a GPU takes");
    }
    let (module, code) = source.code();
    check(name, code, arguments.as_mut())?;
    let function = gpu.get_or_load_custom_func(name, module, code)?;
    let mut call = function.builder();
    for argument in arguments.as_mut() {
        match argument {
            Argument::Floats(values) => call.arg(values as &_),
            Argument::Halves(values) => call.arg(values as &_),
            Argument::Words(values) => call.arg(values as &_),
            Argument::Doubles(values) => call.arg(values as &_),
            Argument::FloatsOut(values) => call.arg(values),
            Argument::HalvesOut(values) => call.arg(values),
            Argument::WordsOut(values) => call.arg(values),
            Argument::DoublesOut(values) => call.arg(values),
            Argument::U32(number) => call.arg(number as &_),
            Argument::U64(number) => call.arg(number as &_),
            Argument::F32(number) => call.arg(number as &_),
            Argument::F64(number) => call.arg(number as &_),
        };
    }
    let config = LaunchConfig { grid_dim: (grid.0, grid.1, 1), block_dim: (block.0, block.1, 1), shared_mem_bytes: 0 };
    // SAFETY: see above; the arguments live until the launch is queued, and what they lie in is freed behind it on the
    // same stream.
    unsafe { call.launch(config) }.w()?;
    Ok(())
}

/// A number that kernels take as 32 bits.
pub(super) fn small(number: usize) -> Result<u32> {
    match u32::try_from(number) {
        Ok(number) => Ok(number),
        Err(_) => bail!("{number} is more than a kernel counts to"),
    }
}

/// A factor of a product: row-major matrices below each other, each read as it lies or transposed.
#[derive(Clone, Copy)]
pub(super) struct Matrices<'a, T> {
    values: &'a CudaView<'a, T>,
    /// Of one matrix, as it is read.
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a, T> Matrices<'a, T> {
    /// Matrices of `rows × columns`.
    pub(super) fn new(values: &'a CudaView<'a, T>, rows: usize, columns: usize) -> Self {
        Self { values, rows, columns, transposed: false }
    }

    pub(super) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, transposed: !self.transposed, ..self }
    }

    /// The length of a row as it lies, and how cuBLAS, to which rows are columns, is to read it.
    fn lying(&self) -> (usize, blas::cublasOperation_t) {
        match self.transposed {
            false => (self.columns, blas::cublasOperation_t::CUBLAS_OP_N),
            true => (self.rows, blas::cublasOperation_t::CUBLAS_OP_T),
        }
    }
}

/// `onto · out + factor · left right` for each of `count` matrices, sums in f32. `onto` is 0 or 1.
pub(super) fn multiply<T: Element, O: Element>(
    gpu: &CudaDevice,
    out: &mut CudaViewMut<'_, O>,
    count: usize,
    left: Matrices<'_, T>,
    right: Matrices<'_, T>,
    factor: f32,
    onto: f32,
) -> Result<()> {
    let (m, k, n) = (left.rows, left.columns, right.columns);
    let fits = right.rows == k
        && left.values.len() == count * m * k
        && right.values.len() == count * k * n
        && out.len() == count * m * n;
    if !fits {
        bail!("a product of {count} matrices: [{m}, {k}] by [{}, {n}], {} values", right.rows, out.len());
    }
    if count * m * n == 0 {
        return Ok(());
    }
    if k == 0 {
        bail!("a product of empty rows");
    }
    let int = |number: usize| match i32::try_from(number) {
        Ok(number) => Ok(number),
        Err(_) => bail!("a matrix of {number} rows or columns is more than cuBLAS takes"),
    };
    let ((left_row, left_as), (right_row, right_as)) = (left.lying(), right.lying());
    let (stream, handle) = (gpu.cuda_stream(), gpu.cublas_handle());
    let alpha: *const f32 = &factor;
    let beta: *const f32 = &onto;
    let (a, _a) = right.values.device_ptr(&stream);
    let (b, _b) = left.values.device_ptr(&stream);
    let (c, _c) = out.device_ptr_mut(&stream);
    // SAFETY: the extents were checked above. Row-major matrices are cuBLAS's transposed ones, so right goes before left.
    unsafe {
        cublas::gemm_strided_batched_ex(
            *handle.handle(),
            right_as,
            left_as,
            int(n)?,
            int(m)?,
            int(k)?,
            alpha.cast::<c_void>(),
            a as *const c_void,
            T::KIND,
            int(right_row)?,
            (k * n) as i64,
            b as *const c_void,
            T::KIND,
            int(left_row)?,
            (m * k) as i64,
            beta.cast::<c_void>(),
            c as *mut c_void,
            O::KIND,
            int(n)?,
            (m * n) as i64,
            int(count)?,
            blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .w()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_from_the_code() {
        let code = ".visible .entry rms(\n\t.param .u64 a\n)\n{ ret; }\n.visible .entry norm(\n\t.param .u64 .ptr .align 1 \
                    norm_param_0,\n\t.param .u32 norm_param_1,\n\t.param .f32 norm_param_2,\n\t.param .f64 x\n)\n{ ret; }";
        assert_eq!(parameters(code, "norm"), Some(vec![true, false, false, true]));
        assert_eq!(parameters(code, "rms"), Some(vec![true]));
        assert_eq!(parameters(code, "or"), None);
        assert!(check("rms", code, &[Argument::U64(1)]).is_ok());
        assert!(check("rms", code, &[Argument::U32(1)]).is_err());
        assert!(check("rms", code, &[Argument::U64(1), Argument::U64(1)]).is_err());
    }
}
