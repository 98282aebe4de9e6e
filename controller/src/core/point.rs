//! The point in time that a disk's digests describe, by what can prove it again: a checkpoint, untouched images, a kept
//! snapshot.
//! Text to types and back; `chunkfs` keeps the text in the index and compares it, and knows nothing of its meaning.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::facts::{ChainLayer, Clock};
use super::names::CheckpointName;
use super::volume::Volume;

/// `virt-backup-7-0000000000001234-8b6e421a images:0123456789abcdef thin:vg0/mail01_1752513887`, or some of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Its bitmap counts from this point or an earlier one.
    pub checkpoint: Option<CheckpointName>,
    /// The images held it, and hold it for as long as nobody touches them.
    pub images: Option<ImagesMark>,
    /// This snapshot of the disk's volume holds it.
    pub thin: Option<Volume>,
}

/// A digest over which files the images of a disk are, and when they were last touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImagesMark(String);

const IMAGES: &str = "images:";
const THIN: &str = "thin:";

impl Point {
    /// None: nothing of it could prove anything later.
    pub fn new(
        checkpoint: Option<CheckpointName>,
        images: Option<ImagesMark>,
        thin: Option<Volume>,
    ) -> Option<Point> {
        let point = Point { checkpoint, images, thin };
        (point != Point::NONE).then_some(point)
    }

    const NONE: Point = Point { checkpoint: None, images: None, thin: None };

    /// None: not written by this program. For which domain the checkpoint is, is for the reader to see.
    pub fn parse(text: &str) -> Option<Point> {
        let mut point = Point::NONE;
        for word in text.split(' ') {
            if let Some(digits) = word.strip_prefix(IMAGES) {
                point.images = Some(ImagesMark(digits.to_owned()));
            } else if let Some(volume) = word.strip_prefix(THIN) {
                point.thin = Some(volume.parse().ok()?);
            } else {
                point.checkpoint = Some(CheckpointName::of_any_domain(word)?);
            }
        }
        (point.to_string() == text).then_some(point)
    }
}

impl ImagesMark {
    /// None: the clock of a file system is coarse, and a write just now could leave a time as it is.
    pub fn of(layers: &[ChainLayer]) -> Option<ImagesMark> {
        if layers.is_empty() || layers.iter().any(|layer| layer.clock == Clock::Unsettled) {
            return None;
        }
        let known: Vec<_> = layers.iter().map(|layer| (&layer.path, layer.fingerprint)).collect();
        let text = serde_json::to_string(&known).ok()?;
        Some(ImagesMark(blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()))
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checkpoint = self.checkpoint.as_ref().map(CheckpointName::to_string);
        let images = self.images.as_ref().map(|images| format!("{IMAGES}{}", images.0));
        let thin = self.thin.as_ref().map(|volume| format!("{THIN}{volume}"));
        let words: Vec<_> = checkpoint.into_iter().chain(images).chain(thin).collect();
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::{JobId, Uuid};
    use super::super::units::Generation;
    use super::*;

    #[test]
    fn a_point_survives_its_text_and_no_other_text_is_one() {
        let uuid = Uuid::new("a0b1c2d3-0000-4000-8000-00000000000f").unwrap();
        let checkpoint = CheckpointName::new(&uuid, Generation(7), &JobId::from_bits(0x1234));
        let mark = ImagesMark("0123456789abcdef".to_owned());
        let volume = Volume::new("vg0", "mail01_1752513887").unwrap();
        for point in [
            Point::new(Some(checkpoint.clone()), Some(mark.clone()), Some(volume.clone())),
            Point::new(Some(checkpoint.clone()), Some(mark.clone()), None),
            Point::new(Some(checkpoint.clone()), None, None),
            Point::new(None, Some(mark), None),
            Point::new(None, None, Some(volume)),
        ] {
            let point = point.unwrap();
            assert_eq!(Point::parse(&point.to_string()), Some(point));
        }
        for text in
            ["", "images", "nightly", "images:1 images:2", "images:1  ", "thin:vg0", "thin:/dev/vg0/x"]
        {
            assert_eq!(Point::parse(text), None, "{text:?}");
        }
    }
}
