//! Seconds per training step: `step_time MODEL [BATCH] [LENGTH] [THREADS] [STEPS] [TRAINABLE] [DROPOUT]`.
//! Every sequence has the full length, so the numbers compare with those of other frameworks on the same shapes.

use std::path::Path;
use std::time::Instant;

use fedtune_client::finetune::{Optimizer, gradient_norm};
use fedtune_client::model::batch::Tokens;
use fedtune_client::model::{DropoutStream, Loss, ModelSpec, Network};
use fedtune_config::job::Training;
use fedtune_config::site::Device;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: usize| -> anyhow::Result<usize> {
        Ok(arguments.get(place).map(|text| text.parse()).transpose()?.unwrap_or(default))
    };
    let model = arguments.first().map_or(Path::new("model"), Path::new);
    let (batch, length) = (number(1, 16)?, number(2, 128)?);
    let (threads, steps) = (number(3, 2)?, number(4, 10)?);
    let trainable = arguments.get(5).map_or("full", String::as_str).parse().map_err(anyhow::Error::msg)?;
    let probability: f64 = arguments.get(6).map(|text| text.parse()).transpose()?.unwrap_or(0.1);
    let device = fedtune_client::device::open(&Device { threads, ..Device::default() })?;
    let labels: Vec<String> = (0..5).map(|label| label.to_string()).collect();
    let spec =
        ModelSpec { labels, trainable, lora: Default::default(), dropout: probability, seed: 1, max_length: length };
    let network = Network::load(model, &spec, &device)?;
    let vocabulary = network.config().vocab_size as u64;
    let sequences: Vec<Tokens> = (0..batch as u64)
        .map(|row| Tokens {
            words: (0..length as u64).map(|i| ((row * 7919 + i * 104_729 + 17) * 31 % vocabulary) as u32).collect(),
            types: vec![0; length],
        })
        .collect();
    let classes: Vec<u32> = (0..batch as u32).map(|row| row % 5).collect();
    let mut optimizer = Optimizer::new(&Training::default());
    let loss = Loss::default();
    let mut times = Vec::new();
    for step in 0..steps {
        let stream = DropoutStream { probability, seed: 1, round: 1, step: step as u64 };
        let started = Instant::now();
        let pass =
            network.gradients(&network.batch(&sequences.iter().collect::<Vec<_>>()), &classes, &loss, Some(stream))?;
        let computed = started.elapsed().as_secs_f64();
        let norm = gradient_norm(&pass.gradients)?;
        optimizer.step(network.parameters(), &pass.gradients, 5e-5, (1.0 / (norm + 1e-6)).min(1.0))?;
        let total = started.elapsed().as_secs_f64();
        println!("step {step}: {total:.3} s (optimiser {:.3} s), loss {:.4}", total - computed, pass.loss);
        times.push(total);
    }
    times.sort_by(f64::total_cmp);
    println!("median {:.3} s, best {:.3} s", times[times.len() / 2], times[0]);
    Ok(())
}
