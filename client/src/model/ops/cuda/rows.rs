//! What takes rows of matrices apart and together: tables, means, positions.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, Tensor, bail};

use super::launch::{Source, Threads, arguments, gpu, launch, room, small, tensor, views};
use super::node::node;
use super::norm::column_sums;
use crate::model::batch::Layout;
use crate::model::ops::sequence::Sequence;
use crate::model::ops::{Indices, Rotation, Tape};

/// Rows that one piece of a sum has at most, so that a row that is used often is added up by many blocks.
const PIECE: usize = 32;

/// The order in which rows of a gradient go to the rows of a table.
struct Scatter {
    /// Rows of the gradient, by the row of the table that they go to.
    order: Vec<u32>,
    /// Where in the order each piece begins, and the end.
    starts: Vec<u32>,
    /// The rows of the table that get something, ascending.
    rows: Vec<u32>,
    /// For each of them its first piece, and the end.
    pieces: Vec<u32>,
}

impl Scatter {
    fn of(ids: &[u32]) -> Result<Self> {
        let mut order: Vec<u32> = (0..small(ids.len())?).collect();
        order.sort_by_key(|place| ids[*place as usize]);
        let (mut starts, mut rows, mut pieces) = (Vec::new(), Vec::new(), Vec::new());
        let mut at = 0;
        for run in order.chunk_by(|a, b| ids[*a as usize] == ids[*b as usize]) {
            rows.extend(run.first().map(|place| ids[*place as usize]));
            pieces.push(starts.len() as u32);
            starts.extend((0..run.len()).step_by(PIECE).map(|first| at + first as u32));
            at += run.len() as u32;
        }
        pieces.push(starts.len() as u32);
        starts.push(at);
        Ok(Self { order, starts, rows, pieces })
    }
}

/// The sum of those rows of g `[tokens, width]` that go to each row of a table `[entries, width]`.
fn scatter(g: &Tensor, ids: &[u32], entries: usize) -> Result<Tensor> {
    let ((rows, width), device) = (g.dims2()?, gpu(g)?);
    if rows != ids.len() || ids.iter().any(|id| *id as usize >= entries) {
        bail!("scatter: {rows} rows and {} indices into a table of {entries}", ids.len());
    }
    let mut table = device.alloc_zeros::<f32>(entries * width)?;
    let Scatter { order, starts, rows, pieces } = Scatter::of(ids)?;
    if rows.is_empty() || width == 0 {
        return Ok(tensor(table, device, (entries, width)));
    }
    // One upload for the four lists.
    let lists = device.clone_htod(&[order.as_slice(), &starts, &rows, &pieces].concat())?;
    let (order_list, rest) = lists.split_at(order.len());
    let (start_list, rest) = rest.split_at(starts.len());
    let (row_list, piece_list) = rest.split_at(rows.len());
    let (count, width_number) = (starts.len() - 1, small(width)?);
    let mut parts = room::<f32>(device, count * width)?;
    views!(g);
    let arguments = arguments![&g, order_list, start_list, &mut parts, width_number];
    launch(device, Source::Rows, "scatter_parts", Threads::by_column(count, width), arguments)?;
    let arguments = arguments![&parts, row_list, piece_list, &mut table, width_number];
    launch(device, Source::Rows, "scatter_rows", Threads::by_column(rows.len(), width), arguments)?;
    Ok(tensor(table, device, (entries, width)))
}

pub(crate) fn pick_rows(tape: &Tape, x: &Tensor, rows: Vec<u32>) -> Result<Tensor> {
    let ((entries, width), device) = (x.dims2()?, gpu(x)?);
    if rows.iter().any(|row| *row as usize >= entries) {
        bail!("pick rows: a row outside a matrix of {entries}");
    }
    let count = rows.len() * width;
    let mut out = room(device, count)?;
    if count > 0 {
        let list = device.clone_htod(&rows)?;
        views!(x);
        let arguments = arguments![&x, &list, &mut out, count, small(width)?];
        launch(device, Source::Rows, "gather", Threads::over(count), arguments)?;
    }
    node(tape, "pick-rows", &[x], out, (rows.len(), width), move |g| Ok(vec![Some(scatter(g, &rows, entries)?)]))
}

pub(crate) fn embed(
    tape: &Tape,
    words: &Tensor,
    positions: &Tensor,
    types: &Tensor,
    indices: Indices,
) -> Result<Tensor> {
    let (tables, device) = ([words, positions, types], gpu(words)?);
    let (width, tokens) = (words.dims2()?.1, indices.words.len());
    let lists = [indices.words, indices.positions, indices.types];
    for (table, list) in tables.iter().zip(&lists) {
        let (entries, table_width) = table.dims2()?;
        if table_width != width || list.len() != tokens || list.iter().any(|i| *i as usize >= entries) {
            bail!("embed: a table [{entries}, {table_width}] does not fit its {} indices", list.len());
        }
    }
    let count = tokens * width;
    let mut out = room(device, count)?;
    if count > 0 {
        let ids = device.clone_htod(&lists.concat())?;
        views!(words, positions, types);
        let arguments = arguments![&words, &positions, &types, &ids, &mut out, count, small(width)?];
        launch(device, Source::Rows, "embed", Threads::over(count), arguments)?;
    }
    let mut entries = [None; 3];
    for (entries, table) in entries.iter_mut().zip(tables) {
        *entries = table.track_op().then(|| table.dim(0)).transpose()?;
    }
    node(tape, "embed", &tables, out, (tokens, width), move |g| {
        lists
            .iter()
            .zip(entries)
            .map(|(list, entries)| entries.map(|rows| scatter(g, list, rows)).transpose())
            .collect()
    })
}

pub(crate) fn mean_rows(tape: &Tape, x: &Tensor, layout: &Layout) -> Result<Tensor> {
    let ((rows, width), device, sequences) = (x.dims2()?, gpu(x)?, layout.sequences());
    if rows != layout.rows() {
        bail!("mean rows: {rows} rows, and {} in the batch", layout.rows());
    }
    let mut spans = Vec::with_capacity(2 * sequences);
    for span in (0..sequences).map(|sequence| layout.span(sequence)) {
        spans.extend([small(span.start)?, small(span.len())?]);
    }
    let (spans, threads) = (device.clone_htod(&spans)?, Threads::by_column(sequences, width));
    let (mut out, number) = (room(device, sequences * width)?, small(width)?);
    {
        views!(x);
        launch(device, Source::Rows, "mean_rows", threads, arguments![&x, &spans, &mut out, number])?;
    }
    node(tape, "mean-rows", &[x], out, (sequences, width), move |g| {
        let device = gpu(g)?;
        // Rows of padding get nothing.
        let mut dx = device.alloc_zeros::<f32>(rows * width)?;
        views!(g);
        launch(device, Source::Rows, "mean_rows_back", threads, arguments![&g, &spans, &mut dx, number])?;
        Ok(vec![Some(tensor(dx, device, (rows, width)))])
    })
}

/// Every row of a padded batch turned by the angles of its place, times `direction`.
fn turned(x: &Tensor, angles: &[Tensor; 2], depth: usize, length: usize, direction: f32) -> Result<CudaSlice<f32>> {
    let ((_, width), device, count) = (x.dims2()?, gpu(x)?, x.elem_count() / 2);
    let mut out = room(device, 2 * count)?;
    let [cosines, sines] = angles;
    views!(x, cosines, sines);
    let (width, half, length) = (small(width)?, small(depth / 2)?, small(length)?);
    let arguments = arguments![&x, &cosines, &sines, &mut out, count, width, half, length, direction];
    launch(device, Source::Rows, "rotary", Threads::over(count), arguments)?;
    Ok(out)
}

pub(crate) fn rotary(tape: &Tape, x: &Tensor, rotation: &Rotation, layout: &Layout) -> Result<Tensor> {
    rotation.check(x.shape(), layout)?;
    if !layout.is_padded() {
        bail!("rotary positions on this device need a padded batch");
    }
    let (angles, depth, length) = (rotation.on(x.device())?, rotation.depth(), layout.width());
    let out = turned(x, &angles, depth, length, 1.0)?;
    node(tape, "rotary", &[x], out, x.shape(), move |g| {
        Ok(vec![Some(tensor(turned(g, &angles, depth, length, -1.0)?, gpu(g)?, g.shape()))])
    })
}

pub(crate) fn sequence(
    tape: &Tape,
    patches: &Tensor,
    first: &Tensor,
    positions: &Tensor,
    op: &Sequence,
) -> Result<Tensor> {
    let (images, width) = op.check(patches.shape(), first.shape(), positions.shape())?;
    let (device, length) = (gpu(patches)?, op.patches + 1);
    let (count, numbers) = (images * length * width, [small(width)?, small(length)?]);
    let mut out = room(device, count)?;
    {
        views!(patches, first, positions);
        let arguments = arguments![&patches, &first, &positions, &mut out, count, numbers[0], numbers[1]];
        launch(device, Source::Rows, "sequence", Threads::over(count), arguments)?;
    }
    let arguments = [patches, first, positions];
    let wanted = arguments.map(|argument| argument.track_op());
    let shapes = arguments.map(|argument| argument.shape().clone());
    node(tape, "sequence", &arguments, out, (images * length, width), move |g| {
        let device = gpu(g)?;
        let d_patches = if wanted[0] {
            let count = images * (length - 1) * width;
            let mut out = room(device, count)?;
            views!(g);
            let arguments = arguments![&g, &mut out, count, numbers[0], numbers[1]];
            launch(device, Source::Rows, "behind_first", Threads::over(count), arguments)?;
            Some(tensor(out, device, &shapes[0]))
        } else {
            None
        };
        if !wanted[1] && !wanted[2] {
            return Ok(vec![d_patches, None, None]);
        }
        let sums = column_sums(&g.reshape((images, length * width))?)?;
        let d_first = wanted[1].then(|| sums.narrow(0, 0, width)?.contiguous()?.reshape(&shapes[1])).transpose()?;
        let d_positions = wanted[2].then(|| sums.reshape(&shapes[2])).transpose()?;
        Ok(vec![d_patches, d_first, d_positions])
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_scatter_lists_every_row_once_by_where_it_goes() {
        let mut ids: Vec<u32> = vec![8, 0, 3, 3, 3];
        ids.extend([5; 70]);
        let Scatter { order, starts, rows, pieces } = Scatter::of(&ids).unwrap();
        assert_eq!(rows, [0, 3, 5, 8]);
        assert_eq!(order[..4], [1, 2, 3, 4]);
        assert_eq!((order.len(), starts.last()), (75, Some(&75)));
        assert_eq!(pieces, [0, 1, 2, 5, 6]);
        for (row, pieces) in rows.iter().zip(pieces.windows(2)) {
            let of = starts[pieces[0] as usize] as usize..starts[pieces[1] as usize] as usize;
            assert!(order[of].iter().all(|place| ids[*place as usize] == *row), "{row}");
        }
        let sizes = starts.windows(2).map(|piece| piece[1] - piece[0]);
        assert!(sizes.clone().all(|size| (1..=PIECE as u32).contains(&size)));
    }
}
