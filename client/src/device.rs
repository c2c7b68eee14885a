//! Opening the device that a site configured.

use candle_core::Device;
use fedtune_config::site::{Device as DeviceConfig, DeviceKind};

/// A device that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program was built without CUDA.
    #[error(
        "device.kind is \"cuda\", and this program was built without CUDA; use a fedtune-client built with \
         `--features cuda`, or set device.kind = \"cpu\""
    )]
    NotBuilt,
    /// No such GPU, or its driver does not answer.
    #[error(
        "the CUDA device {index} cannot be opened: {reason}; check `nvidia-smi`, the driver and device.index, or set \
         device.kind = \"cpu\""
    )]
    Absent {
        /// Which GPU.
        index: usize,
        /// What the driver says.
        reason: String,
    },
    /// The pool was already started with another number of threads.
    #[error("device.threads is {wanted}, and this process already computes with {running}; restart it to change that")]
    Threads {
        /// What was asked for.
        wanted: usize,
        /// What runs.
        running: usize,
    },
}

/// Opens the device. On the first call this starts the pool that computes on the processor, with `threads` threads (0
/// for one per core); the pool lasts as long as the process.
///
/// # Errors
/// CUDA is asked for and the program lacks it or no such GPU answers, or the pool runs with another size.
pub fn open(config: &DeviceConfig) -> Result<Device, DeviceError> {
    let wanted = match config.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    if rayon::ThreadPoolBuilder::new().num_threads(wanted).build_global().is_err() {
        // Somebody was first: an earlier call, or a program that embeds this library.
        let running = rayon::current_num_threads();
        if config.threads != 0 && running != wanted {
            return Err(DeviceError::Threads { wanted, running });
        }
    }
    match config.kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda if !candle_core::utils::cuda_is_available() => Err(DeviceError::NotBuilt),
        DeviceKind::Cuda => {
            open_gpu(config.index).map_err(|e| DeviceError::Absent { index: config.index, reason: e.to_string() })
        }
    }
}

#[cfg(feature = "cuda")]
use crate::model::ops::cuda::open as open_gpu;

/// Never reached: the program was built without CUDA.
#[cfg(not(feature = "cuda"))]
fn open_gpu(index: usize) -> candle_core::Result<Device> {
    Device::new_cuda(index)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_processor_opens_and_cuda_says_what_is_missing() {
        let cpu = DeviceConfig { threads: 0, ..DeviceConfig::default() };
        assert!(open(&cpu).unwrap().is_cpu());
        if !candle_core::utils::cuda_is_available() {
            let cuda = DeviceConfig { kind: DeviceKind::Cuda, ..cpu };
            assert!(open(&cuda).unwrap_err().to_string().contains("--features cuda"));
        }
    }
}
