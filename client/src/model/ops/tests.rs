//! Every fused operation against its composed form, values and gradients: on the processor, and on an NVIDIA GPU where the
//! program is built with CUDA and one answers.
#![expect(clippy::unwrap_used, reason = "tests")]

use candle_core::{Device, Result, Tensor, Var};
use candle_transformers::models::bert::HiddenAct;
use fedtune_config::job::Precision;

use super::dropout::DropoutStream;
use super::{Dropout, Grid, Heads, Indices, Loss, Normalise, Rotation, Scope, Tape, Window, composed};
use crate::model::batch::Layout;

/// The GPU that the kernels are tested on.
#[cfg(feature = "cuda")]
fn gpu() -> Option<&'static Device> {
    static GPU: std::sync::OnceLock<Option<Device>> = std::sync::OnceLock::new();
    let open =
        || super::cuda::open(0).inspect_err(|e| eprintln!("the CUDA kernels are NOT tested, no GPU answers: {e}"));
    GPU.get_or_init(|| open().ok()).as_ref()
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Option<&'static Device> {
    None
}

/// Where tests run: on the processor, and on that GPU.
pub(crate) fn devices() -> impl Iterator<Item = &'static Device> {
    std::iter::once(&Device::Cpu).chain(gpu())
}

/// A variable of the same values.
fn on(device: &Device, var: &Tensor) -> Var {
    Var::from_tensor(&var.detach().to_device(device).unwrap()).unwrap()
}

fn random(shape: &[usize], seed: u64) -> Var {
    let values = crate::model::initial::normal(seed, "test", shape.iter().product(), 1.0);
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

fn dropout(probability: f64) -> Option<Dropout> {
    DropoutStream { probability, seed: 1, round: 1, step: 1 }.at(3)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn assert_near(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (values(found), values(expected));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let size = norm(&mut expected.iter().copied());
    let distance = norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
    assert!(distance <= 1e-4 * size + 1e-6, "{what}: distance {distance}, size {size}");
}

/// Compares two forms of one function, and their gradients under a random weighting of the result.
fn compare(
    what: &str,
    arguments: &[Var],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let tensors = |vars: &[Var]| vars.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>();
    let expected = composed(&tensors(arguments)).unwrap();
    let weights = random(expected.dims(), 99).as_detached_tensor();
    let gradients = |result: &Tensor| {
        let weights = weights.to_device(result.device()).unwrap();
        (result * weights).unwrap().sum_all().unwrap().backward().unwrap()
    };
    let expected_gradients = gradients(&expected);
    for device in devices() {
        let what = format!("{what} on {:?}", device.location());
        let vars: Vec<Var> = arguments.iter().map(|var| on(device, var)).collect();
        let found = fused(&tensors(&vars)).unwrap();
        assert_near(&what, &found, &expected);
        let found = gradients(&found);
        for (i, (var, argument)) in vars.iter().zip(arguments).enumerate() {
            let expected = expected_gradients.get(argument).unwrap();
            assert_near(&format!("{what}, gradient {i}"), found.get(var).unwrap(), expected);
        }
    }
}

#[test]
fn linear_agrees() {
    for (rows, inner, outer) in [(1, 3, 2), (37, 20, 150), (300, 64, 129)] {
        let arguments = [random(&[rows, inner], 1), random(&[outer, inner], 2), random(&[outer], 3)];
        for count in [2, 3] {
            compare(
                "linear",
                &arguments[..count],
                |t| super::linear(&Tape::default(), &t[0], &t[1], t.get(2)),
                |t| composed::linear(&t[0], &t[1], t.get(2)),
            );
        }
    }
}

#[test]
fn layer_norm_agrees() {
    for (rows, width) in [(1, 4), (70, 33), (65, 384)] {
        let arguments = [random(&[rows, width], 1), random(&[width], 2), random(&[width], 3)];
        for count in [2, 3] {
            compare(
                "layer norm",
                &arguments[..count],
                |t| super::layer_norm(&Tape::default(), &t[0], &t[1], t.get(2), 1e-12),
                |t| composed::layer_norm(&t[0], &t[1], t.get(2), 1e-12),
            );
        }
    }
}

#[test]
fn activations_agree() {
    let arguments = [Var::from_tensor(&(random(&[300, 70], 1).as_tensor() * 3.0).unwrap()).unwrap()];
    for kind in [HiddenAct::Gelu, HiddenAct::GeluApproximate, HiddenAct::Relu] {
        let what = format!("{kind:?}");
        compare(
            &what,
            &arguments,
            |t| super::activation(&Tape::default(), &t[0], kind),
            |t| composed::activation(&t[0], kind),
        );
    }
    for kind in [HiddenAct::Gelu, HiddenAct::GeluApproximate, HiddenAct::Relu] {
        compare(
            &format!("gated {kind:?}"),
            &arguments,
            |t| super::gated(&Tape::default(), &t[0], kind),
            |t| composed::gated(&t[0], kind),
        );
    }
    assert!(super::gated(&Tape::default(), random(&[2, 3], 1).as_tensor(), HiddenAct::Gelu).is_err());
    compare("tanh", &arguments, |t| super::tanh(&Tape::default(), &t[0]), |t| t[0].tanh());
}

#[test]
fn picked_rows_agree() {
    let arguments = [random(&[9, 6], 1)];
    let rows = Tensor::new(&[7u32, 0, 3, 7], &Device::Cpu).unwrap();
    compare(
        "pick rows",
        &arguments,
        |t| super::pick_rows(&Tape::default(), &t[0], vec![7, 0, 3, 7]),
        |t| t[0].index_select(&rows, 0),
    );
    assert!(super::pick_rows(&Tape::default(), arguments[0].as_tensor(), vec![9]).is_err());
}

#[test]
fn the_tape_adds_up_what_a_tensor_gets_from_several_places() {
    for device in devices() {
        let (x, y) = (on(device, &random(&[5, 4], 1)), on(device, &random(&[5, 4], 2)));
        let tape = Tape::default();
        let sum = super::residual(&tape, x.as_tensor(), y.as_tensor(), None).unwrap();
        let twice = super::residual(&tape, &sum, x.as_tensor(), dropout(0.3)).unwrap();
        let thrice = super::residual(&tape, &twice, &sum, None).unwrap();
        let loss = super::cross_entropy(&tape, &thrice, &[0, 1, 2, 3, 0], &Loss::default()).unwrap();
        let expected = loss.backward().unwrap();
        let mut found = tape.backward(&loss).unwrap();
        for var in [&x, &y] {
            assert_near("tape", &found.remove(var).unwrap(), expected.get(var).unwrap());
        }
    }
}

#[test]
fn a_layer_is_computed_again_in_the_backward_pass_and_not_kept() {
    for device in devices() {
        let (x, weight) = (on(device, &random(&[5, 4], 1)), on(device, &random(&[4, 4], 2)));
        let labels = [0, 1, 2, 3, 0];
        let layer = |tape: &Tape, x: &Tensor, weight: &Tensor| {
            super::activation(tape, &super::linear(tape, x, weight, None)?, HiddenAct::Gelu)
        };
        let tape = Tape::default();
        let out = layer(&tape, x.as_tensor(), weight.as_tensor()).unwrap();
        let loss = super::cross_entropy(&tape, &out, &labels, &Loss::default()).unwrap();
        let mut expected = tape.backward(&loss).unwrap();

        let (tape, calls) = (Tape::default(), std::cell::RefCell::new(Vec::new()));
        let quiet = layer(&tape, &x.as_detached_tensor(), &weight.as_detached_tensor()).unwrap();
        let out = tape.layer(7, x.as_tensor(), &quiet).unwrap();
        assert!(out.is_variable());
        let loss = super::cross_entropy(&tape, &out, &labels, &Loss::default()).unwrap();
        let again = |number: usize, x: &Tensor| {
            calls.borrow_mut().push(number);
            let tape = Tape::default();
            Ok((layer(&tape, x, weight.as_tensor())?, tape))
        };
        let mut found = tape.backward_through(&loss, &again).unwrap();
        assert_eq!(*calls.borrow(), [7]);
        for var in [&x, &weight] {
            assert_eq!(values(&found.remove(var).unwrap()), values(&expected.remove(var).unwrap()));
        }
    }
}

#[test]
fn dropout_and_residual_agree() {
    let arguments = [random(&[70, 65], 1), random(&[70, 65], 2)];
    for mask in [None, dropout(0.3)] {
        compare(
            "residual",
            &arguments,
            |t| super::residual(&Tape::default(), &t[0], &t[1], mask),
            |t| composed::dropout(&t[0], mask)?.add(&t[1]),
        );
        compare(
            "dropout",
            &arguments[..1],
            |t| super::dropout(&Tape::default(), &t[0], mask),
            |t| composed::dropout(&t[0], mask),
        );
    }
}

/// The rows that belong to a sequence; results for padding are unspecified, and left out of comparisons.
fn real(layout: &Layout) -> Tensor {
    let rows: Vec<u32> = (0..layout.sequences()).flat_map(|s| layout.span(s)).map(|row| row as u32).collect();
    Tensor::new(rows.as_slice(), &Device::Cpu).unwrap()
}

#[test]
fn attention_agrees_with_and_without_dropout_and_window() {
    let heads = [Heads::equal(3), Heads { queries: 3, keys: 1 }, Heads { queries: 6, keys: 2 }];
    // The last is cut into several blocks of queries where there is a window or an order.
    for (lengths, windows, heads) in [
        (vec![5, 5], [None, Some(0), Some(100)], heads[0]),
        (vec![4, 1, 7], [None, Some(1), Some(2)], heads[1]),
        (vec![150, 66], [None, Some(3), Some(70)], heads[2]),
    ] {
        let layout = Layout::padded(&lengths);
        let single = Layout::packed(&vec![1; lengths.len()]);
        let scopes = [&layout, &single].into_iter().flat_map(|queries| windows.map(|w| (queries, w)));
        for ((queries, window), causal) in scopes.flat_map(|scope| [(scope, false), (scope, true)]) {
            let arguments = [
                random(&[queries.rows(), heads.queries * 4], 1),
                random(&[layout.rows(), heads.keys * 4], 2),
                random(&[layout.rows(), heads.keys * 4], 3),
            ];
            let real = real(queries);
            let scope = Scope { queries, keys: &layout, window, causal };
            for mask in [None, dropout(0.2)] {
                compare(
                    &format!("attention of {lengths:?} in {window:?}, causal: {causal}"),
                    &arguments,
                    |t| {
                        let out = super::attention(&Tape::default(), &t[0], &t[1], &t[2], heads, scope, mask)?;
                        out.index_select(&real.to_device(out.device())?, 0)
                    },
                    |t| composed::attention(&t[0], &t[1], &t[2], heads, scope, mask)?.index_select(&real, 0),
                );
            }
        }
    }
}

#[test]
fn causal_attention_does_not_see_what_comes_later() {
    let (layout, heads) = (Layout::packed(&[100]), Heads { queries: 2, keys: 1 });
    let scope = Scope { queries: &layout, keys: &layout, window: None, causal: true };
    let (q, k, v) = (random(&[100, 8], 1), random(&[100, 4], 2), random(&[100, 4], 3));
    let run = |k: &Tensor, v: &Tensor| super::attention(&Tape::default(), &q, k, v, heads, scope, None).unwrap();
    let later = |x: &Tensor| Tensor::cat(&[&x.narrow(0, 0, 70).unwrap(), &random(&[30, 4], 9)], 0).unwrap();
    let (all, changed) = (values(&run(&k, &v)), values(&run(&later(&k), &later(&v))));
    assert_eq!(all[..70 * 8], changed[..70 * 8]);
    assert_ne!(all[70 * 8..71 * 8], changed[70 * 8..71 * 8]);
    // The first sees itself alone.
    let first = values(&v.narrow(0, 0, 1).unwrap());
    assert!(all[..4].iter().zip(&first).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn attention_refuses_heads_that_do_not_fit() {
    let layout = Layout::packed(&[3]);
    let scope = Scope { queries: &layout, keys: &layout, window: None, causal: false };
    let (q, k) = (random(&[3, 12], 1), random(&[3, 8], 2));
    for (queries, keys) in [(3, 2), (0, 0), (3, 0), (6, 2), (2, 2)] {
        let heads = Heads { queries, keys };
        assert!(super::attention(&Tape::default(), &q, &k, &k, heads, scope, None).is_err(), "{heads:?}");
        assert!(composed::attention(&q, &k, &k, heads, scope, None).is_err(), "{heads:?}");
    }
}

#[test]
fn rms_norm_agrees_for_rows_and_for_heads() {
    for (rows, width, run) in [(1, 4, 4), (70, 33, 33), (65, 384, 384), (300, 96, 32), (7, 12, 2)] {
        compare(
            "rms norm",
            &[random(&[rows, width], 1), random(&[run], 2)],
            |t| super::rms_norm(&Tape::default(), &t[0], &t[1], 1e-6),
            |t| composed::rms_norm(&t[0], &t[1], 1e-6),
        );
    }
    assert!(super::rms_norm(&Tape::default(), &random(&[3, 5], 1), &random(&[2], 2), 1e-6).is_err());
}

#[test]
fn swiglu_agrees() {
    let gate = Var::from_tensor(&(random(&[300, 70], 1).as_tensor() * 30.0).unwrap()).unwrap();
    compare(
        "swiglu",
        &[gate, random(&[300, 70], 2)],
        |t| super::swiglu(&Tape::default(), &t[0], &t[1]),
        |t| composed::swiglu(&t[0], &t[1]),
    );
    assert!(super::swiglu(&Tape::default(), &random(&[3, 5], 1), &random(&[3, 4], 2)).is_err());
}

#[test]
fn rotary_positions_agree_and_depend_on_distances_only() {
    let (rotation, layout) = (Rotation::new(50.0, 6, 9), Layout::padded(&[4, 1, 9]));
    let real = real(&layout);
    compare(
        "rotary",
        &[random(&[layout.rows(), 12], 1)],
        |t| {
            let out = super::rotary(&Tape::default(), &t[0], &rotation, &layout)?;
            out.index_select(&real.to_device(out.device())?, 0)
        },
        |t| composed::rotary(&t[0], &rotation, &layout)?.index_select(&real, 0),
    );
    let short = Layout::packed(&[10]);
    assert!(super::rotary(&Tape::default(), random(&[10, 12], 1).as_tensor(), &rotation, &short).is_err());

    // One vector at every position: products of rotated vectors are those of equal distances.
    let one = random(&[1, 6], 1).as_detached_tensor().broadcast_as((9, 6)).unwrap().contiguous().unwrap();
    let turned = super::rotary(&Tape::default(), &one, &rotation, &Layout::packed(&[9])).unwrap();
    let products = values(&turned.matmul(&turned.t().unwrap()).unwrap());
    assert!((products[3] - products[5 * 9 + 8]).abs() < 1e-5);
    assert!((products[3] - products[0]).abs() > 1e-2);
}

#[test]
fn means_of_rows_agree() {
    for layout in [Layout::padded(&[4, 1, 7]), Layout::packed(&[4, 1, 7])] {
        compare(
            "mean rows",
            &[random(&[layout.rows(), 5], 1)],
            |t| super::mean_rows(&Tape::default(), &t[0], &layout),
            |t| composed::mean_rows(&t[0], &layout),
        );
    }
    assert!(super::mean_rows(&Tape::default(), random(&[3, 5], 1).as_tensor(), &Layout::packed(&[4])).is_err());
}

#[test]
fn masks_are_the_same_bits_on_every_device() {
    // Rows that end inside a block of draws, at its end, and behind it.
    for (width, mask) in [1, 63, 64, 65, 700].into_iter().flat_map(|width| [(width, 0.1), (width, 0.5)]) {
        let mask = dropout(mask).unwrap();
        for device in devices() {
            let ones = Tensor::ones((37, width), candle_core::DType::F32, device).unwrap();
            let drawn = super::dropout(&Tape::default(), &ones, Some(mask)).unwrap();
            assert_eq!(drawn.flatten_all().unwrap().to_vec1::<f32>().unwrap(), mask.matrix(37, width), "{width}");
        }
    }
}

#[test]
fn a_table_of_which_one_row_is_used_often_gets_the_whole_gradient() {
    let rows: Vec<u32> = (0..1000).map(|i| if i % 3 == 0 { 0 } else { i % 50 }).collect();
    let indices = Tensor::new(rows.as_slice(), &Device::Cpu).unwrap();
    compare(
        "pick rows",
        &[random(&[60, 131], 1)],
        |t| super::pick_rows(&Tape::default(), &t[0], rows.clone()),
        |t| t[0].index_select(&indices, 0),
    );
}

/// Rounding the inputs of a product to bf16 changes its result by less than a hundredth.
#[test]
fn products_in_bf16_are_near_those_in_f32() {
    let near = |found: &Tensor, expected: &Tensor| {
        let (found, expected) = (values(found), values(expected));
        let distance: f64 = found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum();
        let size: f64 = expected.iter().map(|x| x * x).sum();
        assert!(distance > 0.0 && distance <= 1e-4 * size, "{distance} of {size}");
    };
    for device in devices() {
        let [x, weight, bias] = [random(&[40, 64], 1), random(&[96, 64], 2), random(&[96], 3)].map(|v| on(device, &v));
        let labels: Vec<u32> = (0..40).collect();
        let run = |precision| {
            let tape = Tape::new(precision);
            let out = super::linear(&tape, &x, &weight, Some(bias.as_tensor())).unwrap();
            let loss = super::words_loss(&tape, &out, &on(device, &random(&[150, 96], 4)), &labels, &Loss::default());
            let loss = loss.unwrap();
            (out, tape.backward(&loss).unwrap())
        };
        let ((out, mut exact), (rounded_out, mut rounded)) = (run(Precision::F32), run(Precision::Bf16));
        near(&rounded_out, &out);
        for var in [&x, &weight] {
            let (exact, rounded) = (exact.remove(var).unwrap(), rounded.remove(var).unwrap());
            near(&rounded, &exact);
        }
    }
}

#[test]
fn adapters_agree() {
    let arguments = [random(&[30, 20], 1), random(&[30, 12], 2), random(&[4, 12], 3)];
    let up = random(&[20, 4], 4);
    compare(
        "low rank",
        &arguments,
        |t| super::low_rank(&Tape::default(), &t[0], &t[1], (&t[2], &on(t[0].device(), &up)), 0.5),
        |t| composed::add_low_rank(&t[0], &composed::linear(&t[1], &t[2], None)?, &up, 0.5),
    );
    let arguments = [random(&[30, 20], 1), random(&[30, 4], 2), random(&[20, 4], 3)];
    let down = Tensor::eye(4, candle_core::DType::F32, &Device::Cpu).unwrap();
    compare(
        "low rank, its second matrix",
        &arguments,
        |t| super::low_rank(&Tape::default(), &t[0], &t[1], (&down.to_device(t[0].device())?, &t[2]), 0.5),
        |t| composed::add_low_rank(&t[0], &t[1], &t[2], 0.5),
    );
}

#[test]
fn embeddings_agree() {
    let arguments = [random(&[9, 6], 1), random(&[5, 6], 2), random(&[2, 6], 3)];
    let indices = Indices { words: vec![8, 0, 3, 3, 3], positions: vec![0, 1, 2, 0, 1], types: vec![0, 0, 1, 1, 0] };
    compare(
        "embed",
        &arguments,
        |t| super::embed(&Tape::default(), &t[0], &t[1], &t[2], indices.clone()),
        |t| composed::embed(&t[0], &t[1], &t[2], &indices),
    );
    let outside = Indices { words: vec![9; 5], ..indices };
    let tensors: Vec<&Tensor> = arguments.iter().map(|var| var.as_tensor()).collect();
    assert!(super::embed(&Tape::default(), tensors[0], tensors[1], tensors[2], outside).is_err());
}

/// Side, stride and padding of a window.
type Sides = (usize, usize, usize);

/// Windows of every kind that networks use, over images that they fit with and without a rest.
const WINDOWS: [(Sides, (usize, usize)); 7] = [
    ((1, 1, 0), (3, 4)),
    ((1, 2, 0), (5, 4)),
    ((3, 1, 1), (5, 6)),
    ((3, 1, 1), (1, 2)),
    ((3, 2, 1), (7, 6)),
    ((7, 2, 3), (9, 8)),
    ((4, 4, 0), (8, 12)),
];

fn over(images: usize, (side, stride, padding): Sides, (height, width): (usize, usize)) -> (Window, Grid) {
    (Window { side, stride, padding }, Grid { images, height, width })
}

#[test]
fn convolutions_agree() {
    for (window, size) in WINDOWS {
        for (images, inputs, outputs) in [(1, 1, 1), (3, 5, 18), (2, 3, 40)] {
            let (window, grid) = over(images, window, size);
            let arguments = [
                random(&[grid.pixels(), inputs], 1),
                random(&[outputs, inputs, window.side, window.side], 2),
                random(&[outputs], 3),
            ];
            for count in [2, 3] {
                compare(
                    &format!("{window:?} over {grid:?}, {inputs} to {outputs}"),
                    &arguments[..count],
                    |t| Ok(super::convolution(&Tape::default(), &t[0], &t[1], t.get(2), window, grid)?.0),
                    |t| composed::convolution(&t[0], &t[1], t.get(2), window, grid),
                );
            }
        }
    }
}

#[test]
fn a_convolution_in_several_parts_agrees() {
    // More values under the windows than are laid out at a time.
    let (window, grid) = over(5, (3, 1, 1), (40, 40));
    let arguments = [random(&[grid.pixels(), 16], 1), random(&[8, 16, 3, 3], 2)];
    compare(
        "convolution",
        &arguments,
        |t| Ok(super::convolution(&Tape::default(), &t[0], &t[1], None, window, grid)?.0),
        |t| composed::convolution(&t[0], &t[1], None, window, grid),
    );
}

#[test]
fn a_convolution_refuses_what_does_not_fit() {
    let (window, grid) = over(2, (3, 1, 1), (4, 4));
    let fails = |rows: usize, weight: &[usize], grid| {
        let (x, weight) = (random(&[rows, 3], 1), random(weight, 2));
        super::convolution(&Tape::default(), x.as_tensor(), weight.as_tensor(), None, window, grid).is_err()
    };
    assert!(!fails(32, &[5, 3, 3, 3], grid));
    assert!(fails(31, &[5, 3, 3, 3], grid) && fails(32, &[5, 2, 3, 3], grid) && fails(32, &[5, 3, 5, 5], grid));
}

fn by(running: &Option<[Tensor; 2]>) -> Normalise<'_> {
    running.as_ref().map_or(Normalise::Batch, |[mean, variance]| Normalise::Running(mean, variance))
}

#[test]
fn batch_norm_agrees_by_the_batch_and_by_running_statistics() {
    for (rows, channels) in [(2, 1), (300, 20), (129, 64)] {
        let x = Var::from_tensor(&(random(&[rows, channels], 1).as_tensor() + 3.0).unwrap()).unwrap();
        let arguments = [x, random(&[channels], 2), random(&[channels], 3)];
        let mean = random(&[channels], 4).as_detached_tensor();
        let variance = random(&[channels], 5).as_detached_tensor().sqr().unwrap();
        for relu in [false, true] {
            for running in [false, true] {
                let running_on = |device: &Device| {
                    running.then(|| [&mean, &variance].map(|moments| moments.to_device(device).unwrap()))
                };
                compare(
                    &format!("batch norm of {rows} x {channels}, relu {relu}, running {running}"),
                    &arguments,
                    |t| {
                        let moments = running_on(t[0].device());
                        Ok(super::batch_norm(&Tape::default(), &t[0], (&t[1], &t[2]), by(&moments), 1e-5, relu)?.0)
                    },
                    |t| {
                        let moments = running_on(t[0].device());
                        Ok(composed::batch_norm(&t[0], (&t[1], &t[2]), by(&moments), 1e-5, relu)?.0)
                    },
                );
                let [x, weight, bias] = arguments.each_ref().map(|var| var.as_tensor());
                let moments = running_on(&Device::Cpu);
                let expected = composed::batch_norm(x, (weight, bias), by(&moments), 1e-5, relu).unwrap().1;
                for device in devices() {
                    let [x, weight, bias] = arguments.each_ref().map(|var| on(device, var));
                    let (moments, affine) = (running_on(device), (weight.as_tensor(), bias.as_tensor()));
                    let found = super::batch_norm(&Tape::default(), &x, affine, by(&moments), 1e-5, relu).unwrap().1;
                    assert_eq!(found.is_none(), running);
                    if let Some((found, expected)) = found.zip(expected.as_ref()) {
                        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
                        assert_near("mean", &tensor(&found.mean), &tensor(&expected.mean));
                        assert_near("variance", &tensor(&found.variance), &tensor(&expected.variance));
                        assert_eq!((found.count, expected.count), (rows, rows));
                    }
                }
            }
        }
    }
}

#[test]
fn the_largest_under_a_window_agrees() {
    for (window, size) in WINDOWS {
        let (window, grid) = over(3, window, size);
        compare(
            &format!("max-pool of {window:?} over {grid:?}"),
            &[random(&[grid.pixels(), 19], 1)],
            |t| Ok(super::max_pool(&Tape::default(), &t[0], window, grid)?.0),
            |t| composed::max_pool(&t[0], window, grid),
        );
    }
    let grid = Grid { images: 1, height: 2, width: 2 };
    let (window, _) = over(1, (3, 2, 1), (2, 2));
    for device in devices() {
        let x = Var::new(&[[1f32], [f32::NAN], [3.0], [2.0]], device).unwrap();
        assert!(values(&super::max_pool(&Tape::default(), x.as_tensor(), window, grid).unwrap().0)[0].is_nan());
    }
}

#[test]
fn the_first_of_equal_largest_values_gets_the_gradient() {
    let (window, grid) = over(1, (2, 2, 0), (2, 2));
    for device in devices() {
        let x = Var::new(&[[1f32], [2.0], [2.0], [0.0]], device).unwrap();
        let out = super::max_pool(&Tape::default(), x.as_tensor(), window, grid).unwrap().0;
        let gradients = out.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(gradients.get(&x).unwrap()), [0.0, 1.0, 0.0, 0.0]);
    }
}

#[test]
fn sequences_of_patches_agree() {
    let arguments = [random(&[15, 7], 1), random(&[1, 1, 7], 2), random(&[1, 6, 7], 3)];
    compare(
        "sequence",
        &arguments,
        |t| super::sequence(&Tape::default(), &t[0], &t[1], &t[2], 5),
        |t| composed::sequence(&t[0], &t[1], &t[2], &super::sequence::Sequence { patches: 5 }),
    );
    let [x, first, positions] = arguments.each_ref().map(|var| var.as_tensor());
    assert!(super::sequence(&Tape::default(), x, first, positions, 4).is_err());
    assert!(super::sequence(&Tape::default(), x, positions, first, 5).is_err());
}

#[test]
fn a_shortcut_before_relu_agrees() {
    compare(
        "residual and relu",
        &[random(&[70, 65], 1), random(&[70, 65], 2)],
        |t| super::residual_relu(&Tape::default(), &t[0], &t[1]),
        |t| (&t[0] + &t[1])?.relu(),
    );
}

/// Every combination of the loss's parts.
fn losses() -> Vec<Loss> {
    let mut losses = Vec::new();
    for offset in [&[][..], &[0.5, -3.0, 0.0, 1.0]] {
        for class_weights in [&[][..], &[0.5, 2.0, 1.0, 3.5]] {
            for label_smoothing in [0.0, 0.1] {
                for focal_gamma in [0.0, 0.5, 2.0] {
                    for divisor in [None, Some(20.0)] {
                        let (offset, class_weights) = (offset.to_vec(), class_weights.to_vec());
                        losses.push(Loss { offset, class_weights, label_smoothing, focal_gamma, divisor });
                    }
                }
            }
        }
    }
    losses
}

#[test]
fn cross_entropy_agrees() {
    let arguments = [random(&[7, 4], 1)];
    let labels = [0, 3, 1, 1, 2, 0, 3];
    for loss in losses() {
        compare(
            &format!("{loss:?}"),
            &arguments,
            |t| super::cross_entropy(&Tape::default(), &t[0], &labels, &loss),
            |t| composed::cross_entropy(&t[0], &labels, &loss),
        );
    }
    let refused = |labels: &[u32], loss: Loss| {
        super::cross_entropy(&Tape::default(), arguments[0].as_tensor(), labels, &loss).is_err()
            && composed::cross_entropy(arguments[0].as_tensor(), labels, &loss).is_err()
    };
    assert!(refused(&[4; 7], Loss::default()) && refused(&[0; 6], Loss::default()));
    assert!(refused(&labels, Loss { offset: vec![0.0; 3], ..Loss::default() }));
    assert!(refused(&labels, Loss { class_weights: vec![1.0; 5], ..Loss::default() }));
}

#[test]
fn cross_entropy_over_a_vocabulary_is_that_in_double_precision() {
    let (rows, width) = (3, 150_001);
    let x = Var::from_tensor(&(random(&[rows, width], 1).as_tensor() * 4.0).unwrap()).unwrap();
    let labels = [0, 77_777, 150_000];
    let offset: Vec<f32> = (0..width).map(|i| (i % 7) as f32 / 7.0).collect();
    for (device, offset) in devices().flat_map(|device| [(device, Vec::new()), (device, offset.clone())]) {
        let x = on(device, &x);
        let loss = Loss { offset: offset.clone(), divisor: Some(5.0), ..Loss::default() };
        let found = super::cross_entropy(&Tape::default(), x.as_tensor(), &labels, &loss).unwrap();
        let gradient = values(found.backward().unwrap().get(&x).unwrap());
        let mut expected = 0.0;
        for ((row, label), gradient) in values(&x).chunks(width).zip(labels).zip(gradient.chunks(width)) {
            let shift = |i: usize| offset.get(i).map_or(0.0, |x| f64::from(*x));
            let exps: Vec<f64> = row.iter().enumerate().map(|(i, x)| (x + shift(i)).exp()).collect();
            let sum: f64 = exps.iter().sum();
            expected -= (exps[label as usize] / sum).ln() / 5.0;
            for (i, (found, exp)) in gradient.iter().zip(exps).enumerate() {
                let expected = (exp / sum - if i == label as usize { 1.0 } else { 0.0 }) / 5.0;
                assert!((found - expected).abs() <= 5e-6 * expected.abs(), "at {i}: {found} for {expected}");
            }
        }
        assert!((values(&found)[0] / expected - 1.0).abs() < 1e-6, "{found:?} for {expected}");
    }
}

#[test]
fn the_loss_over_words_is_that_of_their_scores() {
    // More rows than are computed at once, and a vocabulary that is summed in single precision.
    for (rows, hidden, words) in [(3, 5, 7), (300, 9, 1500)] {
        let arguments = [random(&[rows, hidden], 1), random(&[words, hidden], 2)];
        let labels: Vec<u32> = (0..rows).map(|row| (row * 31 % words) as u32).collect();
        for loss in [
            Loss::default(),
            Loss { divisor: Some(1000.0), ..Loss::default() },
            Loss { label_smoothing: 0.1, ..Loss::default() },
        ] {
            compare(
                &format!("words loss {loss:?}"),
                &arguments,
                |t| super::words_loss(&Tape::default(), &t[0], &t[1], &labels, &loss),
                |t| composed::cross_entropy(&composed::linear(&t[0], &t[1], None)?, &labels, &loss),
            );
        }
    }
    let (x, weight) = (random(&[3, 5], 1), random(&[7, 5], 2));
    let refused = |labels: &[u32], weight: &Tensor| {
        super::words_loss(&Tape::default(), &x, weight, labels, &Loss::default()).is_err()
    };
    assert!(refused(&[0, 1, 7], &weight) && refused(&[0, 1], &weight));
    assert!(refused(&[0, 1, 2], &random(&[7, 4], 2)));
}

#[test]
fn rows_are_added_in_place() {
    let (matrix, values_of) = (random(&[5, 3], 1).as_detached_tensor(), random(&[2, 3], 2));
    let before = values(&matrix);
    super::add_rows(&matrix, &[1, 4], &values_of).unwrap();
    let added = values(&values_of);
    for (place, (found, before)) in values(&matrix).into_iter().zip(before).enumerate() {
        let more = match place / 3 {
            1 => added[place % 3],
            4 => added[3 + place % 3],
            _ => 0.0,
        };
        assert!((found - before - more).abs() < 1e-6, "at {place}");
    }
    assert!(super::add_rows(&matrix, &[1, 5], &values_of).is_err());
    assert!(super::add_rows(&matrix, &[1], &values_of).is_err());
}

#[test]
fn the_plain_loss_is_candles() {
    let labels = [0, 3, 1, 1, 2, 0, 3];
    compare(
        "plain",
        &[random(&[7, 4], 1)],
        |t| super::cross_entropy(&Tape::default(), &t[0], &labels, &Loss::default()),
        |t| candle_nn::loss::cross_entropy(&t[0], &Tensor::new(&labels, &Device::Cpu)?),
    );
}

#[test]
fn class_weights_and_smoothing_agree_with_pytorch() {
    let x = [[0.3f32, -1.2, 0.8, 0.1], [2.0, 0.5, -0.7, 1.1], [-0.4, 0.9, 0.2, -2.1]];
    // torch 2.15 in double precision: CrossEntropyLoss(weight, label_smoothing), and the gradient of the first row.
    for (class_weights, label_smoothing, value, first) in [
        (&[][..], 0.1, 0.755_108_214, [0.081_986_654, 0.011_819_779, -0.159_420_849, 0.065_614_417]),
        (&[0.5, 2.0, 1.0, 3.5], 0.0, 0.647_615_934, [0.077_417_132, 0.017_274_096, -0.158_075_014, 0.063_383_786]),
        (&[0.5, 2.0, 1.0, 3.5], 0.1, 0.875_209_855, [0.079_651_988, 0.004_283_939, -0.127_073_497, 0.043_137_57]),
    ] {
        for device in devices() {
            let x = Var::new(&x, device).unwrap();
            let loss = Loss { class_weights: class_weights.to_vec(), label_smoothing, ..Loss::default() };
            let found = super::cross_entropy(&Tape::default(), x.as_tensor(), &[2, 0, 1], &loss).unwrap();
            assert!((values(&found)[0] - value).abs() < 1e-6, "{loss:?}");
            let gradient = found.backward().unwrap();
            for (found, expected) in values(gradient.get(&x).unwrap()).into_iter().zip(first) {
                assert!((found - expected).abs() < 1e-6, "{loss:?}: {found} for {expected}");
            }
        }
    }
}

#[test]
fn the_losses_gradient_is_the_slope_of_its_value() {
    let x = [[0.3f32, -1.2, 0.8, 0.1], [2.0, 0.5, -0.7, 1.1], [-0.4, 0.9, 0.2, -2.1]];
    let labels = [2, 0, 1];
    let value = |x: &[[f32; 4]; 3], loss: &Loss| {
        let x = Var::new(x, &Device::Cpu).unwrap();
        let loss = super::cross_entropy(&Tape::default(), x.as_tensor(), &labels, loss).unwrap();
        let gradient = loss.backward().unwrap().get(&x).unwrap().to_vec2::<f32>().unwrap();
        (f64::from(loss.to_scalar::<f32>().unwrap()), gradient)
    };
    for loss in losses().into_iter().filter(|loss| loss.divisor.is_none()) {
        let (_, gradient) = value(&x, &loss);
        for row in 0..3 {
            for column in 0..4 {
                let step = 1.0 / 64.0;
                let moved = |by: f32| {
                    let mut x = x;
                    x[row][column] += by;
                    value(&x, &loss).0
                };
                let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
                let found = f64::from(gradient[row][column]);
                assert!((found - slope).abs() < 1e-4, "{loss:?} at {row}, {column}: {found} for {slope}");
            }
        }
    }
}

#[test]
fn certain_rows_have_finite_gradients() {
    for (device, focal_gamma) in devices().flat_map(|device| [(device, 0.3), (device, 2.0)]) {
        let x = Var::new(&[[200f32, -200.0], [-200.0, 200.0]], device).unwrap();
        let loss = Loss { focal_gamma, label_smoothing: 0.1, ..Loss::default() };
        let loss = super::cross_entropy(&Tape::default(), x.as_tensor(), &[0, 0], &loss).unwrap();
        let gradient = loss.backward().unwrap();
        assert!(values(gradient.get(&x).unwrap()).iter().all(|x| x.is_finite()));
    }
}

#[test]
fn nothing_is_computed_for_frozen_arguments() {
    for device in devices() {
        let [x, weight, bias] = [random(&[3, 4], 1), random(&[2, 4], 2), random(&[2], 3)].map(|var| on(device, &var));
        let [quiet_x, quiet_weight, quiet_bias] = [&x, &weight, &bias].map(Var::as_detached_tensor);
        let frozen = super::linear(&Tape::default(), &quiet_x, weight.as_tensor(), Some(&quiet_bias)).unwrap();
        let store = frozen.sum_all().unwrap().backward().unwrap();
        assert!(store.get(&weight).is_some() && store.get(&x).is_none() && store.get(&bias).is_none());
        let all = super::linear(&Tape::default(), &quiet_x, &quiet_weight, Some(&quiet_bias)).unwrap();
        assert!(!all.track_op());
    }
}

#[test]
fn binary_cross_entropy_agrees_and_is_pytorchs() {
    let arguments = [random(&[4, 3], 1)];
    let sets = [vec![0, 2], vec![], vec![1, 1], vec![0, 1, 2]];
    let hot = || vec![1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0];
    compare(
        "binary cross-entropy",
        &arguments,
        |t| super::binary_cross_entropy(&Tape::default(), &t[0], &sets, 12.0),
        |t| composed::binary_cross_entropy(&t[0], hot(), 12.0),
    );
    // torch.nn.BCEWithLogitsLoss()(tensor([[0.5, -200.0], [200.0, 1.0]]), tensor([[1.0, 0.0], [0.0, 1.0]]))
    let logits = Tensor::new(&[[0.5f32, -200.0], [200.0, 1.0]], &Device::Cpu).unwrap();
    let loss = super::binary_cross_entropy(&Tape::default(), &logits, &[vec![0], vec![1]], 4.0).unwrap();
    assert!((loss.to_scalar::<f32>().unwrap() - 50.196_835).abs() < 1e-4);
    assert!(super::binary_cross_entropy(&Tape::default(), &logits, &[vec![2], vec![]], 4.0).is_err());
    assert!(super::binary_cross_entropy(&Tape::default(), &logits, &[vec![]], 4.0).is_err());
}

#[test]
fn squared_error_agrees() {
    let values = [0.5, -1.0, 3.0, 0.0];
    let of = |outputs: &Tensor| super::squared_error(&Tape::default(), outputs, &values, 4.0);
    compare("squared error", &[random(&[4, 1], 1)], |t| of(&t[0]), |t| composed::squared_error(&t[0], &values, 4.0));
    let outputs = Tensor::new(&[[0.0f32], [0.0], [0.0], [0.0]], &Device::Cpu).unwrap();
    assert_eq!(of(&outputs).unwrap().to_scalar::<f32>().unwrap(), 10.25 / 4.0);
    assert!(of(&outputs.narrow(0, 0, 3).unwrap()).is_err());
}
