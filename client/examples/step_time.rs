//! Seconds per training step, and the most memory it takes, as one JSON object: what `tests/bench/speed_vs_pytorch.py` runs
//! beside PyTorch. Every sequence has the full length, and every image one size, so the numbers compare with those of other
//! frameworks on the same shapes.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use candle_core::Tensor;
use clap::Parser;
use fedtune_client::allocator::{self, MiMalloc};
use fedtune_client::finetune::{Optimizer, gradient_norm};
use fedtune_client::model::batch::Tokens;
use fedtune_client::model::network::Input;
use fedtune_client::model::{DropoutStream, Loss, ModelSpec, Network, Objective, Reads, Targets};
use fedtune_config::job::{Lora, Precision, Trainable, Training};
use fedtune_config::site::{Device, DeviceKind};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[derive(Parser)]
#[command(about = "Measures the seconds of a training step")]
struct Arguments {
    /// Folder of the model
    #[arg(long)]
    model: PathBuf,
    /// Sequences or images of a batch
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 128)]
    length: usize,
    /// Pixels of a side of an image, for a model that takes images
    #[arg(long)]
    images: Option<usize>,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Where it computes
    #[arg(long, value_enum, default_value_t = On::Cpu)]
    device: On,
    /// Steps that are measured, after two that are not
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// What is trained: full, head, last-N or lora
    #[arg(long, default_value = "full")]
    trainable: Trainable,
    /// Rank of the adapters
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// Products in bf16
    #[arg(long)]
    bf16: bool,
    /// Trains a decoder on every next token
    #[arg(long)]
    causal: bool,
    /// Keeps of each layer nothing but its input, and computes it again in the backward pass
    #[arg(long)]
    recompute: bool,
    /// Dropout probability
    #[arg(long, default_value_t = 0.1)]
    dropout: f64,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum On {
    Cpu,
    Cuda,
}

fn main() -> anyhow::Result<()> {
    allocator::keep_freed_memory();
    let arguments = Arguments::parse();
    let kind = if arguments.device == On::Cuda { DeviceKind::Cuda } else { DeviceKind::Cpu };
    let device = Device { threads: arguments.threads, kind, ..Device::default() };
    let device = fedtune_client::device::open(&device)?;
    let probability = arguments.dropout;
    let spec = ModelSpec {
        objective: if arguments.causal { Objective::NextToken } else { Objective::Class },
        labels: (0..if arguments.causal { 0 } else { 5 }).map(|label: u32| label.to_string()).collect(),
        trainable: arguments.trainable.clone(),
        lora: Lora { rank: arguments.rank, ..Lora::default() },
        precision: if arguments.bf16 { Precision::Bf16 } else { Precision::F32 },
        dropout: probability,
        seed: 1,
        max_length: arguments.length,
        template: String::new(),
        reads: Reads::Texts,
        freeze_batch_norm: false,
    };
    let mut network = Network::load(&arguments.model, &spec, &device)?;
    network.set_recompute(arguments.recompute)?;
    let batch = match arguments.images {
        Some(size) => images(arguments.batch, size)?,
        None => texts(&network, &arguments)?,
    };
    let targets = match arguments.causal {
        true => Targets::Tokens(
            words(&network, &arguments)?.into_iter().map(|row| row.into_iter().map(Some).collect()).collect(),
        ),
        false => Targets::Classes((0..arguments.batch as u32).map(|row| row % 5).collect()),
    };
    let mut optimizer = Optimizer::new(&Training::default());
    let mut times = Vec::new();
    let mut loss = 0.0;
    for step in 0..arguments.steps + 2 {
        let stream = DropoutStream { probability, seed: 1, round: 1, step: step as u64 };
        let started = Instant::now();
        let pass = network.gradients(&batch, &targets, &Loss::default(), Some(stream))?;
        network.track(&pass)?;
        let norm = gradient_norm(&pass.gradients)?;
        optimizer.step(network.parameters(), &pass.gradients, 5e-5, (1.0 / (norm + 1e-6)).min(1.0))?;
        device.synchronize()?;
        if step >= 2 {
            times.push(started.elapsed().as_secs_f64());
        }
        loss = pass.loss;
    }
    // A GPU's memory is not the process's.
    let peak = if arguments.device == On::Cpu { peak_megabytes() } else { None };
    println!("{}", json!({ "seconds": times, "loss": loss, "peak_mb": peak }));
    Ok(())
}

/// The words of each text.
fn words(network: &Network, arguments: &Arguments) -> anyhow::Result<Vec<Vec<u32>>> {
    let vocabulary = network.config().vocabulary().context("the model takes no text")? as u64;
    let word = |row: u64, place: u64| ((row * 7919 + place * 104_729 + 17) * 31 % vocabulary) as u32;
    let rows = 0..arguments.batch as u64;
    Ok(rows.map(|row| (0..arguments.length as u64).map(|place| word(row, place)).collect()).collect())
}

fn texts(network: &Network, arguments: &Arguments) -> anyhow::Result<Input> {
    let of_words = |words| Tokens { words, types: vec![0; arguments.length] };
    let sequences: Vec<Tokens> = words(network, arguments)?.into_iter().map(of_words).collect();
    Ok(network.batch(&sequences.iter().collect::<Vec<_>>()))
}

/// Values from -1 to 1 that differ from place to place.
fn images(count: usize, size: usize) -> anyhow::Result<Input> {
    let values: Vec<f32> = (0..count * 3 * size * size).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
    Ok(Input::Images(Tensor::from_vec(values, (count, 3, size, size), &candle_core::Device::Cpu)?))
}

/// The most memory this process has held, where the system tells.
fn peak_megabytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib: f64 =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
