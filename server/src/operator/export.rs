//! Writes a model folder, or one of adapters, out of a base model, a state and a recipe: bytes are copied, no tensor is loaded.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use fedtune_proto::folder::{ADAPTER_CONFIG, CONFIG, TENSORS};
use fedtune_proto::layout::{Layout, TensorEntry};
use fedtune_proto::recipe::{ExportRecipe, TensorSource};
use fedtune_proto::transfer;
use fedtune_proto::v1::PlanExportResponse;
use tonic::transport::Channel;

use super::OperatorError;

pub(super) async fn write(channel: &Channel, plan: PlanExportResponse, folder: &Path) -> Result<(), OperatorError> {
    let file_error = |path: &Path| {
        let path = path.to_path_buf();
        move |source| OperatorError::File { path: path.clone(), source }
    };
    fs::create_dir_all(folder).map_err(file_error(folder))?;
    // Beside the target, so that the last step is a rename on one disk.
    let work = tempfile::tempdir_in(folder).map_err(file_error(folder))?;
    let unfit = |path: &Path, reason: String| OperatorError::Model { path: path.to_path_buf(), reason };
    let recipe: ExportRecipe = serde_json::from_str(&plan.recipe_json)
        .map_err(|e| unfit(folder, format!("the aggregator's export recipe cannot be read: {e}")))?;

    let state = work.path().join("state");
    if let Some(artifact) = &plan.state {
        transfer::download(channel, artifact, &state).await?;
    }
    let base = work.path().join(TENSORS);
    for file in &plan.base_model {
        // The name comes from the network: only a plain one may become a path.
        let plain = Path::new(&file.name).file_name().is_some_and(|name| name == file.name.as_str());
        let (true, Some(artifact)) = (plain, &file.artifact) else {
            return Err(unfit(folder, format!("the aggregator names the file {:?}", file.name)));
        };
        let wanted = file.name != CONFIG && (file.name != TENSORS || needs_base(&recipe));
        if wanted {
            transfer::download(channel, artifact, &work.path().join(&file.name)).await?;
        }
    }
    let merged = work.path().join("merged");
    merge(&recipe, &base, &state, &merged).map_err(|e| match e {
        Merge::Unfit(reason) => unfit(folder, reason),
        Merge::Io(source) => OperatorError::File { path: merged.clone(), source },
    })?;
    for file in &plan.base_model {
        if file.name != TENSORS && file.name != CONFIG {
            let target = folder.join(&file.name);
            fs::rename(work.path().join(&file.name), &target).map_err(file_error(&target))?;
        }
    }
    let mut texts = vec![(CONFIG, &recipe.config_json)];
    texts.extend(recipe.adapter_config_json.as_ref().map(|text| (ADAPTER_CONFIG, text)));
    let mut parts = Vec::new();
    for (name, text) in texts {
        let part = work.path().join(format!("{name}.new"));
        fs::write(&part, text).map_err(file_error(&part))?;
        parts.push((part, name));
    }
    // The weights last: a folder that has them is whole.
    parts.push((merged, recipe.tensors_file()));
    for (from, to) in parts {
        let target = folder.join(to);
        fs::rename(from, &target).map_err(file_error(&target))?;
    }
    Ok(())
}

fn needs_base(recipe: &ExportRecipe) -> bool {
    recipe.tensors.iter().any(|tensor| matches!(tensor.source, TensorSource::Base(_)))
}

enum Merge {
    Unfit(String),
    Io(io::Error),
}

impl From<io::Error> for Merge {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Copies every tensor of the recipe from its source into one safetensors file.
fn merge(recipe: &ExportRecipe, base: &Path, state: &Path, out: &Path) -> Result<(), Merge> {
    let layout_of = |path: &Path| Layout::read(path).map_err(|e| Merge::Unfit(e.to_string()));
    let state_layout = layout_of(state)?;
    let base_layout = if needs_base(recipe) { Some(layout_of(base)?) } else { None };
    let mut parts = Vec::with_capacity(recipe.tensors.len());
    for tensor in &recipe.tensors {
        let (layout, file, name) = match &tensor.source {
            TensorSource::State(name) => (Some(&state_layout), state, name),
            TensorSource::Base(name) => (base_layout.as_ref(), base, name),
        };
        let entry = layout.and_then(|layout| layout.tensor(name)).ok_or_else(|| {
            Merge::Unfit(format!("tensor {name:?} of the export recipe is not in {}", file.display()))
        })?;
        parts.push((tensor.name.clone(), file, entry.clone()));
    }
    // Safetensors wants alignment: widest elements first, then by name, as its own writer does.
    let width = |entry: &TensorEntry| fedtune_proto::layout::dtype_bytes(&entry.dtype).unwrap_or(0);
    parts.sort_by(|a, b| (width(&b.2), &a.0).cmp(&(width(&a.2), &b.0)));
    let tensors = parts.iter().map(|(name, _, entry)| (name.clone(), entry.dtype.clone(), entry.shape.clone()));
    let layout = Layout::of_tensors(tensors).ok_or_else(|| Merge::Unfit("the model is too large".into()))?;
    let mut writer = BufWriter::with_capacity(1 << 20, File::create_new(out)?);
    writer.write_all(&layout.header())?;
    for (_, file, entry) in &parts {
        let mut source = File::open(file)?;
        source.seek(SeekFrom::Start(entry.start))?;
        io::copy(&mut source.take(entry.end - entry.start), &mut writer)?;
    }
    writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(())
}
