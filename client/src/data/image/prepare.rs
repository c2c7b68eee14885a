//! Images of one size, as the values that a network was trained on.
//!
//! What is done, and with which numbers, stands in the model folder's `preprocessor_config.json`, in the words of the image
//! processors of transformers: resize (Pillow's, on 8-bit values), centre crop, rescale, normalise.

use std::path::{Path, PathBuf};

use fast_image_resize as fir;
use fir::images::{Image, ImageRef};
use serde_json::{Map, Value};

use super::Pixels;

/// The file in a model folder that says how images are prepared.
pub const FILE: &str = "preprocessor_config.json";
/// The longest side that a network is given.
const MAX_SIDE: u32 = 2048;

/// What is wrong with a [`FILE`].
#[derive(Debug, thiserror::Error)]
pub enum PreparationError {
    /// It cannot be read.
    #[error("{}: cannot be read: {source}; an image model's folder has this file, get it from where the model came from", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Larger than any such file.
    #[error("{}: found {bytes} bytes, expected at most {most}; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// What is allowed.
        most: u64,
    },
    /// Not a JSON object.
    #[error("{}: not a JSON object: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        message: String,
    },
    /// A field with a value that cannot be used.
    #[error("{}: {field}: found {found}, expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, dotted.
        field: String,
        /// Its value.
        found: String,
        /// What is allowed.
        expected: String,
    },
}

/// How images become the input of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Preparation {
    resize: Resize,
    /// Height and width that are cut from the middle.
    crop: Option<[u32; 2]>,
    filter: Filter,
    scale: f64,
    mean: [f64; 3],
    deviation: [f64; 3],
}

/// What an image is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resize {
    /// To this height and width, whatever its shape.
    To([u32; 2]),
    /// So that its shorter side has so many pixels; it is then cropped.
    Shorter(u32),
}

/// A resampling filter, as Pillow has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filter {
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

/// A part of an image, in its pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Area {
    /// Left edge.
    pub left: f64,
    /// Upper edge.
    pub top: f64,
    /// Width; more than 0.
    pub width: f64,
    /// Height; more than 0.
    pub height: f64,
}

/// ImageNet's mean, as torchvision has it.
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
/// ImageNet's standard deviation.
const IMAGENET_DEVIATION: [f64; 3] = [0.229, 0.224, 0.225];
/// What transformers calls the standard mean and deviation.
const HALF: [f64; 3] = [0.5; 3];
/// OpenAI CLIP's mean.
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// OpenAI CLIP's standard deviation.
const CLIP_DEVIATION: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// The image processors of transformers whose steps these are; they differ in what they do where a field is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Vit,
    Convnext,
    Deit,
    Clip,
}

impl Preparation {
    /// Resizing (bilinear) to this height and width, ImageNet's mean and deviation; `None` unless both are 1 to 2048.
    pub fn to_size(height: u32, width: u32) -> Option<Self> {
        let allowed = 1..=MAX_SIDE;
        (allowed.contains(&height) && allowed.contains(&width)).then_some(Self {
            resize: Resize::To([height, width]),
            crop: None,
            filter: Filter::Bilinear,
            scale: 1.0 / 255.0,
            mean: IMAGENET_MEAN,
            deviation: IMAGENET_DEVIATION,
        })
    }

    /// With another mean and deviation, of values from 0 to 1; `None` unless they are finite and each deviation is above 0.
    #[must_use]
    pub fn normalised(self, mean: [f64; 3], deviation: [f64; 3]) -> Option<Self> {
        let usable = mean.iter().all(|mean| mean.is_finite())
            && deviation.iter().all(|deviation| deviation.is_finite() && *deviation > 0.0);
        usable.then_some(Self { scale: 1.0 / 255.0, mean, deviation, ..self })
    }

    /// As a model folder's [`FILE`] says.
    ///
    /// # Errors
    /// See [`PreparationError`].
    pub fn of_folder(folder: &Path) -> Result<Self, PreparationError> {
        const MOST: u64 = 1 << 20;
        let path = folder.join(FILE);
        let read = |source| PreparationError::Read { path: path.clone(), source };
        let bytes = std::fs::metadata(&path).map_err(read)?.len();
        if bytes > MOST {
            return Err(PreparationError::TooLarge { path, bytes, most: MOST });
        }
        let content = std::fs::read(&path).map_err(read)?;
        let document: Map<String, Value> = serde_json::from_slice(&content)
            .map_err(|e| PreparationError::Json { path: path.clone(), message: e.to_string() })?;
        Document { path: &path, fields: &document }.preparation()
    }

    /// Height and width of what the network gets.
    pub fn size(&self) -> [u32; 2] {
        match (self.crop, self.resize) {
            (Some(size), _) | (None, Resize::To(size)) => size,
            (None, Resize::Shorter(edge)) => [edge; 2],
        }
    }

    /// How many values [`values`](Self::values) gives of an image.
    pub fn len(&self) -> usize {
        let [height, width] = self.size();
        3 * height as usize * width as usize
    }

    /// Never: an image has at least one pixel.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The image resized and cropped, for evaluation. What the crop would cut off is never computed, so that a long narrow
    /// image takes no more memory than another.
    pub fn fit(&self, image: &Pixels) -> Pixels {
        let (width, height) = (image.width, image.height);
        let [resized_height, resized_width] = match self.resize {
            Resize::To(size) => size.map(u64::from),
            Resize::Shorter(edge) => {
                let long = |long: u32, short: u32| u64::from(edge) * u64::from(long) / u64::from(short);
                if width <= height {
                    [long(height, width), u64::from(edge)]
                } else {
                    [u64::from(edge), long(width, height)]
                }
            }
        };
        let [out_height, out_width] = self.size();
        // The crop of the resized image, back in pixels of the image.
        let place = |resized: u64, out: u32, side: u32| {
            let first = (resized - u64::from(out)) / 2;
            let back = |pixels: f64| pixels * f64::from(side) / resized as f64;
            (back(first as f64), back(f64::from(out)))
        };
        let (left, width) = place(resized_width, out_width, width);
        let (top, height) = place(resized_height, out_height, height);
        self.fit_area(image, Area { left, top, width, height })
    }

    /// A part of an image, resized to [`size`](Self::size), for training; what is outside the image is left out.
    pub fn fit_area(&self, image: &Pixels, area: Area) -> Pixels {
        let [height, width] = self.size();
        let left = area.left.clamp(0.0, f64::from(image.width) - 1e-3);
        let top = area.top.clamp(0.0, f64::from(image.height) - 1e-3);
        let area = Area {
            left,
            top,
            width: area.width.clamp(1e-3, f64::from(image.width) - left),
            height: area.height.clamp(1e-3, f64::from(image.height) - top),
        };
        // The library resizes both ways at once with the columns from the first that the first pixel needs. Where that pixel
        // gives the columns at its edge no weight, others need earlier ones, and it panics. So the rows first, as it has them,
        // then the columns.
        let reach = self.filter.reach() * (area.width / f64::from(width)).max(1.0) + 1.0;
        let first = (left - reach).floor().max(0.0);
        let columns = (left + area.width + reach).ceil().min(f64::from(image.width)) - first;
        let mut rows = Image::new(columns as u32, height, fir::PixelType::U8x3);
        let mut fitted = Image::new(width, height, fir::PixelType::U8x3);
        // Every image has three bytes a pixel and the areas are inside, so none can be refused.
        if let Ok(source) = ImageRef::new(image.width, image.height, &image.rgb, fir::PixelType::U8x3) {
            self.resize(&source, &mut rows, Area { left: first, width: columns, ..area });
            let left = left - first;
            let width = area.width.min(columns - left);
            self.resize(&rows, &mut fitted, Area { left, top: 0.0, width, height: f64::from(height) });
        }
        Pixels { width, height, rgb: fitted.into_vec() }
    }

    fn resize(&self, source: &impl fir::IntoImageView, out: &mut Image<'_>, area: Area) {
        let Area { left, top, width, height } = area;
        let options = fir::ResizeOptions::new().resize_alg(self.filter.algorithm()).use_alpha(false);
        let resized = fir::Resizer::new().resize(source, out, &options.crop(left, top, width, height));
        debug_assert!(resized.is_ok(), "{resized:?}");
    }

    /// Writes the values of a fitted image, rescaled and normalised, as red, green and blue planes (CHW) into `out`, which
    /// has [`len`](Self::len) places; `false`, with nothing written, where the lengths differ.
    #[must_use]
    pub fn values(&self, image: &Pixels, out: &mut [f32]) -> bool {
        if image.rgb.len() != self.len() || out.len() != self.len() {
            return false;
        }
        for (channel, plane) in out.chunks_exact_mut(image.rgb.len() / 3).enumerate() {
            let table: [f32; 256] = std::array::from_fn(|value| {
                ((value as f64 * self.scale - self.mean[channel]) / self.deviation[channel]) as f32
            });
            for (value, pixel) in plane.iter_mut().zip(image.rgb.as_chunks::<3>().0) {
                *value = table[usize::from(pixel[channel])];
            }
        }
        true
    }
}

impl Filter {
    /// How far from its middle it has weights, in pixels of the larger of the two images.
    fn reach(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bicubic => 2.0,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Box => 0.5,
        }
    }

    fn algorithm(self) -> fir::ResizeAlg {
        fir::ResizeAlg::Convolution(match self {
            Self::Lanczos => fir::FilterType::Lanczos3,
            Self::Bilinear => fir::FilterType::Bilinear,
            // Pillow's bicubic has a = -0.5.
            Self::Bicubic => fir::FilterType::CatmullRom,
            Self::Box => fir::FilterType::Box,
            Self::Hamming => fir::FilterType::Hamming,
        })
    }
}

/// A [`FILE`] as it stands.
struct Document<'a> {
    path: &'a Path,
    fields: &'a Map<String, Value>,
}

impl Document<'_> {
    fn preparation(&self) -> Result<Preparation, PreparationError> {
        let family = self.family()?;
        for (field, expected) in [("do_resize", true), ("do_pad", false), ("do_flip_channel_order", false)] {
            if self.flag(field, expected)? != expected {
                return self
                    .wrong(field, format!("{expected}: every image must get one size, with red, green and blue"));
            }
        }
        let (resize, crop) = match family {
            Family::Convnext => self.convnext_size()?,
            Family::Vit => (Resize::To(self.sides("size", Some([224; 2]))?), None),
            Family::Deit | Family::Clip => self.size_and_crop(family)?,
        };
        let default_filter = if matches!(family, Family::Deit | Family::Clip) { 3 } else { 2 };
        let scale = match (self.flag("do_rescale", true)?, self.number("rescale_factor")?) {
            (false, _) => 1.0,
            (true, None) => 1.0 / 255.0,
            (true, Some(factor)) if factor.is_finite() && factor > 0.0 => factor,
            _ => return self.wrong("rescale_factor", "a number above 0".into()),
        };
        let (mean, deviation) = if self.flag("do_normalize", true)? {
            let (mean, deviation) = if family == Family::Clip { (CLIP_MEAN, CLIP_DEVIATION) } else { (HALF, HALF) };
            (
                self.channels("image_mean", mean, |_| true)?,
                self.channels("image_std", deviation, |deviation| deviation > 0.0)?,
            )
        } else {
            ([0.0; 3], [1.0; 3])
        };
        Ok(Preparation { resize, crop, filter: self.filter(default_filter)?, scale, mean, deviation })
    }

    fn family(&self) -> Result<Family, PreparationError> {
        let field =
            ["image_processor_type", "feature_extractor_type"].into_iter().find(|field| self.get(field).is_some());
        let name = field.and_then(|field| self.get(field)).and_then(Value::as_str).unwrap_or_default();
        let name = name.strip_suffix("Fast").unwrap_or(name);
        match name.strip_suffix("ImageProcessor").or(name.strip_suffix("FeatureExtractor")) {
            Some("ViT") => Ok(Family::Vit),
            Some("ConvNext") => Ok(Family::Convnext),
            Some("DeiT") => Ok(Family::Deit),
            Some("CLIP" | "Bit") => Ok(Family::Clip),
            _ => self.wrong(
                field.unwrap_or("image_processor_type"),
                "ViTImageProcessor, ConvNextImageProcessor, DeiTImageProcessor, BitImageProcessor or CLIPImageProcessor"
                    .into(),
            ),
        }
    }

    /// Below 384 pixels ConvNeXt's processor resizes the shorter side to more than is wanted and crops; from there on it
    /// resizes to a square.
    fn convnext_size(&self) -> Result<(Resize, Option<[u32; 2]>), PreparationError> {
        let edge = match self.get("size") {
            None => 384,
            Some(Value::Object(size)) => self.side("size.shortest_edge", size.get("shortest_edge"))?,
            size => self.side("size", size)?,
        };
        if edge >= 384 {
            return Ok((Resize::To([edge; 2]), None));
        }
        let share = self.number("crop_pct")?.unwrap_or(224.0 / 256.0);
        if !(share > 0.0 && share <= 1.0) || f64::from(edge) / share > f64::from(2 * MAX_SIDE) {
            return self.wrong("crop_pct", format!("a number above {} and at most 1", f64::from(edge) / 4096.0));
        }
        Ok((Resize::Shorter((f64::from(edge) / share) as u32), Some([edge; 2])))
    }

    fn size_and_crop(&self, family: Family) -> Result<(Resize, Option<[u32; 2]>), PreparationError> {
        let shorter = match self.get("size") {
            None => (family == Family::Clip).then_some(224),
            Some(Value::Object(size)) => match size.get("shortest_edge") {
                Some(edge) => Some(self.side("size.shortest_edge", Some(edge))?),
                None => None,
            },
            size => (family == Family::Clip).then(|| self.side("size", size)).transpose()?,
        };
        let resize = match shorter {
            Some(edge) => Resize::Shorter(edge),
            None => Resize::To(self.sides("size", Some([256; 2]))?),
        };
        let crop =
            if self.flag("do_center_crop", true)? { Some(self.sides("crop_size", Some([224; 2]))?) } else { None };
        let resized = match (resize, crop) {
            (Resize::Shorter(_), None) => {
                return self.wrong("do_center_crop", "true where size has shortest_edge: images need one size".into());
            }
            (Resize::Shorter(edge), _) => [edge; 2],
            (Resize::To(size), _) => size,
        };
        match crop {
            Some([height, width]) if height > resized[0] || width > resized[1] => {
                self.wrong("crop_size", format!("at most {} x {}, to which images are resized", resized[0], resized[1]))
            }
            _ => Ok((resize, crop)),
        }
    }

    /// Height and width: an object with both, or one number for both.
    fn sides(&self, field: &str, default: Option<[u32; 2]>) -> Result<[u32; 2], PreparationError> {
        match (self.get(field), default) {
            (None, Some(default)) => Ok(default),
            (Some(Value::Object(size)), _) => Ok([
                self.side(&format!("{field}.height"), size.get("height"))?,
                self.side(&format!("{field}.width"), size.get("width"))?,
            ]),
            (size, _) => Ok([self.side(field, size)?; 2]),
        }
    }

    fn side(&self, field: &str, value: Option<&Value>) -> Result<u32, PreparationError> {
        value
            .and_then(Value::as_u64)
            .and_then(|side| u32::try_from(side).ok())
            .filter(|side| (1..=MAX_SIDE).contains(side))
            .ok_or_else(|| self.field(field, value, format!("a whole number from 1 to {MAX_SIDE}")))
    }

    fn filter(&self, default: u64) -> Result<Filter, PreparationError> {
        match self.get("resample").map_or(Some(default), Value::as_u64) {
            Some(1) => Ok(Filter::Lanczos),
            Some(2) => Ok(Filter::Bilinear),
            Some(3) => Ok(Filter::Bicubic),
            Some(4) => Ok(Filter::Box),
            Some(5) => Ok(Filter::Hamming),
            _ => self.wrong("resample", "a filter of Pillow, 1 to 5 (0, the nearest pixel, is not supported)".into()),
        }
    }

    fn channels(&self, field: &str, default: [f64; 3], allowed: fn(f64) -> bool) -> Result<[f64; 3], PreparationError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        let numbers: Option<Vec<f64>> = value.as_array().and_then(|values| values.iter().map(Value::as_f64).collect());
        numbers
            .and_then(|numbers| <[f64; 3]>::try_from(numbers).ok())
            .filter(|numbers| numbers.iter().all(|number| number.is_finite() && allowed(*number)))
            .ok_or_else(|| {
                let above = if allowed(0.0) { "" } else { " above 0" };
                self.field(field, Some(value), format!("three numbers{above}: for red, green and blue"))
            })
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool, PreparationError> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            _ => self.wrong(field, "true or false".into()),
        }
    }

    fn number(&self, field: &str) -> Result<Option<f64>, PreparationError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) if value.is_number() => Ok(value.as_f64()),
            _ => self.wrong(field, "a number".into()),
        }
    }

    /// A field; null is as good as none.
    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    fn wrong<T>(&self, field: &str, expected: String) -> Result<T, PreparationError> {
        Err(self.field(field, self.get(field), expected))
    }

    fn field(&self, field: &str, value: Option<&Value>, expected: String) -> PreparationError {
        let mut found = value.map_or_else(|| "nothing".into(), Value::to_string);
        if let Some((cut, _)) = found.char_indices().nth(80) {
            found.truncate(cut);
            found.push_str("...");
        }
        PreparationError::Field { path: self.path.into(), field: field.into(), found, expected }
    }
}
