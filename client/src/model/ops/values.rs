//! Access to the numbers of a tensor on the processor.

use candle_core::{CpuStorage, Layout as Strides, Result, Storage, Tensor, bail};

use crate::model::batch::Layout;

/// The values of a contiguous f32 tensor.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Strides) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("expected f32 values") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("expected a contiguous tensor of shape {:?}", layout.shape()),
    }
}

/// Calls `f` with the values of a tensor on the processor. A tensor that is not contiguous is copied first.
///
/// # Errors
/// The tensor is elsewhere or not f32.
pub(crate) fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(slice(storage, layout)?),
        _ => bail!("expected a tensor on the processor"),
    }
}

/// Cuts a matrix into the rows of each sequence.
pub(super) fn split<'a>(mut values: &'a mut [f32], layout: &Layout, width: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(layout.sequences());
    let mut at = 0;
    for sequence in 0..layout.sequences() {
        let span = layout.span(sequence);
        let (_, rest) = values.split_at_mut((span.start - at) * width);
        let (part, rest) = rest.split_at_mut(span.len() * width);
        parts.push(part);
        (values, at) = (rest, span.end);
    }
    parts
}
