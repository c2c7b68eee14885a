//! Near-duplicates by MinHash (Broder 1997) with banding: texts that share most of their runs of five characters.
//!
//! A text's signature is, for each of 125 hash functions, the smallest hash of its shingles; two signatures agree at a place
//! with the probability of the Jaccard similarity J of their shingles. Signatures are cut into 25 bands of 5; texts that
//! agree in a whole band are compared. A pair with J = 0.8 is found with probability 1 − (1 − 0.8⁵)²⁵ > 0.9999.

/// Characters of a shingle.
const SHINGLE: usize = 5;
const BANDS: usize = 25;
const ROWS: usize = 5;
const HASHES: usize = BANDS * ROWS;

/// Texts with an estimated similarity of this or more count as near-duplicates.
pub const SIMILAR: f64 = 0.8;

/// Most texts that are compared; a signature takes 250 bytes, so 250 MB.
pub const MOST: usize = 1_000_000;

/// Texts of a band's bucket that a text is compared with, so that a bucket of a million costs no square of it.
const WINDOW: usize = 8;

/// The hash functions of a shingle's hash x: a·x + b modulo 2³², a odd. They take one vector instruction or two.
const FUNCTIONS: ([u32; HASHES], [u32; HASHES]) = {
    let (mut factors, mut terms) = ([0; HASHES], [0; HASHES]);
    let mut function = 0;
    while function < HASHES {
        let random = mix(function as u64 + 1);
        factors[function] = random as u32 | 1;
        terms[function] = (random >> 32) as u32;
        function += 1;
    }
    (factors, terms)
};

/// Signatures of texts, in the order in which they were added.
#[derive(Debug, Default)]
pub struct Signatures {
    /// The lower 16 bits of each hash: two that differ agree by chance once in 65 536.
    values: Vec<[u16; HASHES]>,
    left_out: u64,
}

/// Two texts, by their places, and the estimate of their Jaccard similarity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// The earlier text.
    pub first: usize,
    /// The later text.
    pub second: usize,
    /// The share of the hashes that agree.
    pub similarity: f64,
}

/// Each text with the most similar earlier text of those it was compared with, where that is at least [`SIMILAR`]; in
/// the order of the later texts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pairs {
    /// Both of one file.
    pub within: Vec<Pair>,
    /// The earlier one of the first file, the later one of the second.
    pub across: Vec<Pair>,
}

impl Signatures {
    /// How many texts are compared.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Adds a folded text; gives its place, or `None` where [`MOST`] are there already.
    pub fn add(&mut self, folded: &str) -> Option<usize> {
        if self.values.len() >= MOST {
            self.left_out += 1;
            return None;
        }
        self.values.push(signature(folded));
        Some(self.values.len() - 1)
    }

    /// Texts that were not compared.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The near-duplicates among the texts, of which those from the place `second_part` on are of another file.
    pub fn pairs(&self, second_part: usize) -> Pairs {
        let mut within: Vec<Option<Pair>> = vec![None; self.values.len()];
        let mut across = within.clone();
        let mut keyed: Vec<(u64, u32)> = Vec::with_capacity(self.values.len());
        for band in 0..BANDS {
            keyed.clear();
            keyed.extend(self.values.iter().enumerate().map(|(place, values)| (key(values, band), place as u32)));
            keyed.sort_unstable();
            for bucket in keyed.chunk_by(|one, other| one.0 == other.0) {
                let places = || bucket.iter().map(|(_, place)| *place as usize);
                let border = bucket.partition_point(|(_, place)| (*place as usize) < second_part);
                for (i, second) in places().enumerate().skip(1) {
                    let (own, other) =
                        if i < border { (&bucket[..i], &bucket[..0]) } else { (&bucket[border..i], &bucket[..border]) };
                    self.compare(own, second, &mut within[second]);
                    self.compare(other, second, &mut across[second]);
                }
            }
        }
        let found = |pairs: Vec<Option<Pair>>| pairs.into_iter().flatten().collect();
        Pairs { within: found(within), across: found(across) }
    }

    /// Compares a text with some of a bucket: the first, which is the likely original, and the nearest earlier ones.
    fn compare(&self, bucket: &[(u64, u32)], second: usize, best: &mut Option<Pair>) {
        let near = &bucket[bucket.len().saturating_sub(WINDOW)..];
        for (_, first) in bucket.iter().take(1).chain(near) {
            let first = *first as usize;
            let similarity = self.similarity(first, second);
            let better = best.is_none_or(|known| {
                similarity > known.similarity || (similarity == known.similarity && first < known.first)
            });
            if similarity >= SIMILAR && better {
                *best = Some(Pair { first, second, similarity });
            }
        }
    }

    fn similarity(&self, one: usize, other: usize) -> f64 {
        let same = self.values[one].iter().zip(&self.values[other]).filter(|(a, b)| a == b).count();
        same as f64 / HASHES as f64
    }
}

fn key(values: &[u16; HASHES], band: usize) -> u64 {
    values[band * ROWS..(band + 1) * ROWS].iter().fold(0, |key, value| mix(key ^ u64::from(*value)))
}

fn signature(folded: &str) -> [u16; HASHES] {
    let starts: Vec<usize> = folded.char_indices().map(|(start, _)| start).chain([folded.len()]).collect();
    let (factors, terms) = FUNCTIONS;
    let mut least = [u32::MAX; HASHES];
    let width = SHINGLE.min(starts.len() - 1);
    for window in starts.windows(width + 1) {
        let shingle = mix(fnv(&folded.as_bytes()[window[0]..window[width]])) as u32;
        for ((least, factor), term) in least.iter_mut().zip(&factors).zip(&terms) {
            *least = (*least).min(factor.wrapping_mul(shingle).wrapping_add(*term));
        }
    }
    least.map(|hash| hash as u16)
}

/// FNV-1a of 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// SplitMix64 (Steele et al. 2014).
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn jaccard(one: &str, other: &str) -> f64 {
        let shingles = |text: &str| -> HashSet<String> {
            let characters: Vec<char> = text.chars().collect();
            characters.windows(SHINGLE).map(|window| window.iter().collect()).collect()
        };
        let (one, other) = (shingles(one), shingles(other));
        one.intersection(&other).count() as f64 / one.union(&other).count() as f64
    }

    #[test]
    fn the_estimate_is_near_the_true_similarity() {
        let words: Vec<String> = (0..200).map(|i| format!("word{}", i * 7919 % 1000)).collect();
        for replaced in [0, 2, 5, 10, 20, 40, 60, 100, 200] {
            let mut changed = words.clone();
            changed.iter_mut().take(replaced).for_each(|word| *word = format!("other {word} so"));
            let (one, other) = (words.join(" "), changed.join(" "));
            let mut signatures = Signatures::default();
            signatures.add(&one);
            signatures.add(&other);
            let (found, expected) = (signatures.similarity(0, 1), jaccard(&one, &other));
            // Three standard deviations of 125 draws are 0.13 at most.
            assert!((found - expected).abs() < 0.14, "{replaced}: {found} {expected}");
        }
    }

    #[test]
    fn near_texts_are_paired_and_others_are_not() {
        let mut signatures = Signatures::default();
        let original = "the patient came in with a cough that had lasted for three weeks and a light fever";
        let texts = [
            original,
            "a wholly different sentence about transfers of money between two accounts of one bank",
            "the patient came in with a cough that had lasted for three weeks and a slight fever",
            "?",
            "漢字",
            "",
            "the patient came in with a cough that had lasted for three weeks and a light fever.",
            "?",
        ];
        texts.iter().for_each(|text| {
            signatures.add(text);
        });
        let places = |pairs: &[Pair]| -> Vec<(usize, usize)> { pairs.iter().map(|p| (p.first, p.second)).collect() };
        assert_eq!(places(&signatures.pairs(texts.len()).within), [(0, 2), (0, 6), (3, 7)]);
        let parts = signatures.pairs(4);
        assert_eq!(places(&parts.within), [(0, 2)]);
        assert_eq!(places(&parts.across), [(0, 6), (3, 7)]);
    }

    #[test]
    fn a_bucket_of_equal_texts_is_paired_with_the_first() {
        let mut signatures = Signatures::default();
        (0..1000).for_each(|_| {
            signatures.add("one and the same text");
        });
        let pairs = signatures.pairs(1000).within;
        assert_eq!(pairs.len(), 999);
        assert!(pairs.iter().all(|pair| pair.first == 0 && pair.similarity == 1.0));
    }
}
